"""The files of known data sets.

Found in the user's folder or the cache, or fetched, and always checked.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nablab.data.fetching.download import SourceError
from nablab.data.fetching.progress import Progress, Step, file_size, shown
from nablab.data.fetching.sources import Source, read_plain_or_gzip
from nablab.data.known import EMBEDDED, KNOWN, Edition, File, KnownSet
from nablab.errors import DataError, UsageError, unknown
from nablab.files import atomic

if TYPE_CHECKING:
    import filelock

ORIGIN = "origin.json"


class CacheError(DataError):
    """The cache cannot be written."""


class Refused(SourceError):
    """A source served something else than the data set."""


@dataclass(frozen=True)
class Content:
    """Verified files in memory.

    Attributes:
        files: Their content by name.
        source: Where it came from, human-readable.
        edition: What stands in place of a canonical file; None for nothing.
    """

    files: dict[str, bytearray]
    source: str
    edition: Edition | None = None


def cache_folder() -> Path:
    """Return the folder of fetched data sets.

    It is ``$NABLAB_CACHE/data``, or below the user's cache folder.
    """
    if chosen := os.environ.get("NABLAB_CACHE"):
        return Path(chosen).expanduser() / "data"
    import platformdirs

    return platformdirs.user_cache_path("nablab") / "data"


def read(
    known: KnownSet,
    files: Sequence[File],
    *,
    folder: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Content:
    """Read files of a data set from the user's folder or the cache.

    Fetch the set if it is in neither.

    Args:
        known: The data set.
        files: Which of its files.
        folder: The user's folder [default: ``$NABLAB_DATA``].
        offline: Use what is on this machine only, as with ``NABLAB_OFFLINE=1``.
        progress: Told what happens [default: a bar or lines on standard error].

    Raises:
        DataError: The files are in neither place and no source serves them; a file of
            the user's folder has a wrong checksum; or the cache cannot be written.
    """
    tried: list[tuple[str, str]] = []
    found = (
        _from_own_folder(known, files, folder, tried)
        or _from_cache(known, files)
        or _from_edition(known, files, folder)
    )
    if found:
        return found
    fetch(known.name, offline=offline, progress=progress, tried=tried, needed=files)
    content = _from_cache(known, files)
    if content is None:
        raise DataError(
            f"{cache_folder() / known.name} was changed by another program "
            "while it was read."
        )
    return content


def fetch(
    name: str,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    tried: Sequence[tuple[str, str]] = (),
    needed: Sequence[File] | None = None,
) -> Path:
    """Bring a data set into the cache, unless it is there.

    Of several processes one does the work.

    Args:
        name: A set that can be fetched, such as mnist.
        offline: Make no network requests, as with ``NABLAB_OFFLINE=1``: an error unless
            all files are in the cache.
        progress: Told what happens [default: a bar or lines on standard error].
        tried: Places that were looked at before, with what was wrong, for the error.
        needed: The files without which it is an error [default: all]. All are asked
            for.

    Returns:
        The folder with the set's files.

    Raises:
        UsageError: There is no such set.
        DataError: No source serves the needed files or may be asked, or the cache cannot be
            written.
    """
    if name not in KNOWN:
        raise unknown("data set to fetch", name, KNOWN)
    known, place = KNOWN[name], cache_folder() / name
    attempts = list(tried)
    needed = known.files if needed is None else needed
    if offline or os.environ.get("NABLAB_OFFLINE", "") not in ("", "0"):
        if lacks := _cache_lacks(known, needed):
            raise _nowhere(known, [*attempts, (str(place), lacks)], offline=True)
        return place
    with shown() if progress is None else nullcontext(progress) as say:
        try:
            with _alone(known, say):
                _fetch_missing(known, needed, place, say, attempts)
        except CacheError:
            shutil.rmtree(_work(known), ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(_work(known), ignore_errors=True)
            raise cache_error(error, place) from error
    return place


def state_of(known: KnownSet) -> dict[str, object]:
    """Describe what is on this machine of a data set, by the files' sizes.

    No file is read.

    Returns:
        ``state`` ("yours", "cached", "incomplete" or "absent"), ``bytes`` on the disk,
        ``folder``, and ``source``; where a user's folder has an edition, ``edition``
        says which, and ``samples`` how many it has by split.
    """
    for place in _own_places(known, None):
        if all(_form_of(place, file) for file in known.files):
            return _yours(place, known.files)
    if editions := _editions_here(known):
        replaced = {name for one in editions for name in known.splits[one.split]}
        files = [file for file in known.files if file.name not in replaced]
        files += [edition.file for edition in editions]
        for place in _own_places(known, None):
            if all(_form_of(place, file) for file in files):
                return {
                    **_yours(place, files),
                    "samples": {one.split: one.samples for one in editions},
                    "edition": "; ".join(one.note for one in editions),
                }
    place = cache_folder() / known.name
    whole = [file for file in known.files if _size(place / file.name) == file.size]
    state = (
        "cached"
        if len(whole) == len(known.files)
        else "incomplete"
        if whole
        else "absent"
    )
    return {
        "state": state,
        "bytes": sum(file.size for file in whole),
        "folder": str(place),
        "source": _origin(place) if whole else "",
    }


def _editions_here(known: KnownSet) -> list[Edition]:
    found = (edition_of(known, split) for split in known.splits)
    return [edition for edition in found if edition is not None]


def _yours(place: Path, files: Sequence[File]) -> dict[str, object]:
    """Describe files of the user's folder."""
    patterns = [f"{file.name}*" for file in files]
    patterns += [form.path for file in files for form in file.packagings]
    present = {path for pattern in patterns for path in place.glob(pattern)}
    size = sum(path.stat().st_size for path in present if path.is_file())
    return {
        "state": "yours",
        "bytes": size,
        "folder": str(place),
        "source": str(place),
    }


def cache_error(error: OSError, path: Path) -> CacheError:
    """Say what an operating system's error means for the cache and what to do about it."""
    remedy = "choose another folder with NABLAB_CACHE"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheError(
            f"No space left on the disk that holds the cache ({cache_folder()}). "
            f"Nothing half-written was left behind. Free some space, or {remedy}, and "
            "give the same command again."
        )
    return CacheError(
        f"The cache cannot be written: {error.strerror or error} ({path}): {remedy}."
    )


def _from_own_folder(
    known: KnownSet,
    files: Sequence[File],
    folder: Path | None,
    tried: list[tuple[str, str]],
) -> Content | None:
    """Read the files in the user's folder.

    A file that is there with a wrong checksum is refused.
    """
    for place in _own_places(known, folder):
        contents: dict[str, bytearray] = {}
        for file in files:
            path = _form_of(place, file)
            if path is None:
                continue
            content = _canonical(path, file)
            if wrong := _mistake(file, content):
                raise DataError(
                    f"{path} is not {known.name}'s: {wrong}. Replace the "
                    "file or remove it; without it, the cache and the public sources "
                    "are used."
                )
            contents[file.name] = bytearray(content)
        if len(contents) == len(files):
            return Content(contents, str(place))
        lacks = ", ".join(file.name for file in files if file.name not in contents)
        tried.append(
            (str(place), f"has no {lacks}" if place.exists() else "is not there")
        )
    return None


def _form_of(place: Path, file: File) -> Path | None:
    """Find a canonical file in a folder, in whichever form it is there.

    Nothing is read.
    """
    forms = [place / form.path for form in file.packagings]
    for path in (place / file.name, place / f"{file.name}.gz", *forms):
        if path.is_file() or (path in forms and path.is_dir()):
            return path
    return None


def _canonical(path: Path, file: File) -> bytes:
    """Read the canonical content of a file that is there in some form.

    Raises:
        DataError: It is damaged, or cannot be read.
    """
    packagings = {Path(form.path).name: form for form in file.packagings}
    try:
        if path.name in packagings:
            return packagings[path.name].unpack(path)
        return read_plain_or_gzip(path.with_name(file.name), file.size) or b""
    except SourceError as error:
        raise DataError(f"{error}. Replace the file or remove it.") from error
    except OSError as error:
        raise DataError(
            f"{error.filename or path} cannot be read: {error.strerror}. Make it "
            "readable, or remove it."
        ) from error


def edition_of(
    known: KnownSet, split: str, folder: Path | None = None
) -> Edition | None:
    """Return what a user's folder has in place of a split's canonical file.

    None where there is no such file, or the canonical one is on this machine. Nothing
    is read.
    """
    files = known.files_of(split)
    cached = cache_folder() / known.name
    places = _own_places(known, folder)
    if all(_size(cached / file.name) == file.size for file in files) or any(
        all(_form_of(place, file) for file in files) for place in places
    ):
        return None
    for edition in known.editions:
        if edition.split == split and any(
            _form_of(place, edition.file) for place in places
        ):
            return edition
    return None


def _from_edition(
    known: KnownSet, files: Sequence[File], folder: Path | None
) -> Content | None:
    """Read what the user's folder has in place of the files.

    `edition_of` decides, as it does for a run's identity.
    """
    for split in known.splits:
        edition = edition_of(known, split, folder)
        if edition and known.files_of(split) == tuple(files):
            found = _from_own_folder(known, [edition.file], folder, [])
            if found:
                return Content(found.files, found.source, edition)
    return None


def _own_places(known: KnownSet, folder: Path | None) -> list[Path]:
    """List the folders where a user may have put the files.

    A folder that is named for this set may hold them directly; below ``NABLAB_DATA``,
    which serves all sets, only a folder of the set's own counts: MNIST and
    Fashion-MNIST have the same file names.
    """
    base = folder or (
        Path(os.environ["NABLAB_DATA"]) if os.environ.get("NABLAB_DATA") else None
    )
    if base is None:
        return []
    base = base.expanduser()
    if folder and not base.is_dir():
        raise UsageError(
            f"There is no folder {base}: folder= names one with the files "
            f"of {known.name}."
        )
    places = [base / name for name in (known.name, *known.folders)]
    inside = [place for place in places if place.is_dir()]
    return inside or ([base] if folder else [places[0]])


def _from_cache(known: KnownSet, files: Sequence[File]) -> Content | None:
    """Read the files in the cache if all are there and right."""
    place = cache_folder() / known.name
    contents: dict[str, bytearray] = {}
    for file in files:
        content = _read_exactly(place / file.name, file.size)
        if content is None or _mistake(file, content):
            return None
        contents[file.name] = content
    return Content(contents, _origin(place))


def _read_exactly(path: Path, size: int) -> bytearray | None:
    """Read a file into memory that tensors may own and write.

    None if the size differs.
    """
    if _size(path) != size:
        return None
    content = bytearray(size)
    with path.open("rb") as file:
        return content if file.readinto(content) == size else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _mistake(file: File, content: bytes | bytearray) -> str:
    """Tell what is wrong with a file's content; empty if nothing is."""
    if len(content) != file.size:
        if len(content) > file.size:  # of which one byte too many was read, and no more
            return f"it is too long (more than {file.size:,} bytes)"
        return f"it is truncated ({len(content):,} bytes in place of {file.size:,})"
    digest = hashlib.sha256(content).hexdigest()
    if digest == file.sha256:
        return ""
    others = [k.name for k in KNOWN.values() for f in k.files if f.sha256 == digest]
    whose = f"; this is {others[0]}'s" if others else ""
    return (
        f"its checksum is wrong (SHA-256 {digest[:16]}... in place of "
        f"{file.sha256[:16]}...{whose})"
    )


def _fetch_missing(
    known: KnownSet,
    needed: Sequence[File],
    place: Path,
    progress: Progress,
    tried: list[tuple[str, str]],
) -> None:
    """Fetch every file that is not in the cache or not right, from source after source.

    Some sources have a part of the files. It is an error if a needed one is lacking in
    the end.
    """
    if place.is_dir():
        atomic.remove_leftovers(place)
    missing = {
        file.name: file
        for file in known.files
        if not _is_right(place / file.name, file, progress)
    }
    if not missing:
        return
    progress(
        Step(
            f"{known.name} ({known.title}, {file_size(known.nbytes)}) is fetched "
            f"into {place}"
        )
    )
    for source in known.sources:
        sizes = {name: file.size for name, file in missing.items()}
        try:
            for name, content in source.fetch(sizes, _work(known), progress):
                _keep(place, missing[name], content, source)
                del missing[name]
            if missing:
                raise SourceError(f"has no {', '.join(missing)}")
        except SourceError as error:
            # what was downloaded must not be taken for good next time
            if isinstance(error, Refused):
                shutil.rmtree(_work(known), ignore_errors=True)
            tried.append((source.label, str(error)))
            progress(Step(f"{source.label}: {error}"))
        if not missing:
            shutil.rmtree(_work(known), ignore_errors=True)
            progress(Step(f"{known.name} is in {place}, verified; from {source.label}"))
            return
    if any(file.name in missing for file in needed):
        raise _nowhere(known, tried, lacking=tuple(missing))
    progress(Step(f"{known.name} is in {place} without {', '.join(missing)}"))


def _keep(place: Path, file: File, content: bytes, source: Source) -> None:
    """Put a file into the cache if it is right."""
    if wrong := _mistake(file, content):
        raise Refused(f"{file.name} is refused: {wrong}")
    atomic.write_bytes(place / file.name, content, explain=cache_error)
    origins = _origins(place) | {file.name: source.label}
    atomic.write_bytes(
        place / ORIGIN, json.dumps(origins, indent=1).encode(), explain=cache_error
    )


def _is_right(path: Path, file: File, progress: Progress) -> bool:
    if not path.is_file():
        return False
    wrong = _mistake(file, read_plain_or_gzip(path, file.size) or b"")
    if wrong:
        progress(Step(f"{path} was changed: {wrong}. It is fetched again."))
    return not wrong


def _cache_lacks(known: KnownSet, needed: Sequence[File]) -> str:
    """Tell what is wrong with the cache, for the list of what was tried."""
    place = cache_folder() / known.name
    absent = [file.name for file in needed if not (place / file.name).is_file()]
    reasons = [f"has no {', '.join(absent)}"] if absent else []
    for file in needed:
        content = (
            None
            if file.name in absent
            else read_plain_or_gzip(place / file.name, file.size)
        )
        if content is not None and (wrong := _mistake(file, content)):
            reasons.append(f"{file.name} was changed: {wrong}")
    return "; ".join(reasons)


def _origins(place: Path) -> dict[str, str]:
    try:
        content = json.loads((place / ORIGIN).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _origin(place: Path) -> str:
    """Name who served the files of the cache."""
    return ", ".join(dict.fromkeys(_origins(place).values())) or "the cache"


def _work(known: KnownSet) -> Path:
    return cache_folder() / f"{known.name}.unfinished"


@contextmanager
def _alone(known: KnownSet, progress: Progress) -> Iterator[None]:
    """Hold the lock of a data set; say so if another process has it."""
    import filelock

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    lock: filelock.BaseFileLock = filelock.FileLock(folder / f"{known.name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        progress(Step(f"Another process is fetching {known.name}; waiting for it."))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _nowhere(
    known: KnownSet,
    tried: Sequence[tuple[str, str]],
    *,
    lacking: Sequence[str] = (),
    offline: bool = False,
) -> DataError:
    """Build the error for a data set that nobody serves.

    It says what was tried, where to put the files, and what else there is.
    """
    what = (
        "is not on this machine, and offline no source is asked"
        if offline
        else "cannot be fetched"
    )
    listed = "\n".join(f"  {label}: {reason}" for label, reason in tried)
    wanted = [file for file in known.files if not lacking or file.name in lacking]
    names = ", ".join(
        " or ".join((file.name, *(form.path for form in file.packagings)))
        for file in wanted
    )
    splits = [
        split
        for split, files in known.splits.items()
        if lacking and not set(files) & set(lacking)
    ]
    part = f"Its {splits[0]} split is in the cache.\n" if splits else ""
    whose = "the rest" if len(wanted) < len(known.files) else "its files"
    here = " or ".join(
        f"'{one.name}', {one.title}"
        for one in EMBEDDED.values()
        if one.kind == known.kind
    )
    instead = f" Without any download there is {here}." if here else ""
    return DataError(
        f"The data set {known.name} {what}. Tried:\n"
        f"{listed}\n{part}"
        f"If you have {whose} ({names}; as they are or as .gz), put them into a "
        f"folder FOLDER/{known.name} and set NABLAB_DATA=FOLDER.{instead}"
    )
