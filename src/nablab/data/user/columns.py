"""Which columns of a table are meant: ``reviews.csv:review,stars``."""

from __future__ import annotations

from pathlib import Path

TABLES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
"""How the names of tables end."""


def split_columns(spec: str) -> tuple[str, tuple[str, str] | None]:
    """Split a path into the table and its columns of texts and labels, if they are named.

    In place of a table, a folder with tables of the splits may stand. What is on the
    disk as it is written is a path as a whole.

    >>> split_columns("reviews.csv:review,stars"), split_columns("imdb")
    (('reviews.csv', ('review', 'stars')), ('imdb', None))
    """
    path, colon, columns = spec.rpartition(":")
    if not colon or Path(spec).expanduser().exists():
        return spec, None
    text, comma, label = columns.partition(",")
    if is_table(path):
        return path, (text.strip(), label.strip())
    if comma and path and Path(path).expanduser().is_dir():
        return path, (text.strip(), label.strip())
    return spec, None


def is_table(path: str) -> bool:
    """Tell whether a name ends as those of tables do, in letters of any case.

    >>> is_table("REVIEWS.CSV"), is_table("reviews.xlsx")
    (True, False)
    """
    return path.lower().endswith(TABLES)


def stem_of(name: str) -> str:
    """Return a file's name without the ending of a table.

    >>> stem_of("film.reviews.csv.gz"), stem_of("v1.2")
    ('film.reviews', 'v1.2')
    """
    for ending in TABLES:
        if name.lower().endswith(ending):
            return name[: -len(ending)] or name
    return name
