"""Labeled texts: sets of them, words, vocabularies, and what a network reads."""
