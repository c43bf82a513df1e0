"""A run in the store and all that can be asked of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nablab.contract import (
    Experiment,
    Level,
    Records,
    Trial,
    Trials,
    configuration,
)
from nablab.errors import NablabError, StoreError, UsageError, raised, unknown
from nablab.files.atomic import remove_leftovers, store_error
from nablab.lab.kept_weights import MOST_BYTES, in_words
from nablab.lab.notebook import Notebook
from nablab.lab.provenance import provenance
from nablab.lab.status import State, read_state
from nablab.lab.store import WEIGHTS_OF, RunFolder, default_root
from nablab.lab.trials import CorruptTrial
from nablab.runs.picking import pick_condition

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from nablab.report.view import RunView
    from nablab.verdicts import Verdict

MOST_SEEDS = 10_000  # of one condition; verdicts stop gaining from seeds long before
REPORT_SECONDS = 120.0  # drawing takes seconds; a machine may be very busy


@dataclass(frozen=True, repr=False)
class Run:
    """A run in the store and all that can be asked of it.

    Its trials are read once, when they are first asked for, and judged once; open the
    run again to see what has been added since.

    Attributes:
        folder: Where it is.
        experiment: The configured experiment.
        seeds: Number of seeds per condition.
        messages: What went wrong when it was run just now.
        ended: How it ended when it was run just now; None for a run that was opened
            from the store.
        keep_weights: Bytes of the weights that trainings may leave in each trial, as
            the last command said.
    """

    folder: RunFolder
    experiment: Experiment
    seeds: int
    messages: tuple[str, ...] = ()
    ended: State | None = None
    keep_weights: int = MOST_BYTES

    @property
    def state(self) -> State:
        """How far the run is.

        It is ``done``, ``running``, ``interrupted``, ``failed``, ``crashed`` or
        ``incomplete``.
        """
        # another process may go on with the same run
        return self.ended or read_state(self.folder)

    @property
    def records(self) -> Records:
        """The finished trials."""
        return self._survey[0]

    @cached_property
    def _survey(self) -> tuple[Records, list[CorruptTrial]]:
        return self.folder.survey(self.experiment.conditions(), self.seeds)

    @property
    def damage(self) -> tuple[str, ...]:
        """A sentence for every damaged file of the run.

        What it held is left out everywhere else.
        """
        trials = [
            f"{error} It is left out; the run's command trains it again."
            for error in self._survey[1]
        ]
        return (*self.folder.damage(), *trials)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The answer to every claim that the records so far allow."""
        from nablab import verdicts

        return verdicts.judge(self.experiment.active_claims(), self.records)

    @property
    def scalars(self) -> pd.DataFrame:
        """The numbers of all trials as a tidy table.

        It has one row per (factors, seed, metric), with columns ``metric`` and
        ``value``.
        """
        import pandas as pd

        rows = [
            {**record.condition, "seed": record.seed, "metric": metric, "value": value}
            for record in self.records
            for metric, value in record.scalars.items()
        ]
        return pd.DataFrame(rows)

    def curves(self, name: str) -> pd.DataFrame:
        """Return a curve of all trials as a tidy table.

        It has one row per (factors, seed, step), with columns ``steps`` and ``values``.

        Args:
            name: The curve, as the experiment called it.

        Raises:
            UsageError: No trial has a curve of that name.
        """
        import pandas as pd

        records = self.records
        names = list(
            dict.fromkeys(curve for record in records for curve in record.curves)
        )
        if name not in names:
            raise unknown("curve", name, names)
        parts = [
            pd.DataFrame({**r.condition, "seed": r.seed, **r.curves[name]._asdict()})
            for r in records
            if name in r.curves
        ]
        return pd.concat(parts, ignore_index=True)

    def weights(
        self, condition: Mapping[str, Level] | str, seed: int, name: str = "final"
    ) -> dict[str, Tensor]:
        """Return the weights that were kept of a trial, by their names in the network.

        They are on the CPU.

        Args:
            condition: Levels by factor, as many as single it out; or a text such as
                ``model=deep``.
            seed: The trial's seed, counted from 0.
            name: ``"final"``, ``"best"``, ``"final-2"`` for the trial's second network,
                or what the experiment called them.

        Raises:
            UsageError: No such condition, seed or weights; the text says how to get
                them.
            CorruptTrial: A file of the trial is damaged.
        """
        where = pick_condition(self.experiment.conditions(), condition)
        record = self.folder.read_trial(where, seed) if seed >= 0 else None
        if record is None:
            raise UsageError(
                f"There is no finished trial with {where}, seed {seed} in this run. "
                "This runs what is missing: "
                f"{replace(self, seeds=min(max(self.seeds, seed + 1), MOST_SEEDS)).command}"
            )
        if name in record.weights:
            return dict(record.weights[name])
        if name in record.weights_left_out:
            needed = self.keep_weights + 2 * sum(record.weights_left_out.values())
            raise UsageError(
                f"The weights '{name}' of {where}, seed {seed} were not kept: they "
                f"take {in_words(record.weights_left_out[name])}, more than there was "
                f"room for. This trains again and keeps them: {self._keeping(needed)}"
            )
        if not record.weights:
            raise UsageError(
                f"No weights were kept of {where}, seed {seed}: the run was told to "
                "keep none, an earlier nablab made it, or its experiment does not "
                "train with lab.train. Where it does, this trains again and keeps "
                f"them: {self._keeping(MOST_BYTES)}"
            )
        raise unknown("set of weights", name, record.weights)

    def model(
        self, condition: Mapping[str, Level] | str, seed: int, *, at: str = "final"
    ) -> nn.Module:
        """Rebuild the trained network of a trial, on the CPU and in evaluation mode.

        Args:
            condition: As in `weights`.
            seed: The trial's seed, counted from 0.
            at: The name of its weights, as in `weights`.

        Raises:
            UsageError: As `weights`; or the experiment does not say how its networks
                are built.
            CodeError: The user's code raised an error while building the network.
        """
        from nablab.files.weights import set_weights

        where = pick_condition(self.experiment.conditions(), condition)
        with _named(f"Building the network of {self.experiment.name} ({where})"):
            module = self.experiment.network_of(where)
        set_weights(
            module, self.weights(where, seed, at), f"{at} of {where}, seed {seed}"
        )
        return module.eval()

    def objective(
        self, condition: Mapping[str, Level] | str, seed: int
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Return the loss and the samples that the network of a trial was trained on.

        They have the form in which instruments take them.

        Args:
            condition: As in `weights`.
            seed: The trial's seed, counted from 0.

        Raises:
            UsageError: The experiment does not say what they are.
            CodeError: The user's code raised an error.
        """
        where = pick_condition(self.experiment.conditions(), condition)
        lab = Notebook(self.experiment, Trials([where], [seed]))
        with _named(f"Making the data of {self.experiment.name} ({where})"):
            return self.experiment.objective(Trial(where, seed), lab)

    def _keeping(self, size: int) -> str:
        """Return the command that makes this run again and keeps more of the weights.

        Args:
            size: The bytes of weights to keep in each trial.
        """
        command = replace(self, keep_weights=MOST_BYTES).command
        more = f" --keep-weights {in_words(size)}" if size > MOST_BYTES else ""
        return f"{command}{more} --fresh"

    def _repr_html_(self) -> str:
        """Return what a notebook shows of the run: the answer, and a row per claim."""
        from nablab.report.notebook import summary

        page = self.folder.path / "report.html"
        return summary(self.experiment.question(), self.state, self.verdicts, page)

    def __repr__(self) -> str:
        """Return what a Python prompt shows: which run, how far it is, the answer."""
        from nablab.report.notebook import in_lines
        from nablab.verdicts.answering import answer

        wanted = len(self.experiment.conditions()) * self.seeds
        name = f"Run of {self.experiment.name}, {self.folder.path.name}"
        page = self.folder.path / "report.html"
        # a prompt and a debugger call this often: it must not raise
        try:
            with _named(f"Judging the run of {self.experiment.name}"):
                done, said = len(self.records), answer(self.verdicts)
        except NablabError as error:
            return in_lines(name, [*self.messages, str(error)], page)
        heading = f"{name}: {self.state}, {done:,} of {wanted:,} trials"
        return in_lines(heading, [*self.messages, *([said] if said else [])], page)

    def view(self) -> RunView:
        """Collect what a report needs to know."""
        from nablab.report.view import RunView

        config, records = self.folder.config(), self.records
        made = provenance(self.folder, records, self.experiment.groups())
        return RunView(
            experiment=self.experiment,
            preset=config.preset,
            run_id=config.run_id,
            state=self.state,
            records=records,
            verdicts=self.verdicts,
            environment={
                **made.facts(),
                "seconds": made.seconds,
                "started": made.started,
            },
            notes=tuple(made.notes),
            command=self.command,
            seeds=self.seeds,
            damage=self.damage,
        )

    @property
    def command(self) -> str:
        """The command that makes this run, in the store where it is."""
        config = self.folder.config()
        settings = configuration.changes(self.experiment, config.preset)
        words = ["nablab", "run", self.experiment.name, *settings]
        words += ["--preset", config.preset, "--seeds", str(self.seeds)]
        if config.device != "cpu":
            words += ["--device", config.device]
        if config.replicas != "auto":
            words += ["--replicas", config.replicas]
        if self.keep_weights != MOST_BYTES:
            words += ["--keep-weights", in_words(self.keep_weights)]
        for source, value in config.sources.items():
            if source.startswith(WEIGHTS_OF):
                words += ["--weights-from", value]
        root = self.folder.path.parent.parent
        # otherwise the folder was copied elsewhere
        its_place = root / self.experiment.name / config.run_id == self.folder.path
        if its_place and root.resolve() != default_root().resolve():
            words += ["--store", str(root)]
        return shlex.join(words)

    def write(self, *, on_trouble: Callable[[str], None] = lambda _: None) -> Path:
        """Write verdicts, figures and the report into the run's folder.

        Args:
            on_trouble: Told what could not be drawn.

        Returns:
            The report's path.
        """
        from nablab.report.page import write_report

        with _alone_with_the_report(self.folder):
            view = self.view()
            self.folder.write_json(
                "verdicts.json",
                {"verdicts": [verdict.to_dict() for verdict in view.verdicts]},
            )
            return write_report(view, self.folder.path, on_trouble=on_trouble)

    def report(
        self,
        path: str | Path | None = None,
        *,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> Path:
        """Write the report to ``path``, or into the run's folder; return where it is.

        Raises:
            UsageError: Nothing can be written at ``path``.
        """
        from nablab.files.atomic import check_output, write_output
        from nablab.report.page import render

        if path is None:
            return self.write(on_trouble=on_trouble)
        check_output(Path(path))
        write_output(Path(path), render(self.view(), on_trouble=on_trouble).encode())
        return Path(path)


@contextmanager
def _named(doing: str) -> Iterator[None]:
    """Turn whatever an experiment's code raises inside into one sentence."""
    try:
        yield
    except NablabError:
        raise
    except (Exception, SystemExit) as error:
        raise raised(doing, error) from error


@contextmanager
def _alone_with_the_report(folder: RunFolder) -> Iterator[None]:
    """Hold the report's lock inside.

    So what a killed process was writing there can be removed.
    """
    import filelock

    path = folder.path / "locks" / "report.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        lock.acquire(timeout=REPORT_SECONDS)
    except filelock.Timeout as error:
        raise StoreError(
            f"Another process has been writing the report of {folder.path} for more "
            f"than {REPORT_SECONDS:.0f} s. Wait for it, then give the command again."
        ) from error
    except OSError as error:
        raise store_error(error, path) from error
    try:
        remove_leftovers(folder.path / "figures")
        for name in ("verdicts.json", "*.csv", "report.html"):
            remove_leftovers(folder.path, name)
        yield
    finally:
        lock.release()
