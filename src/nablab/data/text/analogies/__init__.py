"""Pairs of words that analogy questions are made of, a file for each relation.

Written for nablab. `nablab.data.text.questions` reads them.
"""
