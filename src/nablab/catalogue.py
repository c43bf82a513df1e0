"""Finds the experiments by scanning folders: there is no registry to edit.

Looks into ``nablab/experiments`` and into the folders named by ``NABLAB_EXPERIMENTS``
(separated as in ``PATH``). An experiment whose file cannot be imported is listed with
its error and breaks nothing else. A file of a user's that was edited since it was
imported is imported again.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nablab.contract import TOPICS, Experiment
from nablab.errors import UsageError, in_short, unknown

BUILT_IN = Path(__file__).parent / "experiments"
USER_PACKAGE = "nablab_user_experiments"


@dataclass(frozen=True)
class Entry:
    """One experiment in the catalogue.

    Attributes:
        name: The name on the command line.
        path: Its file.
        experiment: The class, or None if the file could not be imported.
        error: Why not.
    """

    name: str
    path: Path
    experiment: type[Experiment] | None
    error: str = ""

    @property
    def question(self) -> str:
        """The experiment's question, or what is wrong with its file."""
        return (
            self.experiment.question()
            if self.experiment
            else f"cannot be imported: {self.error}"
        )

    @property
    def topic(self) -> str:
        """The experiment's topic; that of none for a file that cannot be imported."""
        return self.experiment.topic if self.experiment else Experiment.topic


def by_topic(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Group the entries by topic: `TOPICS` first, then those of users."""
    topics: dict[str, list[Entry]] = {topic: [] for topic in TOPICS}
    for entry in entries:
        topics.setdefault(entry.topic, []).append(entry)
    return {topic: found for topic, found in topics.items() if found}


def scan() -> dict[str, Entry]:
    """Find all experiments by name, in alphabetical order."""
    entries: dict[str, Entry] = {}
    for folder in [BUILT_IN, *_user_folders()]:
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("_"):
                _add(entries, path)
    return dict(sorted(entries.items()))


def find(name: str) -> type[Experiment]:
    """Return the experiment class of this name.

    Raises:
        UsageError: There is none (with the nearest name), its file cannot be imported,
            or a file of the user's is called like one of nablab's own.
    """
    if (known := _built_in(name)) is not None:
        _check_not_hidden(name)
        return known
    entries = scan()
    if name not in entries:
        raise unknown(
            "experiment", name, entries, remedy="'nablab list' describes them."
        )
    entry = entries[name]
    if entry.experiment is None:
        raise UsageError(
            f"The experiment '{name}' cannot be imported ({entry.path}): {entry.error}"
        )
    return entry.experiment


def _built_in(name: str) -> type[Experiment] | None:
    """Import nablab's own experiment whose file bears its name, without a scan.

    The scan takes the first of a name, too, and its folder is the first.
    """
    path = BUILT_IN / f"{name.replace('-', '_')}.py"
    if not re.fullmatch(r"[a-z0-9-]+", name) or not path.is_file():
        return None
    return next((e for e in _experiments_in(_import(path)) if e.name == name), None)


def _check_not_hidden(name: str) -> None:
    """Refuse a name of nablab's that a file of the user's has, too.

    Whoever wrote that file would otherwise get other numbers than their own.
    """
    for folder in _user_folders():
        path = folder / f"{name.replace('-', '_')}.py"
        if path.is_file() and path.parent.resolve() != BUILT_IN.resolve():
            raise UsageError(
                f"'{name}' is an experiment of nablab's, and {path} is called like it. "
                "Give that file, and the class in it, another name."
            )


def _user_folders() -> list[Path]:
    named = os.environ.get("NABLAB_EXPERIMENTS", "")
    return [Path(part) for part in named.split(os.pathsep) if part]


def _add(entries: dict[str, Entry], path: Path) -> None:
    fallback = path.stem.replace("_", "-")
    try:
        found = _experiments_in(_import(path))
        error = "it defines no Experiment"
    # a user's file may raise anything; the list shows it
    except (Exception, SystemExit) as problem:
        found, error = [], in_short(problem)
    # The first of a name stays in the list, whatever a later file is called.
    shown = fallback if fallback not in entries else str(path)
    if not found:
        entries[shown] = Entry(shown, path, None, error)
    for experiment in found:
        if experiment.name in entries:
            first = entries[experiment.name].path
            entries[shown] = Entry(
                shown,
                path,
                None,
                f"the name '{experiment.name}' is taken by {first}",
            )
        else:
            entries[experiment.name] = Entry(experiment.name, path, experiment)


def _import(path: Path) -> ModuleType:
    if path.parent == BUILT_IN:
        return importlib.import_module(f"nablab.experiments.{path.stem}")
    return _import_user_file(path.resolve())


def _import_user_file(path: Path) -> ModuleType:
    """Import a file of the user's, again if it was edited."""
    # It brings hashing and a parser, which listing nablab's own does without.
    from nablab.importing import fresh_imports, user_code

    name = f"{USER_PACKAGE}.{path.stem}"
    code = user_code.code_of(path, folder=path.parent)
    if fresh_imports.is_loaded(name, code):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(USER_PACKAGE, ModuleType(USER_PACKAGE))
    fresh_imports.forget_stale(code)
    # pickling an experiment needs its module to be found by name
    sys.modules[name] = module
    try:
        with fresh_imports.importing(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    if str(path.parent) not in sys.path:
        # For imports inside methods; last, so that nothing is hidden. No compiled files
        # are written for them: of two edits within a second Python misses the second.
        sys.path.append(str(path.parent))
        sys.dont_write_bytecode = True
    fresh_imports.remember(code, program=name)
    return module


def _experiments_in(module: ModuleType) -> list[type[Experiment]]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Experiment)
        and value is not Experiment
        and value.__module__ == module.__name__
    ]
