"""Labeled images and texts by name or path: `load` and `load_texts`."""

from __future__ import annotations

from pathlib import Path

import torch

from nablab.data import cache
from nablab.data.fetching.progress import Progress
from nablab.data.images.forms import check_form, in_form
from nablab.data.images.image_set import ImageSet
from nablab.data.known import EMBEDDED, KNOWN, SPLITS
from nablab.data.known.known_images import EmbeddedImages, KnownImages
from nablab.data.known.known_texts import EmbeddedTexts, KnownTexts
from nablab.data.names import check_image_set, check_text_set, is_path, is_text_path
from nablab.data.text.text_set import TextSet
from nablab.errors import unknown


def load(
    name: str,
    *,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    folder: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> ImageSet:
    """Load one split of a data set of labeled images into memory.

    A known set that is not on this machine is fetched, verified and cached.

    Args:
        name: A name that `image_set_names` lists, or a path of your own data: a folder
            with a subfolder of images per class (below ``train`` and ``test``, if it
            has them), or a ``.npz`` file.
        split: ``"train"`` or ``"test"``.
        size: Height and width in pixels; images of another size are resized bilinearly
            (with antialiasing when they shrink).
        channels: 1 or 3; color becomes gray by the weights of ITU-R BT.601, gray
            becomes three equal channels.
        folder: Where you have the files of a known set [default: ``$NABLAB_DATA``].
        offline: Ask no server and no registry, as with ``NABLAB_OFFLINE=1``.
        progress: Told what a fetch does [default: a bar or lines on standard error].

    Raises:
        UsageError: There is no such set or path, or it does not have the form it
            should.
        DataError: A known set is unavailable, or files are damaged.

    >>> digits = load("digits", size=28)
    >>> digits.images.shape, digits.images.dtype, digits.classes[:3]
    (torch.Size([1297, 1, 28, 28]), torch.uint8, ('0', '1', '2'))
    """
    check_image_set(name)
    check_form(split, size, channels)
    if is_path(name):
        from nablab.data.user.load import load_own

        return load_own(
            Path(name).expanduser(), split=split, size=size, channels=channels
        )
    place = Path(folder) if folder else None

    def as_it_is(which: str) -> ImageSet:
        one = EMBEDDED.get(name) or KNOWN[name]
        if isinstance(one, EmbeddedImages):
            return one.load(which)
        assert isinstance(one, KnownImages)  # its kind was checked
        return _known(one, which, folder=place, offline=offline, progress=progress)

    return in_form(
        as_it_is(split), size, channels, training=lambda: as_it_is("train"), key=name
    )


def load_texts(
    name: str,
    *,
    split: str = "train",
    folder: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> TextSet:
    """Load one split of a data set of labeled texts into memory.

    A known set that is not on this machine is fetched, verified and cached.

    Args:
        name: A name that `text_set_names` lists, or a path of your own texts: a table
            (``.csv``, ``.tsv`` or ``.jsonl``; ``reviews.csv:review,stars`` names the
            columns of texts and labels), or a folder with a subfolder of ``.txt`` files
            per class (below ``train`` and ``test``, if it has them).
        split: ``"train"`` or ``"test"``.
        folder: Where you have the files of a known set [default: ``$NABLAB_DATA``].
        offline: Ask no server and no registry, as with ``NABLAB_OFFLINE=1``.
        progress: Told what a fetch does [default: a bar or lines on standard error].

    Raises:
        UsageError: There is no such set or path, or it does not have the form it
            should.
        DataError: A known set is unavailable, or files are damaged.

    >>> verses = load_texts("king-james")
    >>> len(verses), verses.classes
    (8000, ('history', 'wisdom', 'prophets', 'gospels'))
    """
    check_text_set(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if is_text_path(name):
        from nablab.data.user.texts import load_own_texts

        return load_own_texts(name, split=split)
    one = EMBEDDED.get(name) or KNOWN[name]
    if isinstance(one, EmbeddedTexts):
        return one.load(split)
    assert isinstance(one, KnownTexts)  # its kind was checked
    files = one.files_of(split)
    place = Path(folder) if folder else None
    content = cache.read(one, files, folder=place, offline=offline, progress=progress)
    (file, data), *_ = content.files.items()
    texts, labels = one.decode(file, bytes(data))
    notes = [f"Of {one.name} {content.edition.note}"] if content.edition else []
    notes += [one.notes[file]] if file in one.notes else []
    return TextSet(
        name=one.name,
        split=split,
        texts=tuple(texts),
        labels=torch.tensor(labels),
        classes=one.classes,
        license=one.license,
        citation=one.citation,
        source=content.source,
        notes=tuple(notes),
    )


def _known(
    one: KnownImages,
    split: str,
    *,
    folder: Path | None,
    offline: bool,
    progress: Progress | None,
) -> ImageSet:
    """Load a split of a known set as it is."""
    files = one.files_of(split)
    content = cache.read(one, files, folder=folder, offline=offline, progress=progress)
    images, labels = one.decode([content.files[file.name] for file in files])
    return ImageSet(
        name=one.name,
        split=split,
        images=images,
        labels=labels,
        classes=one.classes,
        mean=one.mean,
        std=one.std,
        license=one.license,
        citation=one.citation,
        source=content.source,
    )
