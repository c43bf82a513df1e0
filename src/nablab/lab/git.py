"""The commit of a folder and whether its files differ from it.

Nothing that the folder names is run to find out.

``git status`` and similar commands run programs that a repository's own ``.git/config``
names: a file system monitor, hooks, filters of file contents, transports that fetch
missing objects. A folder that somebody downloaded must not run code because a network
is trained in it. So git is asked for what its index and its objects hold, with all of
these switched off, and the files are looked at here.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS = 5.0
# the most that is read to find out whether touched files hold what they held
MOST_BYTES = 64_000_000
OFF = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.sshCommand=false",
    "protocol.allow=never",
)
LINK, SUBMODULE, SKIP = 0o120000, 0o160000, 0x40000000
ENTRY = re.compile(
    rb"(\d{6}) ([0-9a-f]+) \d\t([^\0]*)\0\s*"
    rb"ctime: \d+:\d+\s+mtime: (\d+):(\d+)\s+dev: \d+\s+ino: \d+\s+"
    rb"uid: \d+\s+gid: \d+\s+size: (\d+)\s+flags: ([0-9a-f]+)\s*"
)


def git_state(folder: Path) -> str:
    """Return the commit of the folder, with ``+changes`` when tracked files differ.

    The text is empty outside a repository.
    """
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return ""
    name = commit[:12].decode()
    places = _git(
        folder,
        "rev-parse",
        "--show-toplevel",
        "--path-format=absolute",
        "--git-path",
        "index",
    )
    staged = _git(
        folder, "diff-index", "--cached", "--raw", "--ignore-submodules=all", "HEAD"
    )
    top, _, index = (places or b"").rstrip(b"\n").partition(b"\n")
    listed = (
        _git(Path(os.fsdecode(top)), "ls-files", "--stage", "--debug", "-z")
        if top
        else None
    )
    entries = _entries(listed) if listed is not None else None
    if staged is None or entries is None:
        return f"{name} (whether files differ is not known)"
    changed = staged or _changed(
        Path(os.fsdecode(top)), entries, _changed_at(Path(os.fsdecode(index)))
    )
    return f"{name} +changes" if changed else name


@dataclass(frozen=True)
class _Entry:
    """What git's index says of a file.

    It holds its mode, the name of its content, and what it looked like then.
    """

    mode: int
    object_name: str
    path: str
    # seconds and nanoseconds; the latter 0 where git was built without them
    changed: tuple[int, int]
    size: int
    flags: int


def _entries(listed: bytes) -> list[_Entry] | None:
    """Read the output of ``git ls-files --stage --debug -z``.

    Returns:
        Its entries; None if it has another format.
    """
    entries, place = [], 0
    while place < len(listed):
        found = ENTRY.match(listed, place)
        if found is None:
            return None
        mode, name, path, seconds, nanoseconds, size, flags = found.groups()
        changed = int(seconds), int(nanoseconds)
        entries.append(
            _Entry(
                int(mode, 8),
                name.decode(),
                os.fsdecode(path),
                changed,
                int(size),
                int(flags, 16),
            )
        )
        place = found.end()
    return entries


def _changed_at(path: Path) -> int:
    """Return when a file last changed, in nanoseconds; 0 if it cannot be seen."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0


def _changed(top: Path, entries: list[_Entry], indexed: int) -> bool:
    """Tell whether a file holds something other than the index says.

    One that was only touched does not.
    """
    left = MOST_BYTES
    for entry in entries:
        if entry.mode == SUBMODULE or entry.flags & SKIP:
            continue
        file = top / entry.path
        try:
            seen = file.lstat()
            if _as_before(entry, seen, indexed):
                continue
            left -= seen.st_size
            if left < 0 or _object_name(file, seen, entry) != entry.object_name:
                return True
        except OSError:
            return True
    return False


def _as_before(entry: _Entry, seen: os.stat_result, indexed: int) -> bool:
    """Tell whether kind, size and time are as in the index, and the time is older.

    A file that changed after the index was written may hide a change.
    """
    seconds, nanoseconds = entry.changed
    now = divmod(seen.st_mtime_ns, 10**9)
    same_time = now == (seconds, nanoseconds) or (
        nanoseconds == 0 and now[0] == seconds
    )
    is_link = stat.S_ISLNK(seen.st_mode)
    kind = is_link if entry.mode == LINK else stat.S_ISREG(seen.st_mode)
    return (
        kind and same_time and seen.st_size == entry.size and seen.st_mtime_ns < indexed
    )


def _object_name(file: Path, seen: os.stat_result, entry: _Entry) -> str:
    """Return the name that git gives the content that is there now.

    It is empty if the file is of another kind.
    """
    if entry.mode == LINK and stat.S_ISLNK(seen.st_mode):
        content = os.fsencode(file.readlink())
    elif entry.mode != LINK and stat.S_ISREG(seen.st_mode):
        content = file.read_bytes()
    else:
        return ""
    whole = b"blob %d\0%b" % (len(content), content)
    if len(entry.object_name) == 40:
        return hashlib.sha1(whole, usedforsecurity=False).hexdigest()
    return hashlib.sha256(whole).hexdigest()


def _git(folder: Path, *words: str) -> bytes | None:
    """Return what git prints; None if it fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *_settings(), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _settings() -> Iterator[str]:
    for setting in OFF:
        yield from ("-c", setting)


def _environment() -> dict[str, str]:
    """Return the user's environment, with fetching and writing forbidden.

    Variables that point git elsewhere are left out.
    """
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    }
    forbidden = {
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
    }
    return {**clean, **forbidden, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
