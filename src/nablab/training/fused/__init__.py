"""Engines in compiled code.

Kernels in C, how they are compiled, and what Python tells them.
"""
