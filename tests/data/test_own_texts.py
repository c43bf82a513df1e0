"""A user's own texts: tables and folders that are right, and those that are not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nablab import data
from nablab.data.user import tables
from nablab.data.user.columns import split_columns
from nablab.data.user.tables import read_table
from nablab.errors import UsageError

GOOD = [(f"a good film, number {n}", "good") for n in range(5)]
BAD = [(f'a "bad" film\nnumber {n}', "bad") for n in range(5)]
ROWS = [*GOOD, *BAD]

Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file below a folder and returns its path."""

    def make(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return make


def as_csv(rows: list[tuple[str, ...]], **options: object) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, **options).writerows(rows)  # type: ignore[arg-type]
    return stream.getvalue()


def as_json(rows: list[tuple[str, str]], text: str = "text") -> str:
    return "".join(json.dumps({text: t, "label": y}) + "\n" for t, y in rows)


def pairs(spec: str, split: str | None = None) -> list[tuple[str, str]]:
    """All texts with the names of their classes."""
    found = []
    for one in [split] if split else ["train", "test"]:
        texts = data.load_texts(spec, split=one)
        found += [
            (text, texts.classes[label])
            for text, label in zip(texts.texts, texts.labels.tolist(), strict=True)
        ]
    return sorted(found)


HEADER = [("text", "label")]
TABLES: dict[str, tuple[str, str | bytes, str]] = {
    "header": ("a.csv", as_csv(HEADER + ROWS), ""),
    "no header": ("a.csv", as_csv(ROWS), ""),
    "label first": ("a.csv", as_csv([(y, t) for t, y in ROWS]), ""),
    "by name": (
        "a.csv",
        as_csv([("id", "review", "stars"), *(("7", t, y) for t, y in ROWS)]),
        ":review,stars",
    ),
    "by number": ("a.csv", as_csv([("7", t, y) for t, y in ROWS]), ":2,3"),
    "by number, header": (
        "a.csv",
        as_csv([("id", "what", "how"), *(("7", t, y) for t, y in ROWS)]),
        ":2,3",
    ),
    "semicolons": ("a.csv", as_csv(HEADER + ROWS, delimiter=";"), ""),
    "tabs": ("a.tsv", as_csv(HEADER + ROWS, delimiter="\t"), ""),
    "all quoted": ("a.csv", as_csv(HEADER + ROWS, quoting=csv.QUOTE_ALL), ""),
    "unix lines": ("a.csv", as_csv(HEADER + ROWS, lineterminator="\n"), ""),
    "empty rows": ("a.csv", "\r\n" + as_csv(HEADER + ROWS) + "\r\n,\r\n", ""),
    "gzip": ("a.csv.gz", gzip.compress(as_csv(HEADER + ROWS).encode()), ""),
    "mark": ("a.csv", as_csv(HEADER + ROWS).encode("utf-8-sig"), ""),
    "utf-16": ("a.csv", as_csv(HEADER + ROWS).encode("utf-16"), ""),
    "json lines": ("a.jsonl", as_json(ROWS), ""),
    "json lines by name": ("a.jsonl", as_json(ROWS, "body"), ":body,label"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_every_form_hold_the_same(case: str, write: Write) -> None:
    name, content, columns = TABLES[case]
    spec = write(name, content) + columns
    assert pairs(spec) == sorted(ROWS)
    assert len(pairs(spec, "test")) == 2
    assert data.load_texts(spec).classes == ("bad", "good")
    assert data.load_texts(spec).name == "a"
    assert data.text_task(f"{spec}@4").texts().texts.__len__() == 4


def test_the_same_texts_have_the_same_identity_until_they_change(write: Write) -> None:
    path = write("a.csv", as_csv(HEADER + ROWS))
    first = data.source_hash(path)
    assert len(first) == 64
    assert data.source_hash(f"{path}:text,label") == first
    write("a.csv", as_csv(HEADER + ROWS[1:]))
    assert data.source_hash(path) != first


def test_a_folder_per_class_and_tables_per_split(write: Write, tmp_path: Path) -> None:
    for number, (text, label) in enumerate(ROWS):
        write(f"one/{label}/{number}.txt", text)
        write(f"two/train/{label}/{number}.txt", text)
    for text, label in (GOOD[0], BAD[0]):
        write(f"two/test/{label}/x.txt", text)
    write("one/notes.md", "not a text")
    assert pairs(str(tmp_path / "one")) == sorted(ROWS)
    assert pairs(str(tmp_path / "two"), "train") == sorted(ROWS)
    assert pairs(str(tmp_path / "two"), "test") == sorted([GOOD[0], BAD[0]])
    assert any(
        "notes.md" in note for note in data.load_texts(str(tmp_path / "one")).notes
    )
    write("three/train.csv", as_csv(HEADER + ROWS))
    write("three/test.csv", as_csv([*HEADER, GOOD[1]]))
    three = str(tmp_path / "three")
    assert pairs(three, "test") == [GOOD[1]]
    notes = " ".join(data.load_texts(three).notes)
    assert "Texts that are in both splits: 1" in notes
    assert "a fifth" not in notes


def test_numbers_are_sorted_by_size(write: Write) -> None:
    rows = [(f"text {n}", str(n % 3 * 5)) for n in range(12)]
    assert data.load_texts(write("a.csv", as_csv(rows))).classes == ("0", "5", "10")


def test_texts_that_other_readers_take_for_missing_are_texts(write: Write) -> None:
    rows = [(text, label) for text in ("NA", "null", "None", "nan") for label in "ab"]
    texts = data.load_texts(write("a.csv", as_csv([*HEADER, *rows])))
    assert set(texts.texts) == {"NA", "null", "None", "nan"}


def test_what_was_decided_is_noted(write: Write) -> None:
    rows = [*ROWS, ("", "good"), ("  ", "bad"), GOOD[0], (BAD[0][0], "good")]
    notes = " ".join(data.load_texts(write("a.csv", as_csv(HEADER + rows))).notes)
    assert "the first row names the columns: text, label" in notes
    assert "column 1 has the texts, 2 the labels" in notes
    assert "left out: 2 (line 17, 18)" in notes
    assert "more than once: 2, 1 of them with different labels" in notes
    assert "a fifth of each class was cut off" in notes


def test_a_long_text_is_read(write: Write) -> None:
    long = "word " * 100_000
    rows = [*HEADER, (long, "a"), ("x", "b"), ("y", "a"), ("z", "b")]
    assert long in data.load_texts(write("a.csv", as_csv(rows))).texts + (
        data.load_texts(write("a.csv", as_csv(rows)), split="test").texts
    )


def test_columns_are_written_after_a_colon(tmp_path: Path) -> None:
    assert split_columns("a.csv:x,y") == ("a.csv", ("x", "y"))
    assert split_columns("~/a b.jsonl.gz:2,1") == ("~/a b.jsonl.gz", ("2", "1"))
    for plain in ("a.csv", "folder:x,y", "a.csv:x", "imdb", "a.csv:"):
        assert split_columns(plain) == (plain, None)
    odd = tmp_path / "a.csv:x,y"
    odd.write_text("")
    assert split_columns(str(odd)) == (str(odd), None)


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
        r"labels of .*test\.csv are words, such as 'good'.*are numbers, such as 0",
    ),
    "a class of the test split": (
        {
            "d/train.csv": as_csv(HEADER + ROWS),
            "d/test.csv": as_csv([*HEADER, ("x", "fair")]),
        },
        "d",
        "1 texts of a class that the training texts do not have: 'fair'",
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
        "is not UTF-8: byte 0xe9 at place 3",
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
    monkeypatch.setattr(tables, "LONGEST", 10_000)
    for name, content in (
        ("a.csv", "text,label\n" + "x" * 20_000 + ",good\n"),
        ("b.csv", 'text,label\n"' + "x,good\n" * 3_000),
        ("a.jsonl", '{"text": "' + "x" * 20_000 + '", "label": 1}\n'),
    ):
        with pytest.raises(UsageError, match="not closed"):
            data.load_texts(write(name, content))


def test_what_does_not_fit_is_refused_before_it_is_read(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nablab.data.user import limits

    path = write("a.csv.gz", gzip.compress(as_csv(HEADER + ROWS).encode() * 1_000))
    monkeypatch.setattr(limits, "memory", lambda: 1_000_000)
    with pytest.raises(UsageError, match=r"would take .* in memory"):
        data.load_texts(path)


texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]),
    min_size=1,
    max_size=12,
).filter(str.strip)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(texts, st.sampled_from(["yes", "no, not"])), min_size=1),
    form=st.sampled_from([("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_table_is_read_back(
    rows: list[tuple[str, str]],
    form: tuple[str, str],
    quoting: int,
    end: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    name, separator = form
    path = tmp_path_factory.mktemp("tables") / name
    content = as_csv(
        [("text", "label"), *rows],
        delimiter=separator,
        quoting=quoting,
        lineterminator=end,
    )
    path.write_bytes(content.encode())
    found = read_table(path, None)
    assert list(zip(found.texts, found.labels, strict=True)) == rows
