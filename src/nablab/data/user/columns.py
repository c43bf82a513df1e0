"""Which columns of a table are meant: ``reviews.csv:review,stars``."""

from __future__ import annotations

from pathlib import Path

TABLES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
"""How the names of tables end."""


def split_columns(spec: str) -> tuple[str, tuple[str, str] | None]:
    """Split a path into the file and its columns of texts and labels, if they are named.

    What is on the disk as it is written is a path as a whole.

    >>> split_columns("reviews.csv:review,stars"), split_columns("imdb")
    (('reviews.csv', ('review', 'stars')), ('imdb', None))
    """
    path, colon, columns = spec.rpartition(":")
    if not colon or not path.endswith(TABLES) or Path(spec).expanduser().exists():
        return spec, None
    text, comma, label = columns.partition(",")
    return (path, (text, label)) if comma else (spec, None)
