"""Typed settings: read from text and from Python, checked, and told in words."""
