"""Rows of cells: a ``.csv`` or ``.tsv`` file, taken apart."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice

from nablab.errors import UsageError

LONGEST = 10_000_000  # characters of one text; War and Peace has 3 million
SEPARATORS = (",", ";", "\t")
SAMPLE = 20  # rows by which a separator is found
ROWS_NAMED = 3
# The line break stays with its line: a cell in quotation marks may hold it.
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")

# A row as it is read: the line where it begins, and its cells by place.
Row = tuple[int, list[str]]


def read_rows(text: str, where: str, kind: str) -> tuple[list[Row], list[str]]:
    """Take a table apart.

    Args:
        text: Its content.
        where: Names it in messages.
        kind: ``"csv"``, whose separator is found, or ``"tsv"``.

    Returns:
        The rows that hold anything, all of one width, and notes.

    Raises:
        UsageError: A row has more or fewer cells than the first, quotation marks are
            wrong, or a line or cell is far too long.
    """
    separator = "\t" if kind == "tsv" else _separator(text, where)
    notes = []
    if kind == "csv" and separator != ",":
        notes.append(f"{where}: the columns are separated by '{_shown(separator)}'")
    try:
        rows, empty = _checked(_rows(text, where, separator), where, separator)
    except UsageError:
        # Many files with tabs know no quotation marks, such as those of GLUE.
        if separator != "\t" or not _quotes_are_text(text):
            raise
        plain = _rows(text, where, separator, quotes=False)
        rows, empty = _checked(plain, where, separator)
        notes.append(
            f"{where}: quotation marks were taken as parts of the texts, since they do "
            "not enclose them"
        )
    if empty:
        notes.append(left_out(where, "empty rows", empty))
    return rows, notes


def left_out(where: str, what: str, lines: list[int]) -> str:
    """Write a note on rows that are not used, with their number and first lines."""
    some = ", ".join(f"{line:,}" for line in lines[:ROWS_NAMED])
    more = ", ..." if len(lines) > ROWS_NAMED else ""
    return f"{where}: {what}, which were left out: {len(lines):,} (line {some}{more})"


def too_long(where: str, line: int) -> UsageError:
    """Return the error for what is too long to be a text."""
    return UsageError(
        f"{where}, line {line:,}: a text of more than {LONGEST:,} characters. Is a "
        "quotation mark not closed, or a line break missing?"
    )


def _rows(
    text: str, where: str, separator: str, *, quotes: bool = True
) -> Iterator[Row]:
    """Yield all rows with the lines in which they begin."""
    # RFC 4180: quotation marks inside are doubled, and a cell may hold line breaks.
    reader = csv.reader(
        _lines(text, where),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    # Python's own limit is 131,072 characters; it is one for the process.
    before = csv.field_size_limit(LONGEST)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise too_long(where, line) from error
        raise UsageError(
            f"{where}, line {line:,}: {error}. Is a quotation mark not closed? Inside a "
            "cell in quotation marks, a quotation mark is written twice."
        ) from error
    finally:
        csv.field_size_limit(before)


def _lines(text: str, where: str) -> Iterator[str]:
    """Yield the lines one by one; `io.StringIO` would take 4 bytes per character."""
    for number, match in enumerate(LINE.finditer(text), start=1):
        # A line that long would be millions of cells if it were no text.
        if match.end() - match.start() > LONGEST:
            raise too_long(where, number)
        yield match[0]


def _checked(
    rows: Iterator[Row], where: str, separator: str
) -> tuple[list[Row], list[int]]:
    """Return the rows that hold anything, and the lines of those that hold nothing."""
    full: list[Row] = []
    empty: list[int] = []
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            empty.append(line)
            continue
        full.append((line, cells))
        width = len(full[0][1])
        if len(cells) != width:
            raise UsageError(
                f"{where}, line {line:,}: {len(cells)} columns in place of {width}. A "
                f"text that holds '{_shown(separator)}' or a line break needs quotation "
                "marks around it."
            )
    if not full:
        raise UsageError(f"{where} has no rows.")
    return full, empty


def _separator(text: str, where: str) -> str:
    """Return what separates the columns of a ``.csv`` file.

    It is the one that gives the first rows several columns, as many in each; where none
    does, the one that gives them to the first row. Spreadsheets write semicolons where
    the comma is the decimal sign.
    """
    widths = {one: _widths(text, where, one) for one in SEPARATORS}
    for separator, found in widths.items():
        if len(set(found)) == 1 and found[0] > 1:
            return separator
    for separator, found in widths.items():
        if found and found[0] > 1:
            return separator
    return ","


def _widths(text: str, where: str, separator: str) -> list[int]:
    """Count the cells of the first rows, up to one that cannot be read."""
    widths: list[int] = []
    try:
        for _, cells in islice(_rows(text, where, separator), SAMPLE):
            if any(cell.strip() for cell in cells):
                widths.append(len(cells))
    except UsageError:
        widths.append(0)
    return widths


def _quotes_are_text(text: str) -> bool:
    """Tell whether most cells that begin with a quotation mark do not end with one."""
    opened = closed = 0
    for match in LINE.finditer(text):
        for cell in match[0].rstrip("\r\n").split("\t"):
            if cell.startswith('"'):
                opened += 1
                closed += len(cell) > 1 and cell.endswith('"')
    return 2 * closed < opened


def _shown(separator: str) -> str:
    return "tab" if separator == "\t" else separator
