"""A user's own texts that are wrong: one clear sentence each, and nothing half-read."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import pytest

from nablab import data
from nablab.data.user import cells, limits, tables, text_files
from nablab.errors import UsageError
from tests.data.written import GOOD, HEADER, ROWS, Write, as_csv, as_json

LATIN = as_csv([*HEADER, *ROWS, ("café", "good")]).encode("latin1")
THREE = [("1", "x y", "z w"), ("2", "x v", "z u")]
MANY = [(f"text {n}", f"label {n}") for n in range(9)]
NUMBERS = [(text, str(n % 2)) for n, (text, _) in enumerate(ROWS)]
WRONG: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "one class": ({"a.csv": as_csv(HEADER + GOOD)}, "a.csv", r"one class only \('good'\)"),
    "labels that are texts": ({"a.csv": as_csv(MANY)}, "a.csv:1,2", "9 different labels"),
    "latin1": ({"a.csv": LATIN}, "a.csv", "is not UTF-8: byte 0xe9 in line 17.*iconv"),
    "utf-16 without a mark": (
        {"a.csv": as_csv(HEADER + ROWS).encode("utf-16-le")},
        "a.csv",
        "zero character in line 1",
    ),
    "no such column": (
        {"a.csv": as_csv(HEADER + ROWS)},
        "a.csv:txt,label",
        r"no column 'txt'\. Did you mean 'text'\? Its columns: text, label",
    ),
    "no such number": ({"a.csv": as_csv(ROWS)}, "a.csv:1,3", "no column '3'"),
    "two columns of a name": (
        {"a.csv": as_csv([("a", "a"), *ROWS])},
        "a.csv:a,a",
        "2 columns 'a'",
    ),
    "unclear": ({"a.csv": as_csv(THREE)}, "a.csv", "not clear which columns"),
    "numbers and words": (
        {"d/train.csv": as_csv(NUMBERS), "d/test.csv": as_csv([*HEADER, *ROWS])},
        "d",
        r"labels of .*test\.csv are words, such as 'good'.*are numbers, such as '0'",
    ),
    "a class of the test split": (
        {
            "d/train.csv": as_csv(HEADER + ROWS),
            "d/test.csv": as_csv([*HEADER, ("x", "fair")]),
        },
        "d",
        "labels that the training texts do not have, such as 'fair'; .*: 1",
    ),
    "only empty texts": (
        {"a.csv": as_csv([*HEADER, ("", "x"), (" ", "y")])},
        "a.csv",
        "no row",
    ),
    "no label": (
        {"a.csv": as_csv([*HEADER, *ROWS, ("x", "")])},
        "a.csv",
        "line 17 has no label",
    ),
    "one column for both": (
        {"a.csv": as_csv(HEADER + ROWS)},
        "a.csv:2,2",
        "Column 2 of .* cannot hold both",
    ),
    "one column named": ({"a.csv": as_csv(ROWS)}, "a.csv:text", "Name two"),
    "one column there": ({"a.csv": "text\nx\ny\n"}, "a.csv", "one column only"),
    "a mark before latin1": (
        {"a.csv": b"\xef\xbb\xbftext,label\ncaf\xe9,a\n"},
        "a.csv",
        "byte 0xe9 in line 2",
    ),
    "a spreadsheet": ({"a.xlsx": b"PK"}, "a.xlsx", "neither a folder nor a table"),
    "one number, two spellings": (
        {"a.csv": as_csv([*HEADER, *((t, "1") for t, _ in GOOD), ("x", "01")])},
        "a.csv",
        "labels '01' and '1' .* one number",
    ),
    "a label that is a text": (
        {"a.csv": as_csv([*HEADER, *ROWS, ("x", "9" * 5_000)])},
        "a.csv",
        "line 17: a label of 5,000 characters",
    ),
    "words and numbers": (
        {"d/train.csv": as_csv(HEADER + ROWS), "d/test.csv": as_csv(HEADER + NUMBERS)},
        "d",
        r"labels of .*test\.csv are numbers, such as '.'.*are words, such as 'bad'",
    ),
    "half of a character": (
        {"a.jsonl": as_json(ROWS) + '{"text": "x \\ud83d", "label": "good"}\n'},
        "a.jsonl",
        r"line 11: 'text' holds half of a character, \\ud83d",
    ),
    "a list": ({"a.jsonl": "[\n"}, "a.jsonl", "line 1 is not JSON.*must be an object"),
    "deep": ({"a.jsonl": "[" * 100_000}, "a.jsonl", "line 1 is not JSON"),
    "a table of another name": (
        {"d/reviews.csv": as_csv(ROWS)},
        "d",
        "no table of training texts, such as train.csv, among its tables: reviews.csv",
    ),
    "a table and a folder": (
        {"d/train.csv": as_csv(ROWS), "d/train/good/1.txt": "x"},
        "d",
        "both a table train.csv and a folder train",
    ),
    "columns of no table": (
        {"d/good/1.txt": "x", "d/bad/1.txt": "x"},
        "d:text,label",
        "has no tables.*Leave out ':text,label'",
    ),
    "a folder without classes": ({"d/notes.md": "x"}, "d", "no subfolders"),
    "a class of the test folder": (
        {
            "d/train/good/1.txt": "x",
            "d/train/bad/1.txt": "x",
            "d/test/fair/1.txt": "x",
            "d/test/good/1.txt": "x",
        },
        "d",
        "fair is a class that .* does not have",
    ),
    "a zero in a file": (
        {"d/good/1.txt": "x\0", "d/bad/1.txt": "x"},
        "d",
        "zero character in line 1",
    ),
    "only a header": ({"a.csv": as_csv(HEADER)}, "a.csv", "no row with a text"),
    "nothing": ({"a.csv": b""}, "a.csv", "is empty"),
    "blank": ({"a.csv": b"\n \n"}, "a.csv", "is empty"),
    "a row too wide": (
        {"a.csv": as_csv(HEADER + ROWS) + "a, b, c\r\n"},
        "a.csv",
        r"line 17: 3 columns in place of 2.*','",
    ),
    "an open quotation mark": (
        {"a.csv": as_csv(HEADER + ROWS) + '"never closed,good\r\n'},
        "a.csv",
        "line 17: unexpected end of data.*not closed",
    ),
    "an open quotation mark in a table of quoted texts": (
        {
            "a.tsv": as_csv(HEADER + GOOD, delimiter="\t", quoting=csv.QUOTE_ALL)
            + '"never closed\tgood\r\n'
        },
        "a.tsv",
        "line 7: unexpected end of data",
    ),
    "a truncated gzip": (
        {"a.csv.gz": gzip.compress(as_csv(HEADER + ROWS).encode())[:-12]},
        "a.csv.gz",
        "is damaged",
    ),
    "no gzip": ({"a.csv.gz": b"text,label\n"}, "a.csv.gz", "is damaged"),
    "no json": ({"a.jsonl": as_json(ROWS) + "{oops\n"}, "a.jsonl", "line 11 is not JSON"),
    "no object": ({"a.jsonl": "[1, 2]\n"}, "a.jsonl", "line 1 is not an object"),
    "a key that is missing": (
        {"a.jsonl": as_json(ROWS) + '{"text": "x"}\n'},
        "a.jsonl",
        "line 11 has no 'label'",
    ),
    "a text that is a number": (
        {"a.jsonl": as_json(ROWS) + '{"text": 3, "label": "x"}\n'},
        "a.jsonl",
        "line 11: 'text' is 3, which is not a text",
    ),
    "a label that is a fraction": (
        {"a.jsonl": as_json(ROWS) + '{"text": "x", "label": 0.5}\n'},
        "a.jsonl",
        "'label' is 0.5, which is not a text or whole number",
    ),
    "unclear keys": (
        {"a.jsonl": '{"a": "x", "b": "y"}\n'},
        "a.jsonl",
        "not clear which keys",
    ),
    "one text of a class": (
        {"a.csv": as_csv([*HEADER, *GOOD, ("x", "bad")])},
        "a.csv",
        "the class 'bad' has one text",
    ),
    "one folder": ({"d/good/1.txt": "x"}, "d", "one subfolder only"),
    "an empty file": (
        {"d/good/1.txt": "x", "d/bad/1.txt": " "},
        "d",
        r"1\.txt is empty\. Remove it",
    ),
    "a folder without texts": (
        {"d/good/1.txt": "x", "d/bad/1.md": "x"},
        "d",
        r"the class 'bad' is empty.*Give it texts \(\.txt\)",
    ),
    "a latin1 file": (
        {"d/good/1.txt": b"caf\xe9", "d/bad/1.txt": "x"},
        "d",
        "is not UTF-8: byte 0xe9 in line 1",
    ),
    "two tables of a split": (
        {"d/train.csv": as_csv(ROWS), "d/train.tsv": "x\ty\n"},
        "d",
        "several tables of one split",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(
    case: str, write: Write, tmp_path: Path
) -> None:
    files, spec, message = WRONG[case]
    for name, content in files.items():
        write(name, content)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        data.load_texts(str(tmp_path / spec))


def test_a_link_that_leads_nowhere_is_named(write: Write, tmp_path: Path) -> None:
    write("d/good/1.txt", "x")
    write("d/bad/1.txt", "y")
    (tmp_path / "d/bad/2.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="is a link to"):
        data.load_texts(str(tmp_path / "d"))


def test_a_hundred_megabytes_on_one_line_are_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cells, tables):
        monkeypatch.setattr(module, "LONGEST", 10_000)
    for name, content in (
        ("c.csv", "ab," * 10_000),
        ("a.csv", "text,label\n" + "x" * 20_000 + ",good\n"),
        ("b.csv", 'text,label\n"' + "x,good\n" * 3_000),
        ("a.jsonl", '{"text": "' + "x" * 20_000 + '", "label": 1}\n'),
    ):
        with pytest.raises(UsageError, match="not closed"):
            data.load_texts(write(name, content))


def test_what_does_not_fit_is_refused_before_it_is_read(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.csv.gz", gzip.compress(as_csv(HEADER + ROWS).encode() * 1_000))
    monkeypatch.setattr(limits, "memory", lambda: 1_000_000)
    with pytest.raises(UsageError, match=r"would take .* in memory"):
        data.load_texts(path)


def test_a_file_that_fills_the_memory_is_not_unpacked(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SMALL", 1_000_000)
    monkeypatch.setattr(text_files, "PIECE", 1_000_000)
    path = write("a.csv.gz", gzip.compress(bytes(4_000_000)))
    with pytest.raises(UsageError, match=r"would unpack to 2\.0 MB, which no texts do"):
        data.load_texts(path)


def test_many_short_rows_are_refused_before_they_are_taken_apart(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "memory", lambda: 1_000_000)
    with pytest.raises(UsageError, match=r"would take .* in memory"):
        data.load_texts(write("a.csv", "a,b\n" * 2_000))


@pytest.mark.parametrize("limit", [1_000, 50_000_000])
def test_python_s_own_limit_of_cells_is_put_back(limit: int, write: Write) -> None:
    before = csv.field_size_limit(limit)
    try:
        data.load_texts(write("a.csv", as_csv([*HEADER, *ROWS, ("x" * 9_999, "bad")])))
        with pytest.raises(UsageError, match="not closed"):
            data.load_texts(write("b.csv", 'text,label\n"x,good\n'))
        assert csv.field_size_limit() == limit
    finally:
        csv.field_size_limit(before)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_folder_that_cannot_be_listed_is_named(write: Write, tmp_path: Path) -> None:
    write("d/good/1.txt", "x")
    write("d/bad/1.txt", "y")
    (tmp_path / "d/bad").chmod(0)
    try:
        with pytest.raises(UsageError, match="bad cannot be read"):
            data.load_texts(str(tmp_path / "d"))
    finally:
        (tmp_path / "d/bad").chmod(0o700)
