"""The user's own Python code.

Of which files it is made, their hash, and imports that are never stale.

A model or an experiment of the user's is seldom one file. What decides its numbers is
the file, what it imports from beside it or from another folder of the user's, and the
data files that it names. All of this is found by reading the source, without running
it: the hash is then the same in every process, whatever was imported before, and
whether an import stands at the top of a file or inside a function.

Python's library, installed packages and nablab are not the user's: their versions are
kept with a run. What cannot be found by reading (a module or file whose name is made
while the code runs, an environment variable) is listed in `Code.unseen`, to be said to
the user. This module imports neither torch nor numpy.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import os
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from nablab.errors import UsageError

NABLAB = Path(__file__).resolve().parent.parent
CHUNK = 1 << 20  # bytes hashed at once
LONGEST_NAME = 255  # no file system takes a longer file name
READERS = {
    "open", "load", "load_file", "read_text", "read_bytes", "read_csv", "imread",
    "fromfile", "loadtxt", "genfromtxt", "urlopen", "urlretrieve",
    "load_state_dict_from_url", "hf_hub_download", "from_pretrained",
}  # fmt: skip
# how their names begin
WRITERS = ("save", "write", "dump", "to_", "touch", "mkdir", "unlink", "remove")
_STARTED = time.time()
# by module name, the digest of its part when it was imported for the user
_loaded: dict[str, str] = {}
# by the name of an experiment's module, `Code.sha256` when it was run
_programs: dict[str, str] = {}
_watchers: list[dict[str, None]] = []  # what `watching` collects


@dataclass(frozen=True)
class Part:
    """One file of the code.

    Attributes:
        path: Where it is.
        sha256: Of its content, and of the data files that it names.
        module: What it is imported as; empty for a file that is run by its path.
    """

    path: Path
    sha256: str
    module: str = ""


@dataclass(frozen=True)
class Code:
    """All of the user's code that one file leads to.

    Attributes:
        parts: The file itself, then what it leads to, by path.
        unseen: What decides the numbers, too, but cannot be found by reading, with file
            and line.
    """

    parts: tuple[Part, ...]
    unseen: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of all parts; where there is one only, of that file's bytes.

        Paths count as seen from the first file, so that a folder may be moved as a
        whole.
        """
        if len(self.parts) == 1:
            return self.parts[0].sha256
        total, top = hashlib.sha256(), self.parts[0].path.parent
        for part in self.parts:
            total.update(
                os.fsencode(os.path.relpath(part.path, top))
                + b"\0"
                + part.sha256.encode()
                + b"\0"
            )
        return total.hexdigest()


def code_of(path: Path, *, folder: Path, module: str = "") -> Code:
    """Read the code that a file leads to.

    Args:
        path: The file.
        folder: Where its imports are looked up first, as Python does with a program's
            folder.
        module: The name under which the file is imported, where it has one: ``from .
            import x`` needs it.
    """
    if is_installed(path):
        return Code((Part(path, _sha256(path)),))
    reader = _Reader(folder)
    reader.read(path, module)
    reader.follow(module)  # the packages around it run first
    first, *others = reader.parts.values()
    # such as a bare __init__.py
    others = [part for part in others if part.path.stat().st_size]
    return Code(
        (first, *sorted(others, key=lambda part: part.path)), tuple(reader.unseen)
    )


def code_of_class(cls: type) -> Code | None:
    """Read the code that a class's file leads to.

    None for nablab's own, and where there is no file.

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


def find_module(name: str, folder: Path) -> Path | None:
    """Find the file of a module, in a folder first and then as Python does.

    Nothing is run.

    Returns:
        The file; None where there is none, as for a module that is built in.

    Raises:
        ModuleNotFoundError: There is no such module.
    """
    search: Sequence[str] | None = None
    found: ModuleSpec | None = None
    full = ""
    for part in name.split("."):
        full = f"{full}.{part}" if full else part
        found = _find(part, folder, search)
        if found is None:
            raise ModuleNotFoundError(f"No module named {full!r}", name=full)
        search = list(found.submodule_search_locations or [])
    return Path(found.origin) if found and found.has_location and found.origin else None


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
    """Tell whether the module of this name was made from exactly this code.

    And whether the module is still there.
    """
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


def is_installed(path: Path) -> bool:
    """Tell whether a file belongs to Python, to an installed package or to nablab."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link in an environment is that environment's
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(folder in path.parents for folder in (NABLAB, *_libraries()))


@functools.cache
def _libraries() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


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


def _find(name: str, folder: Path, search: Sequence[str] | None) -> ModuleSpec | None:
    """Find one level of a module's name.

    At the top ``search`` is None; else the level lies inside a package.
    """
    if search is not None:
        return PathFinder.find_spec(name, search)
    if here := PathFinder.find_spec(name, [str(folder)]):
        return here
    for finder in sys.meta_path:  # editable installs have finders of their own
        find = getattr(finder, "find_spec", None)
        if find and (found := find(name, None)):
            return found if isinstance(found, ModuleSpec) else None
    return None


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            total.update(piece)
    return total.hexdigest()


class _Reader:
    """Reads files from one to the next, each once.

    Attributes:
        parts: What was found, by path.
        unseen: See `Code`.
    """

    def __init__(self, folder: Path) -> None:
        importlib.invalidate_caches()
        self.parts: dict[Path, Part] = {}
        self.unseen: list[str] = []
        self._folder = folder

    def read(self, path: Path, module: str) -> None:
        """Add a file, by the name under which it is imported, and what it leads to."""
        path = path.resolve()
        if path in self.parts:
            return
        self.parts[path] = Part(path, "")  # its place, before what it leads to
        source = _Source(path)
        digest = _sha256(path)
        for data in source.data:
            digest = hashlib.sha256(f"{digest}{_sha256(data)}".encode()).hexdigest()
        self.parts[path] = Part(path, digest, module)
        self.unseen += source.unseen
        for name in source.imports(module, is_package=path.name == "__init__.py"):
            self.follow(name)
        for script in source.scripts:
            self.read(script, "")

    def follow(self, name: str) -> None:
        """Add the user's own files that importing a module runs.

        Its packages and itself.
        """
        search: Sequence[str] | None = None
        full = ""
        for level in filter(None, name.split(".")):
            if not full and (level == "nablab" or level in sys.builtin_module_names):
                return
            found = _find(level, self._folder, search)
            if found is None:
                return
            full = f"{full}.{level}" if full else level
            if found.has_location and found.origin:
                if is_installed(Path(found.origin)):
                    return
                self.read(Path(found.origin), full)
            search = list(found.submodule_search_locations or [])


class _Source:
    """What one file imports, which data files it names, and what cannot be seen.

    Attributes:
        data: Files that exist and are named by a text in the source, beside it or from
            the current folder.
        scripts: Those of them that are Python files.
        unseen: See `Code`.
    """

    def __init__(self, path: Path) -> None:
        self.data: tuple[Path, ...] = ()
        self.scripts: tuple[Path, ...] = ()
        self.unseen: list[str] = []
        self._path = path
        self._imports: list[tuple[int, str, tuple[str, ...]]] = []
        if path.suffix != ".py":
            return  # compiled code
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # whoever imports it says what is wrong
        texts: dict[str, None] = {}
        readers: list[ast.Call] = []
        self._walk(tree, texts, readers)
        files = sorted({file for text in texts for file in self._files(text)})
        self.scripts = tuple(
            file for file in files if file.suffix == ".py" and file != path
        )
        self.data = tuple(file for file in files if file.suffix != ".py")
        if readers and not self.data:
            self._say(readers[0], "reads a file whose name is made while it runs")

    def imports(self, module: str, *, is_package: bool) -> Iterator[str]:
        """Yield the full names of all modules that may be imported.

        Args:
            module: The name of this file's module.
            is_package: Whether the file is a package's ``__init__.py``.
        """
        package = module.split(".") if is_package else module.split(".")[:-1]
        for level, base, names in self._imports:
            parts = package[: len(package) - level + 1] if level else []
            if level and not parts:
                continue  # Python refuses it
            full = ".".join([*parts, *([base] if base else [])])
            if full:
                yield full
            yield from (f"{full}.{name}" for name in names if name != "*")

    def _walk(
        self, node: ast.AST, texts: dict[str, None], readers: list[ast.Call]
    ) -> None:
        if isinstance(node, ast.Import):
            self._imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            self._imports.append(
                (
                    node.level,
                    node.module or "",
                    tuple(alias.name for alias in node.names),
                )
            )
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        elif isinstance(node, ast.Call) and not self._called(node, texts, readers):
            return
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            # Path(__file__).parent / "weights" / "a.pt"
            texts["/".join(_constants(node))] = None
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts[node.value] = None
        elif isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            self._say(node, "reads an environment variable")
        for child in ast.iter_child_nodes(node):
            self._walk(child, texts, readers)

    def _called(
        self, node: ast.Call, texts: dict[str, None], readers: list[ast.Call]
    ) -> bool:
        """Look at a call; whether to look inside it."""
        name: str = getattr(node.func, "attr", "") or getattr(node.func, "id", "")
        constants = [text for argument in node.args for text in _constants(argument)]
        if name.startswith(WRITERS) or (name == "open" and _writes(node)):
            return False  # what the code writes must not change its identity
        if name in ("import_module", "__import__"):
            if constants:
                self._imports.append((0, constants[0].lstrip("."), ()))
            else:
                self._say(node, "imports a module whose name is made while it runs")
        elif name in ("exec", "run_path", "run_module") and not constants:
            self._say(node, f"runs code that is made while it runs ({name})")
        elif name in READERS and not _constants((node.args or [node.func])[0]):
            readers.append(node)
        if constants:
            texts["/".join(constants)] = None  # os.path.join("weights", "a.pt")
        return True

    def _files(self, text: str) -> Iterator[Path]:
        """Yield the files that a text of the source may mean."""
        if not text or len(text) > LONGEST_NAME or not text.isprintable():
            return
        for folder in (self._path.parent, Path.cwd()):
            file = os.path.normpath(folder / os.path.expanduser(text))  # noqa: PTH111 - raises for no text
            if os.path.isfile(file) and not is_installed(Path(file)):  # noqa: PTH113
                yield Path(file)

    def _say(self, node: ast.expr, what: str) -> None:
        sentence = f"{self._path}, line {node.lineno}, {what}"
        if not any(old.endswith(what) for old in self.unseen):
            self.unseen.append(sentence)


def _writes(call: ast.Call) -> bool:
    """Tell whether a call of ``open`` opens a file for writing.

    Either ``open(file, mode)`` or ``path.open(mode)``.
    """
    place = 1 if isinstance(call.func, ast.Name) else 0
    given = [
        *call.args[place : place + 1],
        *(word.value for word in call.keywords if word.arg == "mode"),
    ]
    modes = "".join(text for node in given for text in _constants(node))
    return bool(set("wax+") & set(modes)) and set(modes) <= set("rwaxbt+")


def _constants(node: ast.AST) -> list[str]:
    """List the texts in an expression, from left to right."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    return [text for child in ast.iter_child_nodes(node) for text in _constants(child)]


def unseen_note(unseen: Iterable[str]) -> str:
    """Tell the user of `Code.unseen`; empty if all was seen."""
    listed = "; ".join(unseen)
    if not listed:
        return ""
    return (
        f"Your code depends on more than the run's id covers: {listed}. After a change "
        "there, give --fresh."
    )
