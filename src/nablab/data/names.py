"""What a name or path of labeled images means; nothing is read."""

from __future__ import annotations

from pathlib import Path

from nablab.data.known import EMBEDDED, KNOWN, EmbeddedSet, KnownSet
from nablab.errors import UsageError, unknown
from nablab.files.places import in_text


def known_set(name: str) -> KnownSet | EmbeddedSet | None:
    """Return the known or embedded set of this name; None if there is none."""
    return KNOWN.get(name) or EMBEDDED.get(name)


def image_set_names() -> list[str]:
    """List the names that `load` knows.

    >>> image_set_names()
    ['cifar10', 'fashion-mnist', 'mnist', 'digits']
    """
    return [*KNOWN, *EMBEDDED]


def train_samples(spec: str) -> int | None:
    """Count the training images of a set known by name; None for others.

    >>> train_samples("mnist"), train_samples("digits"), train_samples("./mine")
    (60000, 1297, None)
    """
    found = known_set(spec)
    return found.samples["train"] if found else None


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
    if not is_path(spec):
        remedy = "Your own data: a folder of images (./folder) or a file.npz."
        raise unknown("data set", spec, image_set_names(), remedy=remedy)
    if in_text(spec) != spec:
        raise UsageError(
            f"The path {in_text(spec)} is not UTF-8, so no record can name it. Rename "
            "it, or make a link of another name to it."
        )
    if not Path(spec).expanduser().exists():
        raise UsageError(
            f"There is nothing at {spec}. Give a folder with one subfolder of images "
            "per class, a file.npz with arrays images and labels, or a name: "
            f"{', '.join(image_set_names())}."
        )


def is_path(spec: str) -> bool:
    """Tell whether this means a place on the disk.

    It has a slash, ends in .npz, or is there and no name.

    A name that nablab knows is never a path; ``./mnist`` is one.
    """
    if spec in image_set_names():
        return False
    return "/" in spec or spec.endswith(".npz") or Path(spec).expanduser().exists()
