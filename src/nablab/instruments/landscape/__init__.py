"""The loss along lines, planes and paths through weight space."""
