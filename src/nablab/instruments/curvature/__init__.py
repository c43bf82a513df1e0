"""Second derivatives: products, eigenvalues, traces, densities, exact matrices,
critical points.
"""
