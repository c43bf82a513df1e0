"""What one Python file imports and which data files it names, by its source alone.

Nothing is run. What cannot be found this way (a module or file whose name is made while
the code runs, an environment variable) is listed.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from nablab.importing.modules import is_installed

LONGEST_NAME = 255  # no file system takes a longer file name
READERS = {
    "open",
    "load",
    "load_file",
    "read_text",
    "read_bytes",
    "read_csv",
    "imread",
    "fromfile",
    "loadtxt",
    "genfromtxt",
    "urlopen",
    "urlretrieve",
    "load_state_dict_from_url",
    "hf_hub_download",
    "from_pretrained",
}
# how their names begin
WRITERS = ("save", "write", "dump", "to_", "touch", "mkdir", "unlink", "remove")


class Source:
    """What one file imports, which data files it names, and what cannot be seen.

    Args:
        path: The file.

    Attributes:
        data: Files that exist and are named by a text in the source, beside it or from
            the current folder.
        scripts: Those of them that are Python files.
        unseen: What decides the numbers, too, but cannot be found by reading, with file
            and line.
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

    It is ``open(file, mode)`` or ``path.open(mode)``.
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
