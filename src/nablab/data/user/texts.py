"""A user's own texts: a table, or a folder of tables or of ``.txt`` files per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from nablab.data.identity import State, files_below, is_fresh, state_of
from nablab.data.text.text_set import TextSet
from nablab.data.user.class_folders import Wanted, list_classes, note_beside
from nablab.data.user.columns import TABLES, is_table, split_columns, stem_of
from nablab.data.user.limits import check_fits
from nablab.data.user.load import CUT_NOTE, cut
from nablab.data.user.tables import WHOLE, Table, read_table
from nablab.data.user.text_files import COPIES, read_text
from nablab.errors import UsageError
from nablab.files.places import in_text

TEXT_FILES = Wanted("texts", (".txt",))

# Texts and labels by split.
Splits = dict[str, tuple[list[str], np.ndarray]]
# What a path holds: class names, splits, and notes.
Content = tuple[tuple[str, ...], Splits, list[str]]


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
    try:
        states = _states(path)
        # A file changed this lately may change again without another time of change.
        read = _read.__wrapped__ if is_fresh(states) else _read
        classes, splits, notes = read(path, columns, states)
    except OSError as error:
        where = in_text(error.filename or path)
        raise UsageError(
            f"{where} cannot be read: {error.strerror}. Make it readable."
        ) from error
    if "test" not in splits:
        splits = _cut(splits["train"], classes, in_text(path))
        notes = [*notes, CUT_NOTE]
    texts, labels = splits[split]
    return TextSet(
        name=in_text(stem_of(path.resolve().name)),
        split=split,
        texts=tuple(texts),
        labels=torch.from_numpy(labels.copy()),
        classes=classes,
        source=in_text(path.resolve()),
        notes=(*notes, *_shared(splits)),
    )


def _states(path: Path) -> tuple[State, ...]:
    """Return what changes with the content of the files, also of those behind links."""
    files = sorted(files_below(path, ())) if path.is_dir() else [path]
    return tuple(state_of(file) for file in files)


def _cut(
    split: tuple[list[str], np.ndarray], classes: Sequence[str], where: str
) -> Splits:
    """Cut a test split off."""
    texts, labels = split
    train, test = cut(labels, classes, where, noun="text")
    return {
        "train": ([texts[place] for place in train], labels[train]),
        "test": ([texts[place] for place in test], labels[test]),
    }


def _shared(splits: Splits) -> list[str]:
    """Note texts that a network is tested on after it was trained on them."""
    both = len(set(splits["train"][0]) & set(splits["test"][0]))
    return [f"Texts that are in both splits: {both:,}"] if both else []


@lru_cache(maxsize=2)
def _read(
    path: Path, columns: tuple[str, str] | None, states: tuple[State, ...]
) -> Content:
    """Read all that is there, once per process and state of the files."""
    if not path.is_dir():
        return _numbered({"train": read_table(path, columns)})
    tables = {split: _table_of(path, split) for split in ("train", "test")}
    _check_form(path, tables["train"], columns)
    if tables["train"] is None:
        return _from_folders(path)
    there = {split: table for split, table in tables.items() if table}
    classes, splits, notes = _numbered(
        {split: read_table(table, columns) for split, table in there.items()}
    )
    beside = note_beside(path, [table.name for table in there.values()])
    return classes, splits, [*notes, *beside]


def _check_form(
    folder: Path, train: Path | None, columns: tuple[str, str] | None
) -> None:
    """Refuse a folder of which it is not clear whether it holds tables or classes."""
    where = in_text(folder)
    if train and (folder / "train").is_dir():
        raise UsageError(
            f"{where} has both a table {train.name} and a folder train. Remove one, or "
            "give the path of one."
        )
    if train:
        return
    there = sorted(path.name for path in folder.iterdir() if is_table(path.name))
    folders = any(path.is_dir() for path in folder.iterdir())
    if there and (columns or not folders):
        raise UsageError(
            f"{where} has no table of training texts, such as train.csv, among its "
            f"tables: {', '.join(map(in_text, there[:3]))}. Give the path of one table, "
            "or name one so."
        )
    if columns:
        raise UsageError(
            f"{where} has no tables, so its columns cannot be named. Leave out "
            f"':{','.join(columns)}'."
        )


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
    whole = all(map(WHOLE.fullmatch, kinds))
    classes = tuple(sorted(kinds, key=int if whole else str))
    if whole and len(set(map(int, kinds))) < len(kinds):
        raise UsageError(_same_number(where, kinds))
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
            raise UsageError(_other_labels(table, strange, classes))
        labels = np.array([number[label] for label in table.labels], np.int64)
        splits[split] = (table.texts, labels)
    notes = [note for table in tables.values() for note in table.notes]
    return classes, splits, [*notes, *_repeated(splits)]


def _same_number(where: str, labels: set[str]) -> str:
    first: dict[int, str] = {}
    for label in sorted(labels):
        if first.setdefault(int(label), label) != label:
            break
    return (
        f"The labels '{first[int(label)]}' and '{label}' of {where} are one number in "
        "two spellings. Write them alike."
    )


def _other_labels(table: Table, strange: Sequence[str], classes: Sequence[str]) -> str:
    """Say what is wrong with labels that the training texts do not have."""
    where = in_text(table.path)
    for kind, other, one in (("words", "numbers", True), ("numbers", "words", False)):
        here = [label for label in strange if bool(WHOLE.fullmatch(label)) != one]
        there = [label for label in classes if bool(WHOLE.fullmatch(label)) != one]
        if len(here) == len(strange) and not there:
            return (
                f"The labels of {where} are {kind}, such as '{strange[0]}', and those "
                f"of the training texts are {other}, such as '{classes[0]}'. Write them "
                "alike."
            )
    listed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return (
        f"{where} has labels that the training texts do not have, such as "
        f"'{strange[0]}'; texts with such labels: {len(strange):,}. The classes: {listed}."
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
    return notes


def _from_folders(folder: Path) -> Content:
    """Read a folder with a subfolder of text files per class."""
    names, listings = list_classes(folder, TEXT_FILES)
    size = sum(path.stat().st_size for one in listings.values() for path in one.paths)
    check_fits(COPIES * size, in_text(folder), "Take fewer texts.")
    splits = {
        split: ([_text(path) for path in listing.paths], listing.labels)
        for split, listing in listings.items()
    }
    notes = [note for listing in listings.values() for note in listing.notes]
    return tuple(map(in_text, names)), splits, [*notes, *_repeated(splits)]


def _text(path: Path) -> str:
    """Read a file that is one text, with line breaks as Python has them."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise UsageError(f"{in_text(path)} is empty. Remove it, or give it a text.")
    return text
