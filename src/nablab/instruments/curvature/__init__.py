"""Second derivatives.

Products, eigenvalues, traces, densities, exact matrices, critical points.
"""
