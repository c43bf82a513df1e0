"""Word vectors: what files may look like, what is refused, and what lies near what."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nablab import data
from nablab.data import known
from nablab.data.known import glove
from nablab.data.known.known_vectors import KnownVectors
from nablab.data.text.vectors import WordVectors
from nablab.errors import DataError, UsageError

# The tests of this folder run without it.
FOLDER = os.environ.get("NABLAB_DATA", "")
ROWS = "the 0.5 -1 2\nof 1e-2 0 3\ncat 4 5 6\n"
EXPECTED = [[0.5, -1, 2], [0.01, 0, 3], [4, 5, 6]]


def written(folder: Path, content: str | bytes, name: str = "own.txt") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def compass() -> WordVectors:
    vectors = torch.tensor([[0.0, 2], [1, 0], [0, -3], [-1, 0], [1, 1], [0, 0]])
    words = ("north", "east", "south", "west", "northeast", "nowhere")
    return WordVectors(name="compass", words=words, vectors=vectors)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (ROWS, "glove.txt"),
        (f"3 3\n{ROWS}", "word2vec.vec"),
        (ROWS.replace("\n", " \n"), "fasttext.vec"),  # fastText ends lines with a space
        (ROWS.replace(" ", "\t"), "tabs.txt"),
        (ROWS.replace("\n", "\r\n"), "windows.txt"),
        (f"\ufeff{ROWS.rstrip()}", "mark.txt"),
        (gzip.compress(ROWS.encode(), mtime=0), "packed.vec.gz"),
    ],
)
def test_forms_of_text_files(tmp_path: Path, content: str | bytes, name: str) -> None:
    found = data.load_vectors(written(tmp_path, content, name))
    assert found.words == ("the", "of", "cat")
    torch.testing.assert_close(found.vectors, torch.tensor(EXPECTED))
    assert data.load_vectors(f"{tmp_path / name}@2").words == ("the", "of")


def test_words_may_hold_odd_characters(tmp_path: Path) -> None:
    # U+0085 and U+2028 end lines of Python's texts, and GloVe has words with spaces.
    words = ["caf\u00e9", "a\u0085b", "x\u2028y", "at name@domain.com", ". ."]
    text = "".join(f"{word} 1 {place}\n" for place, word in enumerate(words))
    found = data.load_vectors(written(tmp_path, "first 7 8\n" + text))
    assert found.words == ("first", *words)
    assert found.vectors[:, 1].tolist() == [8, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "words",
    [np.array(["the", "of", "cat"]), np.array("the\nof\ncat")],
    ids=["array", "one text"],
)
def test_arrays(tmp_path: Path, words: np.ndarray) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, words=words, vectors=np.array(EXPECTED, np.float16))
    found = data.load_vectors(str(path))
    assert found.words == ("the", "of", "cat")
    assert found.vectors.dtype == torch.float32
    torch.testing.assert_close(found.vectors, torch.tensor(EXPECTED).half().float())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the 1 2 3\nof 1 2\n", r"line 2: 2 numbers in place of 3\. Is the file whole"),
        ("the 1 2 3\nof 1 2 3 4\n", "line 2: 4 numbers in place of 3"),
        ("2 4\nthe 1 2 3\nof 1 2 3\n", "says in line 1 that vectors have 4 dimensions"),
        (
            "9 3\nthe 1 2 3\nof 1 2 3\n",
            "says in line 1 that it has 9 words, and it has 2",
        ),
        ("2 3\n", "a line of counts, and no word after it"),
        ("the 1 2\nof 1 two\n", "line 2: 'two' is not a number"),
        ("the 1 2\nof 1 1_000\n", "line 2: '1_000' is not a number"),
        ("the one 2\n", "line 1: 'one' is not a number"),
        ("the\n", "line 1: only 'the'"),
        (
            "the 1 2\nof nan 2\n",
            r"the vector of 'of' \(word 2\) has values that are not",
        ),
        ("the 1 2\nof inf 2\n", "not finite"),
        ("the 1 2\nof 1 2\nthe 3 4\n", "words more than once: 'the'"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        (b"the 1 2\ncaf\xe9 1 2\n", "not UTF-8: byte 0xe9 in line 2.*iconv"),
        ("the 1 " * 200_000, "line 1: longer than 1,000,000 bytes"),
    ],
)
def test_bad_files_are_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        data.load_vectors(written(tmp_path, content))


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    packed = gzip.compress(ROWS.encode() * 100)[:-20]
    with pytest.raises(UsageError, match=r"is damaged .*Pack it again"):
        data.load_vectors(written(tmp_path, packed, "cut.txt.gz"))
    with pytest.raises(UsageError, match="There is nothing at"):
        data.load_vectors(str(tmp_path / "none.vec"))
    with pytest.raises(UsageError, match="is a folder"):
        data.load_vectors(str(tmp_path))
    with pytest.raises(UsageError, match="Did you mean 'glove'"):
        data.load_vectors("gluve")
    with pytest.raises(
        UsageError, match="imdb is a set of texts, and word vectors are"
    ):
        data.load_vectors("imdb")
    with pytest.raises(UsageError, match="asks for no words"):
        data.load_vectors("glove@0")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"words": np.array(["a"])}, "has the arrays words; word vectors are"),
        ({"words": np.array([1]), "vectors": np.ones((1, 2))}, "words holds int64"),
        ({"words": np.array(["a"]), "vectors": np.ones(2)}, r"vectors holds .*\(2,\)"),
        ({"words": np.array(["a"]), "vectors": np.ones((2, 2))}, "1 words and vectors"),
        (
            {"words": np.array(["a"], object), "vectors": np.ones((1, 2))},
            "Python objects, which is not read",
        ),
    ],
)
def test_bad_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        data.load_vectors(str(path))


def test_neighbors() -> None:
    table = compass()
    assert table.neighbors("north", 2)[0] == ("northeast", pytest.approx(0.5**0.5))
    nearest = [word for word, _ in table.neighbors(torch.tensor([3.0, 1.0]), 2)]
    assert nearest == ["east", "northeast"]
    without = table.neighbors("North", 10, without=("northeast", "unheard"))
    words = [word for word, _ in without]
    assert set(words[:3]) == {"east", "west", "nowhere"}  # all at right angles
    assert words[3:] == ["south"]
    assert all(cosine == cosine for _, cosine in without)  # a zero vector gives no NaN
    with pytest.raises(UsageError, match="no vector of the word 'up'"):
        table.neighbors("up")


def test_all_directions_only_turn_the_table() -> None:
    table = WordVectors(
        name="t",
        words=tuple(map(str, range(30))),
        vectors=torch.randn(30, 4, generator=torch.Generator().manual_seed(0)),
    )
    turned = table.reduced(4)
    torch.testing.assert_close(turned.unit @ turned.unit.T, table.unit @ table.unit.T)
    sizes = torch.linalg.svdvals(table.vectors)
    torch.testing.assert_close(table.reduced(2).vectors.norm(dim=0), sizes[:2])
    with pytest.raises(UsageError, match="5 cannot be kept: choose from 1 to 4"):
        table.reduced(5)


def test_vectors_survive_as_tensors() -> None:
    table = compass()
    back = WordVectors.of_tensors("compass", table.tensors())
    assert back.words == table.words
    assert torch.equal(back.vectors, table.vectors)
    with pytest.raises(UsageError, match="weights holds bias, and word vectors are"):
        WordVectors.of_tensors("weights", {"bias": torch.ones(1)})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> KnownVectors:
    """GloVe of three words, and an edition of two."""
    (edition,) = glove.GLOVE.editions
    file, part = glove.GLOVE.files[0], arrays()
    smaller = dataclasses.replace(
        glove.GLOVE,
        files=(described(file, ROWS.encode()),),
        sources=(),
        editions=(dataclasses.replace(edition, file=described(edition.file, part)),),
    )
    monkeypatch.setitem(known.KNOWN, "glove", smaller)
    return smaller


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, words=np.array("the\nof"), vectors=np.ones((2, 3), np.float16))
    return stream.getvalue()


def described(file: known.File, content: bytes) -> known.File:
    digest = hashlib.sha256(content).hexdigest()
    return dataclasses.replace(file, size=len(content), sha256=digest)


def test_glove_comes_from_its_file_the_official_archive_or_an_edition(
    small: KnownVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path))
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "glove"
    place.mkdir()
    with pytest.raises(DataError, match="glove is not on this machine"):
        data.load_vectors("glove", offline=True)
    (place / small.editions[0].file.name).write_bytes(arrays())
    found = data.load_vectors("glove")
    assert found.words == ("the", "of")
    assert "in float16" in found.notes[0]
    assert data.source_hash("glove") == small.editions[0].file.sha256
    with zipfile.ZipFile(place / "glove.6B.zip", "w") as archive:
        archive.writestr(glove.MEMBER, ROWS)
    found = data.load_vectors("glove")
    assert (found.words, found.notes) == (("the", "of", "cat"), ())
    assert data.source_hash("glove") == ""
    (place / "glove.6B.zip").unlink()
    (place / glove.MEMBER).write_text(ROWS)
    assert data.load_vectors("glove@2").words == ("the", "of")
    assert dict(glove.from_zip(place, {"other": 1})) == {}


@pytest.mark.slow
def test_the_real_vectors() -> None:
    if not FOLDER or not (Path(FOLDER) / "glove").is_dir():
        pytest.skip("NABLAB_DATA has no folder glove")
    table = data.load_vectors("glove@50000", folder=FOLDER)
    assert (len(table), table.dimensions) == (50_000, 100)
    # -0.038194 -0.24487 0.72812, as the first line of the official file
    torch.testing.assert_close(
        table.vectors[0, :3],
        torch.tensor([-0.038194, -0.24487, 0.72812]),
        atol=1e-3,
        rtol=0,
    )
    assert {"prince", "queen"} <= {word for word, _ in table.neighbors("king", 3)}
