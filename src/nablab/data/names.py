"""What a name or path of labeled images or texts means; nothing is read."""

from __future__ import annotations

import re
from pathlib import Path

from nablab.data.known import EMBEDDED, KNOWN, EmbeddedSet, KnownSet, names_of
from nablab.data.known.known_images import EmbeddedImages, KnownImages
from nablab.data.user.columns import TABLES, split_columns
from nablab.errors import UsageError, unknown
from nablab.files.places import in_text

VECTOR_FILES = (".txt", ".vec", ".txt.gz", ".vec.gz", ".npz")
"""How the names of files of word vectors end."""


def known_set(name: str) -> KnownSet | EmbeddedSet | None:
    """Return the known or embedded set of this name; None if there is none."""
    return KNOWN.get(name) or EMBEDDED.get(name)


def image_set_names() -> list[str]:
    """List the names that `load` knows.

    >>> image_set_names()
    ['cifar10', 'fashion-mnist', 'mnist', 'digits']
    """
    return names_of("images")


def text_set_names() -> list[str]:
    """List the names that `load_texts` knows.

    >>> text_set_names()
    ['ag-news', 'imdb', 'king-james']
    """
    return names_of("texts")


def train_samples(spec: str) -> int | None:
    """Count the training samples of a set known by name; None for others.

    Where a user's folder has an edition of it, its samples are counted.

    >>> train_samples("mnist"), train_samples("digits"), train_samples("./mine")
    (60000, 1297, None)
    """
    found = known_set(spec)
    if isinstance(found, KnownSet):
        from nablab.data.cache import edition_of

        if edition := edition_of(found, "train"):
            return edition.samples
    return found.samples["train"] if found else None


def stored_channels(spec: str) -> int | None:
    """Tell how many channels the images of a set known by name have; None for others.

    >>> stored_channels("digits"), stored_channels("cifar10"), stored_channels("./mine")
    (1, 3, None)
    """
    found = known_set(spec)
    return found.shape[0] if isinstance(found, KnownImages | EmbeddedImages) else None


def is_image_set(spec: str) -> bool:
    """Tell whether `load` knows this name or finds a folder or ``.npz`` file there.

    Nothing is read.

    >>> is_image_set("digits"), is_image_set("didgits")
    (True, False)
    """
    return spec in image_set_names() or (
        is_path(spec) and Path(spec).expanduser().exists()
    )


def check_image_set(spec: str) -> None:
    """Raise `UsageError` unless `load` knows this name or path; nothing is read.

    The error says what is wrong.

    >>> check_image_set("minst")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    nablab.errors.UsageError: There is no data set 'minst'. Did you mean 'mnist'? ...
    """
    if spec in image_set_names():
        return
    _check_kind(spec, "images")
    if holds_no_images(spec):
        raise UsageError(
            f"{spec} is a table of texts, and images are asked for. Give a folder with "
            "one subfolder of images per class, a file.npz with arrays images and "
            f"labels, or a name: {', '.join(image_set_names())}."
        )
    if not is_path(spec):
        remedy = "Your own data: a folder of images (./folder) or a file.npz."
        raise unknown("data set", spec, image_set_names(), remedy=remedy)
    _check_writable(spec)
    if not Path(spec).expanduser().exists():
        raise UsageError(
            f"There is nothing at {spec}. Give a folder with one subfolder of images "
            "per class, a file.npz with arrays images and labels, or a name: "
            f"{', '.join(image_set_names())}."
        )


def holds_no_images(spec: str) -> bool:
    """Tell whether this names samples of another kind, or a table; nothing is read.

    >>> [holds_no_images(name) for name in ("imdb", "mnist", "mine.csv:text,label", "x")]
    [True, False, True, False]
    """
    found = known_set(spec)
    if found is not None:
        return found.kind != "images"
    return split_columns(spec)[0].endswith(TABLES)


def is_text_set(spec: str) -> bool:
    """Tell whether `load_texts` knows this name or finds a table or folder there.

    Nothing is read.

    >>> is_text_set("king-james"), is_text_set("king-jams")
    (True, False)
    """
    if spec in text_set_names():
        return True
    path = Path(split_columns(spec)[0]).expanduser()
    return is_text_path(spec) and path.exists()


def check_text_set(spec: str) -> None:
    """Raise `UsageError` unless `load_texts` knows this name or path; nothing is read.

    The error says what is wrong.

    >>> check_text_set("imbd")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    nablab.errors.UsageError: There is no text set 'imbd'. Did you mean 'imdb'? ...
    """
    if spec in text_set_names():
        return
    if not is_text_path(spec):
        _check_kind(spec, "texts")
        remedy = (
            "Your own texts: a table (./file.csv, .tsv or .jsonl) or a folder of .txt "
            "files (./folder)."
        )
        raise unknown("text set", spec, text_set_names(), remedy=remedy)
    _check_writable(spec)
    path, _ = split_columns(spec)
    if not Path(path).expanduser().exists():
        raise UsageError(
            f"There is nothing at {path}. Give a table with a column of texts and one "
            "of labels (.csv, .tsv or .jsonl), a folder with one subfolder of .txt files "
            f"per class, or a name: {', '.join(text_set_names())}."
        )


def vector_set_names() -> list[str]:
    """List the names that `load_vectors` knows.

    >>> vector_set_names()
    ['glove']
    """
    return names_of("word vectors")


def weight_set_names() -> list[str]:
    """List the names that `load_pretrained` knows.

    >>> weight_set_names()
    ['efficientnet-lite0']
    """
    return names_of("network weights")


def vector_parts(spec: str) -> tuple[str, int | None]:
    """Split a text into the name and the number after the last ``@``, if there is one.

    What is on the disk as it is written is a name as a whole.

    >>> vector_parts("glove@50000"), vector_parts("./mine.vec")
    (('glove', 50000), ('./mine.vec', None))
    """
    found = re.fullmatch(r"(.+)@(\d[\d_]{0,9})", spec)
    if not found or Path(spec).expanduser().exists():
        return spec, None
    return found[1], int(found[2])


def check_vectors(spec: str) -> None:
    """Raise `UsageError` unless `load_vectors` knows this name or path.

    Nothing is read; the error says what is wrong.

    >>> check_vectors("gluve")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    nablab.errors.UsageError: There is no set of word vectors 'gluve'. Did you mean ...
    """
    name, most = vector_parts(spec)
    if most == 0:
        raise UsageError(
            f"'{spec}' asks for no words: write a number from 1, or {name} for all."
        )
    if name in vector_set_names():
        return
    place = Path(name).expanduser()
    if "/" not in name and not name.endswith(VECTOR_FILES) and not place.exists():
        _check_kind(name, "word vectors")
        raise unknown(
            "set of word vectors",
            name,
            vector_set_names(),
            remedy=f"Your own: a file ({', '.join(VECTOR_FILES)}), such as ./mine.vec.",
        )
    _check_writable(name)
    if not place.exists():
        raise UsageError(
            f"There is nothing at {name}. Give a text file with a word and its vector a "
            "line (.txt, .vec, or so with .gz), an .npz file with words and vectors, or "
            f"a name: {', '.join(vector_set_names())}."
        )


def is_text_path(spec: str) -> bool:
    """Tell whether a text set means a place on the disk.

    It has a slash, ends as a table does, or is there and no name.
    """
    if spec in text_set_names():
        return False
    path, _ = split_columns(spec)
    return "/" in path or path.endswith(TABLES) or Path(path).expanduser().exists()


def is_own(spec: str) -> bool:
    """Tell whether images or texts are a user's own, whichever they are."""
    return known_set(spec) is None and (is_path(spec) or is_text_path(spec))


def is_path(spec: str) -> bool:
    """Tell whether this means a place on the disk.

    It has a slash, ends in .npz, or is there and no name.

    A name that nablab knows is never a path; ``./mnist`` is one.
    """
    if spec in image_set_names():
        return False
    return "/" in spec or spec.endswith(".npz") or Path(spec).expanduser().exists()


def _check_kind(name: str, kind: str) -> None:
    """Refuse a name that stands for samples of another kind."""
    found = known_set(name)
    if found is not None and found.kind != kind:
        raise UsageError(
            f"{name} is a set of {found.kind}, and {kind} are asked for. Choices: "
            f"{', '.join(names_of(kind))}, or your own."
        )


def _check_writable(spec: str) -> None:
    if in_text(spec) != spec:
        raise UsageError(
            f"The path {in_text(spec)} is not UTF-8, so no record can name it. Rename "
            "it, or make a link of another name to it."
        )
