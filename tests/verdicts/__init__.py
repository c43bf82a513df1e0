"""Verdicts: intervals, tests, decisions and words."""
