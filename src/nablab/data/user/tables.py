"""Tables of texts and labels: ``.csv``, ``.tsv`` and ``.jsonl``, packed by gzip or not.

Nothing is guessed in silence: the columns that are taken, a first row that is taken for
a header, and rows that are left out are noted. Texts such as ``NA`` and ``null`` are
texts.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nablab.data.user.limits import check_fits, memory
from nablab.errors import UsageError
from nablab.files.places import in_text

# Names by which a column is known for what it holds.
TEXT_NAMES = ("text", "texts", "sentence", "review", "content", "comment", "message")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "topic")
LONGEST = 10_000_000  # characters of one text; War and Peace has 3 million
# Bytes in memory for each of the file: the text as read, its rows, and their texts.
COPIES = 4
ROWS_NAMED = 3
NEVER_CLOSED = " Is a quotation mark not closed?"
WHOLE = re.compile(r"[+-]?\d+")

# A row as a reader gives it: the line where it begins, and its cells by place.
Row = tuple[int, list[str]]


@dataclass
class Table:
    """Texts with labels, as they stand in a file.

    Attributes:
        path: The file.
        texts: N texts.
        labels: N labels, as they are written.
        notes: What was decided for the user.
    """

    path: Path
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, columns: tuple[str, str] | None) -> Table:
    """Read the texts and labels of a table.

    Args:
        path: A file whose name ends in ``.csv``, ``.tsv`` or ``.jsonl``, or so with
            ``.gz``.
        columns: Names, or numbers from 1, of the columns of texts and of labels; None
            to find them.

    Raises:
        UsageError: It cannot be read, or it is not clear what is meant; the text names
            the line.
    """
    where = in_text(path)
    text = _decoded(_content(path), where)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "jsonl":
        table = _from_objects(text, path, columns)
    else:
        table = _from_cells(text, path, columns, "\t" if kind == "tsv" else "")
    if not table.texts:
        raise UsageError(f"{where} has no row with a text and a label.")
    return table


def _content(path: Path) -> bytes:
    """Read and unpack a file."""
    where = in_text(path)
    remedy = "Split the file, or take fewer rows."
    try:
        size = path.stat().st_size
        check_fits(COPIES * size, where, remedy)
        if path.suffix == ".gz":
            # What a gzip file says of its size cannot be relied on: one byte more than
            # there is room for is read, and no more.
            room = memory() // (2 * COPIES)
            with gzip.open(path) as file:
                content = file.read(room + 1)
            check_fits(COPIES * len(content), where, remedy)
        else:
            content = path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{where} is damaged ({error}). Pack it again.") from error
    except OSError as error:
        raise UsageError(
            f"{where} cannot be read: {error.strerror}. Make it readable."
        ) from error
    if not content.strip():
        raise UsageError(f"{where} is empty.")
    return content


def _decoded(content: bytes, where: str) -> str:
    """Decode a file by its byte order mark, or as UTF-8 if it has none."""
    encoding = "utf-8-sig"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{where} is not {encoding.removesuffix('-sig').upper()}: byte "
            f"0x{content[error.start]:02x} in line {line:,}. Convert it, such as with "
            f"'iconv -f latin1 -t utf-8 {where}', if that is its encoding."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(
            f"{where} holds a zero character in line {line:,}: it is no text file, or "
            "UTF-16 without a byte order mark. Convert it with iconv."
        )
    return text


def _from_cells(
    text: str, path: Path, columns: tuple[str, str] | None, separator: str
) -> Table:
    """Read a table of cells."""
    where = in_text(path)
    separator = separator or _separator(text)
    rows = list(_rows(text, where, separator))
    if not rows:
        raise UsageError(f"{where} has no rows.")
    width = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            raise UsageError(
                f"{where}, line {line:,}: {len(cells)} columns in place of {width}. A "
                f"text that holds '{_shown(separator)}' or a line break needs quotation "
                "marks around it."
            )
    table = Table(path)
    header, text_place, label_place = _places(rows, columns, where)
    if header:
        names = ", ".join(cell.strip() for cell in rows[0][1])
        table.notes.append(f"{where}: the first row names the columns: {names}")
    if columns is None:
        found = f"column {text_place + 1} has the texts, {label_place + 1} the labels"
        table.notes.append(f"{where}: {found}")
    pairs = (
        (line, cells[text_place], cells[label_place])
        for line, cells in rows[1 if header else 0 :]
    )
    _fill(table, pairs)
    return table


def _rows(text: str, where: str, separator: str) -> Iterator[Row]:
    """Yield the rows that are not empty, with the lines in which they begin."""
    # RFC 4180: quotation marks inside are doubled, and a cell may hold line breaks.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    before = csv.field_size_limit(sys.maxsize)  # the limit is one for the process
    line = 1
    try:
        for cells in reader:
            if max(map(len, cells), default=0) > LONGEST:
                raise _too_long(where, line)
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{where}, line {line:,}: {error}.{NEVER_CLOSED} Inside a cell in quotation "
            "marks, a quotation mark is written twice."
        ) from error
    finally:
        csv.field_size_limit(before)


def _too_long(where: str, line: int) -> UsageError:
    return UsageError(
        f"{where}, line {line:,}: a text of more than {LONGEST:,} characters."
        f"{NEVER_CLOSED}"
    )


def _separator(text: str) -> str:
    """Return what separates the columns of a ``.csv`` file.

    A comma, unless the first row has none; spreadsheets write semicolons where the
    comma is the decimal sign.
    """
    for separator in (",", ";", "\t"):
        beginning = io.StringIO(text[:LONGEST], newline="")
        first = next(csv.reader(beginning, delimiter=separator), [])
        if len(first) > 1:
            return separator
    return ","


def _places(
    rows: Sequence[Row], columns: tuple[str, str] | None, where: str
) -> tuple[bool, int, int]:
    """Find whether the first row is a header, and the columns of texts and labels."""
    first = [cell.strip() for cell in rows[0][1]]
    if columns is None:
        return _found_places(rows, first, where)
    if not any(column in first for column in columns):
        numbers = [_number(column, len(first)) for column in columns]
        if None not in numbers:
            text, label = (number or 0 for number in numbers)
            return _is_header(rows, text, label), text, label
    text, label = (_named(column, first, where) for column in columns)
    return True, text, label


def _number(column: str, width: int) -> int | None:
    """Return the place that a column's number means; None if it is no such number."""
    if column.isdecimal() and 1 <= int(column) <= width:
        return int(column) - 1
    return None


def _named(column: str, names: Sequence[str], where: str) -> int:
    if names.count(column) == 1:
        return list(names).index(column)
    if column in names:
        raise UsageError(
            f"{where} has {names.count(column)} columns '{column}'. Say which by its "
            f"number, from 1 to {len(names)}."
        )
    if (number := _number(column, len(names))) is not None:
        return number
    close = difflib.get_close_matches(column, names, n=1)
    meant = f" Did you mean '{close[0]}'?" if close else ""
    raise UsageError(
        f"{where} has no column '{column}'.{meant} Its columns: "
        f"{', '.join(names)}. Give two of these names, or numbers from 1 to "
        f"{len(names)}."
    )


def _found_places(
    rows: Sequence[Row], first: Sequence[str], where: str
) -> tuple[bool, int, int]:
    """Find the columns by usual names, or by what two columns hold."""
    lower = [cell.casefold() for cell in first]
    texts = [place for place, cell in enumerate(lower) if cell in TEXT_NAMES]
    labels = [place for place, cell in enumerate(lower) if cell in LABEL_NAMES]
    if len(texts) == len(labels) == 1:
        return True, texts[0], labels[0]
    if len(first) == 2 and not texts and not labels:
        # Labels repeat, and texts hardly do.
        kinds = [len({cells[place] for _, cells in rows}) for place in (0, 1)]
        few, many = sorted((0, 1), key=lambda place: kinds[place])
        if kinds[few] <= max(2, kinds[many] // 2):
            return _is_header(rows, many, few), many, few
    raise UsageError(
        f"It is not clear which columns of {where} hold the texts and the labels. The "
        f"first row: {_first(first)}. Write them after a colon, by name or by number "
        f"from 1, such as {where}:{len(first)},1."
    )


def _is_header(rows: Sequence[Row], text: int, label: int) -> bool:
    """Tell whether the first row names the columns.

    Its label is then a usual name, or it occurs in no other row while all others occur
    again or are numbers.
    """
    labels = [cells[label].strip() for _, cells in rows]
    if labels[0].casefold() in LABEL_NAMES:
        return True
    if rows[0][1][text].strip().casefold() in TEXT_NAMES:
        return True
    others = Counter(labels[1:])
    if not others or labels[0] in others or WHOLE.fullmatch(labels[0]):
        return False
    return all(count > 1 or WHOLE.fullmatch(value) for value, count in others.items())


def _from_objects(text: str, path: Path, columns: tuple[str, str] | None) -> Table:
    """Read a line of JSON per row."""
    where = in_text(path)
    rows: list[tuple[int, dict[str, object]]] = []
    for line, content in enumerate(text.split("\n"), start=1):
        if len(content) > LONGEST:
            raise _too_long(where, line)
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}, line {line:,} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UsageError(
                f"{where}, line {line:,} is not an object such as "
                '{"text": "...", "label": "..."}.'
            )
        rows.append((line, row))
    if not rows:
        raise UsageError(f"{where} has no rows.")
    names = list(rows[0][1])
    table = Table(path)
    text_name, label_name = columns or _found_names(names, where)
    for name in (text_name, label_name):
        _named(name, names, where)
    if columns is None:
        table.notes.append(
            f"{where}: '{text_name}' has the texts, '{label_name}' the labels"
        )
    pairs = (
        (
            line,
            _value(row, text_name, where, line, (str,), "a text"),
            _value(row, label_name, where, line, (str, int), "a text or whole number"),
        )
        for line, row in rows
    )
    _fill(table, pairs)
    return table


def _found_names(names: Sequence[str], where: str) -> tuple[str, str]:
    texts = [name for name in names if name.casefold() in TEXT_NAMES]
    labels = [name for name in names if name.casefold() in LABEL_NAMES]
    if len(texts) == len(labels) == 1:
        return texts[0], labels[0]
    raise UsageError(
        f"It is not clear which keys of {where} hold the texts and the labels. Its "
        f"keys: {', '.join(names)}. Write them after a colon, such as "
        f"{where}:{names[0] if names else 'text'},label."
    )


def _value(
    row: dict[str, object],
    name: str,
    where: str,
    line: int,
    types: tuple[type, ...],
    words: str,
) -> str:
    if name not in row:
        raise UsageError(
            f"{where}, line {line:,} has no '{name}'. Its keys: {', '.join(row)}."
        )
    value = row[name]
    if not isinstance(value, types):
        raise UsageError(
            f"{where}, line {line:,}: '{name}' is {json.dumps(value)[:60]}, which is "
            f"not {words}."
        )
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fill(table: Table, pairs: Iterator[tuple[int, str, str]]) -> None:
    """Take the texts and labels of a table's rows, and note what was left out."""
    where = in_text(table.path)
    empty: list[int] = []
    for line, text, label in pairs:
        if not label.strip():
            raise UsageError(
                f"{where}, line {line:,} has no label. Give it one, or remove the row."
            )
        if not text.strip():
            empty.append(line)
            continue
        table.texts.append(text)
        table.labels.append(label.strip())
    if empty:
        lines = ", ".join(f"{line:,}" for line in empty[:ROWS_NAMED])
        more = ", ..." if len(empty) > ROWS_NAMED else ""
        table.notes.append(
            f"{where}: rows without a text, which were left out: {len(empty):,} (line "
            f"{lines}{more})"
        )


def _first(cells: Sequence[str]) -> str:
    """Show the beginning of a row."""
    shown = [cell if len(cell) <= 20 else f"{cell[:17]}..." for cell in cells[:6]]
    return " | ".join(shown) + (" | ..." if len(cells) > len(shown) else "")


def _shown(separator: str) -> str:
    return "tab" if separator == "\t" else separator
