"""Imports of the user's code that are never stale.

Python keeps what it imported by name. What is kept here besides is the content that each
module was imported from, so that an edited file is imported again.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nablab.errors import UsageError
from nablab.importing.modules import is_installed
from nablab.importing.user_code import Code, Part, code_of

_STARTED = time.time()
# by module name, the digest of its part when it was imported for the user
_loaded: dict[str, str] = {}
# by the name of an experiment's module, `Code.sha256` when it was run
_programs: dict[str, str] = {}
_watchers: list[dict[str, None]] = []  # what `watching` collects


@contextmanager
def importing(folder: Path) -> Iterator[None]:
    """Put a folder first among those that Python searches, as ``python file.py`` does.

    No compiled files are written meanwhile: Python takes one for good if the source has
    the same size and the same second of change, and so misses the second edit within a
    second.
    """
    wrote = sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote
        sys.path.remove(str(folder))


def forget_stale(code: Code) -> None:
    """Let Python import the code again where the files have changed.

    Python keeps what it imported by name. It would go on with an earlier version of an
    edited file, or take ``parts.py`` of one folder for that of another.
    """
    mine = {
        part.module: part
        for part in code.parts
        if _is_mine(sys.modules.get(part.module))
    }
    if not any(_is_stale(name, part) for name, part in mine.items()):
        return
    for name in mine:
        del sys.modules[name]
        _loaded.pop(name, None)
        package = name.rpartition(".")[0]
        # A package without a file of its own keeps its modules as attributes, and would
        # hand them out.
        while package and getattr(sys.modules.get(package), "__file__", None) is None:
            sys.modules.pop(package, None)
            package = package.rpartition(".")[0]


def is_loaded(name: str, code: Code) -> bool:
    """Tell whether the module of this name is imported, from exactly this code."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return file == str(code.parts[0].path) and _programs.get(name) == code.sha256


def remember(code: Code, program: str = "") -> None:
    """Keep of which content the code's modules are that are now imported.

    Tell whoever is `watching`.

    Args:
        code: What was imported.
        program: The module made from the first file, where `is_loaded` will be asked
            for it.
    """
    if program:
        _programs[program] = code.sha256
    for watcher in _watchers:
        watcher.update(dict.fromkeys(code.unseen))
    for part in code.parts:
        if part.module and part.module in sys.modules:
            _loaded[part.module] = part.sha256


@contextmanager
def watching() -> Iterator[dict[str, None]]:
    """Collect `Code.unseen` of all code that is loaded meanwhile.

    It is collected as the keys of what is yielded.
    """
    seen: dict[str, None] = {}
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers[:] = [watcher for watcher in _watchers if watcher is not seen]


def code_of_class(cls: type) -> Code | None:
    """Read the code that a class's file leads to.

    It is None for nablab's own classes, and where there is no file.

    Raises:
        UsageError: The file has been edited since the class was made from it.
    """
    name = cls.__module__
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None or is_installed(Path(file)):
        return None
    code = code_of(Path(file), folder=Path(file).parent, module=name)
    # a later scan may have made the class again
    current = getattr(module, cls.__name__, cls) is cls
    if name in _programs and not (current and _programs[name] == code.sha256):
        raise UsageError(
            f"{file}, or what it imports, was edited after {cls.__name__} was loaded "
            "from it. Give the command again; in Python, make the plan again."
        )
    return code


def _is_mine(module: object) -> bool:
    """Tell whether an imported module is the user's."""
    file = getattr(module, "__file__", None)
    return file is not None and not is_installed(Path(file))


def _is_stale(name: str, part: Part) -> bool:
    file = Path(sys.modules[name].__file__ or "")
    if not file.exists() or not file.samefile(part.path):
        return True
    if name in _loaded:
        return _loaded[name] != part.sha256
    # Somebody else imported it: at a time that is not known, but not before this
    # process was there.
    return part.path.stat().st_mtime > _STARTED
