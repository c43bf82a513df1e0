"""Tables of texts as tests write them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

GOOD = [(f"a good film, number {n}", "good") for n in range(5)]
BAD = [(f'a "bad" film\nnumber {n}', "bad") for n in range(5)]
ROWS = [*GOOD, *BAD]

HEADER = [("text", "label")]

# Writes a file below a folder and returns its path.
Write = Callable[[str, str | bytes], str]


def as_csv(rows: list[tuple[str, ...]], **options: object) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, **options).writerows(rows)  # type: ignore[arg-type]
    return stream.getvalue()


def as_json(rows: list[tuple[str, str]], text: str = "text") -> str:
    return "".join(json.dumps({text: t, "label": y}) + "\n" for t, y in rows)
