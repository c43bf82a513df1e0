"""Find a run in the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nablab import catalogue
from nablab.contract import Record, configuration
from nablab.errors import StoreError, UsageError
from nablab.lab.kept_weights import MOST_BYTES
from nablab.lab.reading import Damaged
from nablab.lab.store import RunFolder, Store, default_root
from nablab.runs.result import Run

T = TypeVar("T")


def open_store(root: str | Path | None = None) -> Store:
    """Return the store at ``root``, or the default one."""
    return Store(Path(root) if root is not None else default_root())


def open_run(reference: str, store: str | Path | None = None) -> Run:
    """Open a run of the store.

    Args:
        reference: Its id, the beginning of its id, its experiment (the latest run is
            opened), or its folder.
        store: The folder of runs; ``NABLAB_STORE`` or ``runs`` if None.

    Raises:
        UsageError: There is no such run.
        StoreError: It was written by a newer nablab, or its experiment has changed
            since.
    """
    folder = open_store(store).find(reference)
    config = folder.config()
    experiment_class = catalogue.find(config.experiment)
    try:
        experiment = configuration.resolve(
            experiment_class, config.preset, config.configuration, validate=False
        )
    except UsageError as error:
        raise StoreError(
            f"The run in {folder.path} was made with an earlier version of "
            f"{config.experiment}: {error}"
        ) from error
    status = _whole(folder.status)
    said = status.keep_weights if status else None
    return Run(
        folder,
        experiment,
        (status and status.seeds) or _seeds_there(folder),
        keep_weights=MOST_BYTES if said is None else said,
    )


def _whole(look: Callable[[], T]) -> T | None:
    """Return what a file of the run says, or None if it is damaged.

    `Run.damage` names it then.
    """
    try:
        return look()
    except Damaged:
        return None


def _seeds_there(folder: RunFolder) -> int:
    return max(
        (trial.seed + 1 for trial in folder.trials() if isinstance(trial, Record)),
        default=0,
    )
