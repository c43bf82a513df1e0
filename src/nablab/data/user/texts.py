"""A user's own texts: a table, or a folder of tables or of ``.txt`` files per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from nablab.data.identity import State, state_of
from nablab.data.text.text_set import TextSet
from nablab.data.user.class_folders import Wanted, list_classes
from nablab.data.user.columns import TABLES, split_columns
from nablab.data.user.limits import check_fits
from nablab.data.user.load import CUT_NOTE, cut
from nablab.data.user.tables import COPIES, WHOLE, Table, read_table
from nablab.errors import UsageError
from nablab.files.places import in_text

TEXT_FILES = Wanted("texts", (".txt",))

# What a path holds: class names, texts and labels by split, and notes.
Content = tuple[tuple[str, ...], dict[str, tuple[list[str], np.ndarray]], list[str]]


def load_own_texts(spec: str, *, split: str) -> TextSet:
    """Load one split of a table or of a folder of texts.

    Args:
        spec: A table (``.csv``, ``.tsv``, ``.jsonl``, or so with ``.gz``), with its
            columns of texts and labels after a colon where they are not found by name;
            a folder with tables ``train`` and ``test``; or a folder with a subfolder of
            ``.txt`` files per class, below ``train`` and ``test`` if it has them.
        split: ``"train"`` or ``"test"``; where there is no test split, a fifth of each
            class is cut off.

    Raises:
        UsageError: It does not have such a form; the text names the file and line.
    """
    name, columns = split_columns(spec)
    path = Path(name).expanduser()
    classes, splits, notes = _read(path, columns, _states(path))
    texts, labels = splits["train"]
    if "test" in splits:
        texts, labels = splits[split]
    else:
        places = cut(labels, classes, in_text(path), noun="text")
        chosen = places[0] if split == "train" else places[1]
        texts, labels = [texts[place] for place in chosen], labels[chosen]
        notes = [*notes, CUT_NOTE]
    return TextSet(
        name=in_text(path.resolve().name.partition(".")[0] or path.name),
        split=split,
        texts=tuple(texts),
        labels=torch.from_numpy(labels.copy()),
        classes=classes,
        source=in_text(path.resolve()),
        notes=tuple(notes),
    )


def _states(path: Path) -> tuple[State, ...]:
    """Return what changes with the content of the files."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return tuple(state_of(file) for file in files if file.is_file())


@lru_cache(maxsize=2)
def _read(
    path: Path, columns: tuple[str, str] | None, states: tuple[State, ...]
) -> Content:
    """Read all that is there, once per process and state of the files."""
    if path.is_file():
        return _numbered({"train": read_table(path, columns)})
    tables = {split: _table_of(path, split) for split in ("train", "test")}
    if train := tables["train"]:
        found = {"train": read_table(train, columns)}
        if test := tables["test"]:
            found["test"] = read_table(test, columns)
        return _numbered(found)
    return _from_folders(path)


def _table_of(folder: Path, split: str) -> Path | None:
    """Return the table of a split in a folder; None if there is none."""
    found = [folder / f"{split}{ending}" for ending in TABLES]
    there = [path for path in found if path.is_file()]
    if len(there) > 1:
        names = ", ".join(path.name for path in there)
        raise UsageError(
            f"{in_text(folder)} has several tables of one split: {names}. Remove all "
            "but one."
        )
    return there[0] if there else None


def _numbered(tables: dict[str, Table]) -> Content:
    """Give labels numbers: those that are numbers by size, others by the alphabet."""
    train = tables["train"]
    where = in_text(train.path)
    kinds = set(train.labels)
    whole = all(WHOLE.fullmatch(label) for label in kinds)
    classes = tuple(sorted(kinds, key=int if whole else str))
    if len(classes) < 2:
        raise UsageError(
            f"{where} has one class only ('{classes[0]}'): a classifier needs two. Are "
            "these the labels? Columns can be named, such as "
            f"{where}:text,label."
        )
    if len(classes) > max(2, len(train.texts) // 2):
        raise UsageError(
            f"{where} has {len(classes):,} different labels for {len(train.texts):,} "
            f"texts, such as '{train.labels[0][:40]}'. Are these the labels? Columns can "
            f"be named, such as {where}:text,label."
        )
    number = {label: place for place, label in enumerate(classes)}
    splits = {}
    for split, table in tables.items():
        strange = [label for label in table.labels if label not in number]
        if strange:
            raise UsageError(_other_labels(table, strange, classes, whole))
        labels = np.array([number[label] for label in table.labels], np.int64)
        splits[split] = (table.texts, labels)
    notes = [note for table in tables.values() for note in table.notes]
    return classes, splits, [*notes, *_repeated(splits)]


def _other_labels(
    table: Table, strange: Sequence[str], classes: Sequence[str], whole: bool
) -> str:
    where = in_text(table.path)
    if whole and not any(WHOLE.fullmatch(label) for label in strange):
        return (
            f"The labels of {where} are words, such as '{strange[0]}', and those of the "
            f"training texts are numbers, such as {classes[0]}. Write them alike."
        )
    listed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return (
        f"{where} has {len(strange):,} texts of a class that the training texts do not "
        f"have: '{strange[0]}'. The classes: {listed}."
    )


def _repeated(splits: dict[str, tuple[list[str], np.ndarray]]) -> list[str]:
    """Note texts that occur more than once, and those with several labels."""
    labels_of: dict[str, set[int]] = {}
    counts: Counter[str] = Counter()
    for texts, labels in splits.values():
        counts.update(texts)
        for text, label in zip(texts, labels.tolist(), strict=True):
            labels_of.setdefault(text, set()).add(label)
    notes = []
    if repeated := sum(count > 1 for count in counts.values()):
        contrary = sum(len(found) > 1 for found in labels_of.values())
        also = f", {contrary:,} of them with different labels" if contrary else ""
        notes.append(f"Texts that occur more than once: {repeated:,}{also}")
    if "test" in splits and (
        both := len(set(splits["train"][0]) & set(splits["test"][0]))
    ):
        notes.append(f"Texts that are in both splits: {both:,}")
    return notes


def _from_folders(folder: Path) -> Content:
    """Read a folder with a subfolder of text files per class."""
    try:
        names, listings = list_classes(folder, TEXT_FILES)
        size = sum(
            path.stat().st_size for one in listings.values() for path in one.paths
        )
        check_fits(COPIES * size, in_text(folder), "Take fewer texts.")
        splits = {
            split: ([_text(path) for path in listing.paths], listing.labels)
            for split, listing in listings.items()
        }
    except OSError as error:
        where = in_text(error.filename or folder)
        raise UsageError(
            f"{where} cannot be read: {error.strerror}. Make it readable."
        ) from error
    notes = [note for listing in listings.values() for note in listing.notes]
    return tuple(map(in_text, names)), splits, [*notes, *_repeated(splits)]


def _text(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{in_text(path)} is not UTF-8: byte 0x{error.object[error.start]:02x} at "
            f"place {error.start:,}. Convert it, such as with 'iconv -f latin1 -t "
            "utf-8', if that is its encoding."
        ) from error
    if not text.strip():
        raise UsageError(f"{in_text(path)} is empty. Remove it, or give it a text.")
    return text
