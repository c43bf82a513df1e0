"""How fast the laboratory is, as ratios measured side by side.

Run it by ``python -m benchmarks`` or ``make bench``.
"""
