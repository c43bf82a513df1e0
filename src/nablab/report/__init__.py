"""Reports: one self-contained HTML page per run, and exports beside it."""
