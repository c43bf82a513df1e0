"""Files: written whole or not at all, places, checkpoints and weights."""
