"""The weights that trainings leave: whose they are, what they are called, and how much of them is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nablab.experiment import Trial
from nablab.lab.drafts import Draft, Drafts
from nablab.lab.kept_weights import in_words, pack

if TYPE_CHECKING:
    from nablab.training import Training


class Owners:
    """Remembers which trial asked for which seed, and so whose network a training made of it.

    Trials of several conditions may share a seed on purpose, so that a seed alone does not name its trial.

    Args:
        trials: All trials, in their order.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = list(trials)
        self._asked: dict[int, list[Trial]] = {}  # since the last training that took the seed
        self._had: dict[int, list[Trial]] = {}  # the trials that this training was for

    def ask(self, seed: int, trial: Trial) -> None:
        """Note that an experiment asked for a seed of a trial."""
        asked = self._asked.setdefault(seed, [])
        if trial not in asked:
            asked.append(trial)

    def of(self, seeds: Sequence[int]) -> list[Trial] | None:
        """The trial of each network of a training; None if the seeds do not tell."""
        found = self._in_order(seeds) or self._by_seed(seeds)
        if found is not None:
            for seed in set(seeds):
                self._asked.pop(seed, None)
                self._had[seed] = [owner for owner, own in zip(found, seeds, strict=True) if own == seed]
        return found

    def _candidates(self, seed: int) -> list[Trial]:
        return self._asked.get(seed) or self._had.get(seed) or []

    def _in_order(self, seeds: Sequence[int]) -> list[Trial] | None:
        """One network for each trial, as experiments usually train."""
        if len(seeds) != len(self._trials):
            return None
        for trial, seed in zip(self._trials, seeds, strict=True):
            candidates = self._candidates(seed)
            if candidates and trial not in candidates:
                return None
        return list(self._trials)

    def _by_seed(self, seeds: Sequence[int]) -> list[Trial] | None:
        """As many networks of a seed as trials asked for it, in the order in which they did."""
        found: list[Trial] = []
        for place, seed in enumerate(seeds):
            candidates = self._candidates(seed)
            if list(seeds).count(seed) != len(candidates):
                return None
            found.append(candidates[list(seeds[:place]).count(seed)])
        return found


def keep(
    training: Training, place: int, *, replica: int, layers: Iterable[Drafts], draft: Draft, most: int
) -> bool:
    """Keep final and best weights of one network in the draft of its trial, as far as there is room.

    Args:
        training: What trained it.
        place: Of the trial among those that are run.
        replica: Of the network in the training.
        layers: Everything that was said so far, the draft too.
        draft: Where to keep them.
        most: Bytes that the trial's trainings may take in all.

    Returns:
        Whether all of it was kept.
    """
    said = [layer[place] for layer in layers if place in layer]
    left = most - sum({id(one): len(one.content) for own in said for one in own.trained.values()}.values())
    number = 1 + sum(_is_final(name) for own in said for name in (*own.trained, *own.weights_left_out))
    ending = "" if number == 1 else f"-{number}"
    final = _size(training, replica)
    if final > left:
        draft.weights_left_out |= {f"final{ending}": final, f"best{ending}": final}
        return False
    packed = pack(training.module(replica))
    draft.trained[f"final{ending}"] = packed
    if not _differs(training, replica):
        draft.trained[f"best{ending}"] = packed
    elif final > left - len(packed.content):
        draft.weights_left_out[f"best{ending}"] = final
        return False
    else:
        draft.trained[f"best{ending}"] = pack(training.module(replica, at="best"))
    return True


def note_of(most: int) -> str:
    """What to tell the user where something was left out."""
    return (
        f"Weights beyond {in_words(most)} a trial were not kept. --keep-weights SIZE keeps more, of trials "
        "that are still to be trained."
    )


def _is_final(name: str) -> bool:
    return name == "final" or name.startswith("final-")


def _size(training: Training, replica: int) -> int:
    tensors: dict[str, Any] = training.parameters()
    return sum(tensor[replica].numel() * tensor.element_size() for tensor in tensors.values())


def _differs(training: Training, replica: int) -> bool:
    """Whether the best weights are others than the final ones."""
    final, best = training.parameters(), training.parameters(at="best")
    return any(not tensor[replica].equal(best[name][replica]) for name, tensor in final.items())
