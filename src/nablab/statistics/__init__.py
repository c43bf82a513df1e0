"""Intervals, tests and resampling, for verdicts and figures alike; numbers in, numbers
out.
"""
