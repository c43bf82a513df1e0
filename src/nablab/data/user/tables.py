"""Tables of texts and labels: ``.csv``, ``.tsv`` and ``.jsonl``, packed by gzip or not.

Nothing is guessed in silence: the columns that are taken, a first row that is taken for
a header, and rows that are left out are noted. Texts such as ``NA`` and ``null`` are
texts.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nablab.data.user.cells import LONGEST, Row, left_out, read_rows, too_long
from nablab.data.user.columns import TABLES, is_table
from nablab.data.user.text_files import read_text
from nablab.errors import UsageError
from nablab.files.places import in_text

# Names by which a column is known for what it holds.
TEXT_NAMES = ("text", "texts", "sentence", "review", "content", "comment", "message")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "topic")
OBJECT = '{"text": "...", "label": "..."}'  # a line of .jsonl
CELLS = 12  # of a row that are listed in a message
LONGEST_LABEL = 200  # characters; a class's name stands in tables and figures
# At most 18 digits: Python refuses to read numbers of thousands.
WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


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
    if not is_table(path.name):
        raise UsageError(
            f"{where} is neither a folder nor a table of texts by its name. Save it as "
            f"one of these: {', '.join(TABLES)}."
        )
    if columns and not all(columns):
        raise UsageError(
            f"One column of {where} is named. Name two after the colon: that of the "
            f"texts and that of the labels, such as {where}:text,label."
        )
    text = read_text(path)
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "jsonl":
        table = _from_objects(text, path, columns)
    else:
        table = _from_cells(text, path, columns, kind)
    if not table.texts:
        raise UsageError(f"{where} has no row with a text and a label.")
    return table


def _from_cells(
    text: str, path: Path, columns: tuple[str, str] | None, kind: str
) -> Table:
    """Read a table of cells."""
    where = in_text(path)
    rows, notes = read_rows(text, where, kind)
    table = Table(path, notes=notes)
    header, text_place, label_place = _places(rows, columns, where)
    if header:
        names = _listed([cell.strip() for cell in rows[0][1]])
        table.notes.append(f"{where}: the first row names the columns: {names}")
    else:
        table.notes.append(f"{where}: the first row is a text, and names no columns")
    if columns is None:
        found = f"column {text_place + 1} has the texts, {label_place + 1} the labels"
        table.notes.append(f"{where}: {found}")
    pairs = (
        (line, cells[text_place], cells[label_place])
        for line, cells in rows[1 if header else 0 :]
    )
    _fill(table, pairs)
    return table


def _places(
    rows: Sequence[Row], columns: tuple[str, str] | None, where: str
) -> tuple[bool, int, int]:
    """Find whether the first row is a header, and the columns of texts and labels."""
    first = [cell.strip() for cell in rows[0][1]]
    if columns is None:
        return _found_places(rows, first, where)
    numbers = [_number(column, len(first)) for column in columns]
    if None not in numbers:
        # Numbers are places, also where a label of the first row is such a number.
        text, label = (number or 0 for number in numbers)
        header = _is_header(rows, text, label)
    else:
        text, label = (_named(column, first, where) for column in columns)
        header = True
    _check_two(text, label, where)
    return header, text, label


def _check_two(text: int, label: int, where: str) -> None:
    if text == label:
        raise UsageError(
            f"Column {text + 1} of {where} cannot hold both the texts and the labels. "
            "Name two columns after the colon: the texts first, then the labels."
        )


def _number(column: str, width: int) -> int | None:
    """Return the place that a column's number means; None if it is no such number."""
    if column.isdecimal() and 1 <= int(column) <= width:
        return int(column) - 1
    return None


def _named(column: str, names: Sequence[str], where: str) -> int:
    """Return the place of the column with this name or number."""
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
        f"{_listed(names)}. Give two of these names, or numbers from 1 to "
        f"{len(names)}."
    )


def _found_places(
    rows: Sequence[Row], first: Sequence[str], where: str
) -> tuple[bool, int, int]:
    """Find the columns by usual names, or by what two columns hold."""
    if len(first) < 2:
        raise UsageError(
            f"{where} has one column only, and texts and labels need one each. Separate "
            "columns by commas, semicolons or tabs."
        )
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
        f"first row: {_listed(first, ' | ')}. Write them after a colon, by name or by "
        f"number from 1, such as {where}:{len(first)},1."
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
            raise too_long(where, line)
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{where}, line {line:,} is not JSON: {error.msg} at character "
                f"{error.pos + 1:,}. Each line must be an object such as {OBJECT}."
            ) from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}, line {line:,} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UsageError(
                f"{where}, line {line:,} is not an object such as {OBJECT}."
            )
        rows.append((line, row))
    if not rows:
        raise UsageError(f"{where} has no rows.")
    names = list(rows[0][1])
    table = Table(path)
    text_place, label_place = (
        _named(name, names, where) for name in columns or _found_names(names, where)
    )
    _check_two(text_place, label_place, where)
    text_name, label_name = names[text_place], names[label_place]
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
        f"keys: {_listed(names)}. Write them after a colon, such as "
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
            f"{where}, line {line:,} has no '{name}'. Its keys: {_listed(list(row))}."
        )
    value = row[name]
    if not isinstance(value, types):
        raise UsageError(
            f"{where}, line {line:,}: '{name}' is {json.dumps(value)[:60]}, which is "
            f"not {words}."
        )
    if isinstance(value, str) and not value.isascii():
        _check_whole(value, name, where, line)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_whole(value: str, name: str, where: str, line: int) -> None:
    """Refuse half of a character, as is left where an emoji was cut in two."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise UsageError(
            f"{where}, line {line:,}: '{name}' holds half of a character, {half}, which "
            "no file can hold. Remove it."
        ) from error


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
        if len(label) > LONGEST_LABEL:
            raise UsageError(
                f"{where}, line {line:,}: a label of {len(label):,} characters, where "
                f"{LONGEST_LABEL} are the most. Are these the labels? Columns can be "
                f"named, such as {where}:text,label."
            )
        table.texts.append(text)
        table.labels.append(label.strip())
    if empty:
        table.notes.append(left_out(where, "rows without a text", empty))


def _listed(cells: Sequence[str], between: str = ", ") -> str:
    """List the beginnings of the first few cells."""
    some = [cell if len(cell) <= 20 else f"{cell[:17]}..." for cell in cells[:CELLS]]
    return between.join([*some, "..."] if len(cells) > CELLS else some)
