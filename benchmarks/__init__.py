"""How fast the laboratory is, as ratios measured side by side.

``python -m benchmarks`` or ``make bench``.
"""
