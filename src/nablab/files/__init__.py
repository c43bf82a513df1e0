"""Files: written whole or not at all, places that a user names, checkpoints and
weights.
"""
