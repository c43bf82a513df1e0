"""A user's own texts: tables and folders that are right, and those that are not."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nablab import data
from nablab.data.user import texts as own_texts
from nablab.data.user.columns import split_columns
from nablab.data.user.tables import read_table
from tests.data.written import BAD, GOOD, HEADER, ROWS, Write, as_csv, as_json


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
    "json lines by number": ("a.jsonl", as_json(ROWS, "body"), ":1,2"),
    "utf-16, big end first": (
        "a.csv",
        b"\xfe\xff" + as_csv(HEADER + ROWS).encode("utf-16-be"),
        "",
    ),
    "semicolons, no header": ("a.csv", as_csv(ROWS, delimiter=";"), ""),
    "mac lines": (
        "a.csv",
        as_csv(HEADER + ROWS, quoting=csv.QUOTE_ALL, lineterminator="\r"),
        "",
    ),
    "capitals": ("a.CSV", as_csv(HEADER + ROWS), ":text,label"),
    "empty rows with semicolons": (
        "a.csv",
        "\n\n" + as_csv(HEADER + ROWS, delimiter=";"),
        "",
    ),
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


def test_columns_of_a_folder_with_tables_can_be_named(
    write: Write, tmp_path: Path
) -> None:
    rows = [("id", "body", "stars"), *(("7", t, y) for t, y in ROWS)]
    write("d/train.csv", as_csv(rows))
    write("d/test.csv", as_csv([rows[0], ("8", "new", "bad")]))
    write("d/val.csv", "not read")
    spec = f"{tmp_path / 'd'}:body,stars"
    assert pairs(spec, "train") == sorted(ROWS)
    assert pairs(spec, "test") == [("new", "bad")]
    assert any("val.csv" in note for note in data.load_texts(spec).notes)
    assert len(data.source_hash(spec)) == 64


def test_texts_of_files_are_decoded_as_tables_are(write: Write, tmp_path: Path) -> None:
    for n, content in enumerate(("é\r\nè".encode("utf-16"), b"\xef\xbb\xbf\xc3\xa9\n")):
        write(f"d/a/{n}.txt", content)
        write(f"d/b/{n}.txt", f"text {n}")
    found = [text for text, label in pairs(str(tmp_path / "d")) if label == "a"]
    assert found == ["é\n", "é\nè"]


@pytest.mark.parametrize("label", ["1", "2", "3"])
def test_numbers_of_columns_are_places_whatever_the_labels_are(
    label: str, write: Write
) -> None:
    # AG News is such a table: no header, classes 1 to 4, the texts behind them.
    rows = [(label, "title", f"text {n}") for n in range(4)]
    rows += [(str(n % 2 + 1), "title", f"more {n}") for n in range(4)]
    path = write("a.csv", as_csv(rows))
    assert pairs(f"{path}:3,1") == sorted((text, label) for label, _, text in rows)
    notes = data.load_texts(f"{path}:3,1").notes
    assert any("the first row is a text" in note for note in notes)


def test_quotation_marks_that_enclose_nothing_are_text(write: Write) -> None:
    rows = [('"oh" no', "1"), ('fine "thing"', "0"), ('"so', "1"), ("ok", "0")]
    content = "".join(f"{text}\t{label}\n" for text, label in rows)
    path = write("a.tsv", "sentence\tlabel\n" + content)
    assert pairs(path) == sorted(rows)
    assert any("quotation marks" in note for note in data.load_texts(path).notes)


def test_a_first_text_of_any_length_is_read(write: Write) -> None:
    rows = [("word " * 100_000, "a"), ("x", "b"), ("y", "a"), ("z", "b")]
    assert pairs(write("a.csv", as_csv(rows))) == sorted(rows)


def test_what_changes_behind_a_link_is_read_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it is for files that have been left alone for some seconds.
    monkeypatch.setattr(own_texts, "is_fresh", lambda states: False)
    for name in ("1", "2"):
        write(f"d/good/{name}.txt", f"good {name}")
        write(f"elsewhere/{name}.txt", f"bad {name}")
    (tmp_path / "d/bad").symlink_to(tmp_path / "elsewhere")
    path = str(tmp_path / "d")
    assert ("bad 2", "bad") in pairs(path)
    write("elsewhere/2.txt", "bad 2, revised")
    assert ("bad 2, revised", "bad") in pairs(path)


def test_names_of_sets_keep_their_dots(write: Write) -> None:
    path = write("film.reviews.v2.csv.gz", gzip.compress(as_csv(ROWS).encode()))
    assert data.load_texts(path).name == "film.reviews.v2"


def test_texts_that_the_cut_puts_into_both_splits_are_counted(write: Write) -> None:
    rows = [("the same", label) for label in "ab" for _ in range(5)]
    notes = data.load_texts(write("a.csv", as_csv(HEADER + rows))).notes
    assert "Texts that are in both splits: 1" in notes


def test_numbers_are_sorted_by_size(write: Write) -> None:
    rows = [(f"text {n}", str(n % 3 * 5)) for n in range(12)]
    assert data.load_texts(write("a.csv", as_csv(rows))).classes == ("0", "5", "10")


def test_texts_that_other_readers_take_for_missing_are_texts(write: Write) -> None:
    rows = [(text, label) for text in ("NA", "null", "None", "nan") for label in "ab"]
    texts = data.load_texts(write("a.csv", as_csv([*HEADER, *rows])))
    assert set(texts.texts) == {"NA", "null", "None", "nan"}


def test_what_was_decided_is_noted(write: Write) -> None:
    rows = [*ROWS, ("", ""), ("", "good"), ("  ", "bad"), GOOD[0], (BAD[0][0], "good")]
    notes = " ".join(data.load_texts(write("a.csv", as_csv(HEADER + rows))).notes)
    assert "the first row names the columns: text, label" in notes
    assert "column 1 has the texts, 2 the labels" in notes
    assert "empty rows, which were left out: 1 (line 17)" in notes
    assert "rows without a text, which were left out: 2 (line 18, 19)" in notes
    assert "more than once: 2, 1 of them with different labels" in notes
    assert "a fifth of each class was cut off" in notes


def test_columns_are_written_after_a_colon(tmp_path: Path) -> None:
    assert split_columns("a.csv:x,y") == ("a.csv", ("x", "y"))
    assert split_columns("~/a b.jsonl.gz:2,1") == ("~/a b.jsonl.gz", ("2", "1"))
    assert split_columns("a.csv:x") == ("a.csv", ("x", ""))
    assert split_columns(f"{tmp_path}:x,y") == (str(tmp_path), ("x", "y"))
    for plain in ("a.csv", "folder:x,y", "imdb", "imdb:x,y", ":x,y", f"{tmp_path}:x"):
        assert split_columns(plain) == (plain, None)
    odd = tmp_path / "a.csv:x,y"
    odd.write_text("")
    assert split_columns(str(odd)) == (str(odd), None)


texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
).filter(str.strip)


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(texts, st.sampled_from(["yes", "no, not", "7"])), min_size=1
    ),
    form=st.sampled_from(
        [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")]
    ),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_table_is_read_back(
    rows: list[tuple[str, str]],
    form: tuple[str, str],
    quoting: int,
    end: str,
    encoding: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # Python's writer leaves a lone carriage return without quotation marks, and it ends
    # a line then.
    assume(quoting == csv.QUOTE_ALL or not any("\r" in text for text, _ in rows))
    name, separator = form
    if quoting == csv.QUOTE_MINIMAL:
        # Python's writer leaves a carriage return without quotation marks, and then it
        # cannot be told from the end of a row.
        rows = [(text.replace("\r", "r"), label) for text, label in rows]
    content = as_csv(
        [*HEADER, *rows], delimiter=separator, quoting=quoting, lineterminator=end
    )
    path = tmp_path_factory.mktemp("tables") / name
    path.write_bytes(content.encode(encoding))
    found = read_table(path, None)
    assert list(zip(found.texts, found.labels, strict=True)) == rows
