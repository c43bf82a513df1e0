"""What an experiment gets as ``lab`` in a real run.

It hides the store, the device, checkpoints and progress.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nablab.contract import Experiment, Record, Trial, Trials
from nablab.errors import Interrupted, UsageError
from nablab.lab.drafts import Draft, Drafts
from nablab.lab.environment import describe_environment
from nablab.lab.kept_weights import MOST_BYTES
from nablab.lab.memory import check_losses
from nablab.lab.notebook import Notebook
from nablab.lab.provenance import Journal
from nablab.lab.source_runs import SourceRun
from nablab.lab.stop import StopToken
from nablab.lab.store import RunFolder
from nablab.lab.trained_weights import Owners, keep, note_of

if TYPE_CHECKING:
    from nablab.training import Learner, Recipe, Supervised, Training

PROGRESS_SECONDS = 0.5


def checkpoint_seconds() -> float:
    """Return the seconds between checkpoints: ``NABLAB_CHECKPOINT_SECONDS``, else 30.

    Raises:
        UsageError: The variable does not hold a positive number.
    """
    text = os.environ.get("NABLAB_CHECKPOINT_SECONDS", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(
            f"NABLAB_CHECKPOINT_SECONDS is '{text}'; it must be seconds, such as 30."
        )
    return seconds


class Session(Notebook):
    """The lab of some trials in a real run.

    It trains with checkpoints and says how far it is.

    Args:
        experiment: See `Notebook`.
        trials: See `Notebook`.
        folder: The run.
        stop: The request to stop, to be checked.
        device: Where to train.
        replicas: How to train replicas.
        notes: What has to be said of these trials before they begin.
        goes_on: Whether another process began these seeds.
        keep_weights: Bytes of the weights that trainings may leave in each trial.
        sources: See `Notebook`.
    """

    def __init__(
        self,
        experiment: Experiment,
        trials: Trials,
        *,
        folder: RunFolder,
        stop: StopToken,
        device: str,
        replicas: str,
        notes: Sequence[str] = (),
        goes_on: bool = False,
        keep_weights: int = MOST_BYTES,
        sources: Mapping[str, SourceRun] | None = None,
    ) -> None:
        # imports NumPy, which `nablab runs` does without
        from nablab.lab.loops import OwnLoops

        super().__init__(experiment, trials, sources=sources)
        self.notes += notes
        self._folder = folder
        self._stop = stop
        self._journal = Journal(
            folder,
            trials.condition,
            trials.seeds,
            environment=describe_environment(device),
            goes_on=goes_on,
            every_seconds=checkpoint_seconds(),
        )
        self._device = device
        self._replicas = replicas
        self._loops = OwnLoops(
            folder,
            trials,
            self._drafts,
            stop=stop,
            every_seconds=checkpoint_seconds(),
            on_note=self.note,
            on_progress=self._own_progress,
            # a resumed loop does not say them again
            on_save=lambda: self._journal.write(self.notes),
        )
        self._reported = 0.0
        self._may_end_early = False
        self._keep_weights = keep_weights
        self._owners = Owners(trials)

    def seed(
        self, trial: Trial, purpose: str, *, by: Sequence[str] | None = None
    ) -> int:
        """See `nablab.contract.Lab.seed`."""
        seed = super().seed(trial, purpose, by=by)
        self._owners.ask(seed, trial)
        return seed

    def train(
        self,
        learner: Learner | Supervised,
        data: Any,
        recipe: Recipe,
        *,
        seeds: Sequence[int],
        starts: Sequence[int] | None = None,
    ) -> Training:
        """See `nablab.contract.Lab.train`."""
        from nablab import training

        self._loops.save_ended()  # a training may take long
        if self._stop.requested():
            raise Interrupted("stopped before training")
        check_losses(len(seeds), recipe.steps or 0)
        path = self._folder.checkpoint_path(
            self._trials.condition, self._loops.next_number()
        )
        self._may_end_early = bool(recipe.stop)
        result = training.train(
            learner,
            data,
            recipe,
            seeds=seeds,
            starts=starts,
            device=self._device,
            replicas=self._replicas,
            checkpoint=training.Checkpoint(path, every_seconds=checkpoint_seconds()),
            on_progress=self._progress,
            should_stop=self._stop.requested,
            on_note=self.note,
        )
        if self._keep_weights:
            self._keep_trained(result)
        return result

    def _keep_trained(self, result: Training) -> None:
        """Keep the weights that a training leaves, as far as there is room.

        A note says why some are not kept.
        """
        owners = self._owners.of(result.seeds)
        if owners is None:
            self.note(
                "Weights were not kept: seeds that are not of lab.seed, or not one for "
                "each trial that asked for it, do not tell whose they are. lab.weights "
                "keeps them."
            )
            return
        for replica, trial in enumerate(owners):
            draft = self._draft(trial)
            most = self._keep_weights
            place = self._place(trial)
            if not keep(
                result,
                place,
                replica=replica,
                layers=self._layers(),
                draft=draft,
                most=most,
            ):
                self.note(note_of(most))

    def steps(self, total: int, *, state: Any = None, name: str = "") -> Iterator[int]:
        """See `nablab.contract.Lab.steps`."""
        return self._loops.steps(total, state=state, name=name)

    def records(self) -> list[Record]:
        """See `Notebook.records`."""
        self._loops.close_all()
        return super().records()

    @contextmanager
    def journal(self) -> Iterator[None]:
        """Keep where the work inside is done, how long it takes, and its notes.

        They are kept however it ends.
        """
        self._journal.write(self.notes)
        try:
            yield
        finally:
            self._journal.write(self.notes)

    def _draft(self, trial: Trial) -> Draft:
        return self._loops.draft(self._place(trial))

    def _layers(self) -> list[Drafts]:
        return self._loops.layers()

    def _progress(self, progress: Any) -> None:
        speed, loss = progress.replica_steps_per_second, progress.train_loss
        self._show(
            progress.step,
            progress.steps,
            rate=speed,
            loss=loss,
            replicas=len(self._drafts),
            may_end_early=self._may_end_early,
        )

    def _own_progress(self, step: int, steps: int, rate: float) -> None:
        self._show(step, steps, rate=rate, loss=None, replicas=1)

    def _show(
        self,
        step: int,
        steps: int,
        *,
        rate: float,
        loss: float | None,
        replicas: int,
        may_end_early: bool = False,
    ) -> None:
        """Write how far the current part is, for whoever watches."""
        self._journal.tick(self.notes)
        now = time.monotonic()
        if now - self._reported < PROGRESS_SECONDS:
            return
        self._reported = now
        content = {
            "condition": dict(self._trials.condition),
            "replicas": replicas,
            "part": self._loops.begun,
            "step": step,
            "steps": steps,
            "rate": rate,
            "loss": loss,
            "may_end_early": may_end_early,
            "time": time.time(),
        }
        self._folder.write_json(
            str(
                self._folder.progress_path(self._trials.condition).relative_to(
                    self._folder.path
                )
            ),
            content,
            durable=False,
        )
