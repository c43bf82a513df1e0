"""Engines in compiled code: kernels in C, how they are compiled, and what Python tells
them.
"""
