"""Intervals, tests and resampling, for verdicts and figures alike.

Numbers in, numbers out.
"""
