"""Which samples each replica sees at each step.

A fresh permutation per replica and epoch.

The order of an epoch is a function of the replica's seed and the epoch's number, so the
position in training is the step alone: nothing else needs saving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nablab.training.samplers import Sampler
from nablab.training.seeding import derive, generator


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Count the steps until each sample was seen once; the last batch may be smaller.

    >>> steps_per_epoch(1_000, 300)
    4
    """
    return -(-samples // batch_size)


class Batches:
    """The batches of K replicas over N samples.

    The last batch of an epoch may be smaller.

    Args:
        samples: N.
        batch_size: Samples per batch; None, or N and more, for the full batch.
        seeds: One seed per replica.
        device: Where the indices are needed.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int | None,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self._samples = samples
        self._size = samples if batch_size is None else min(batch_size, samples)
        self._seeds = tuple(seeds)
        self._device = device
        self._epoch = -1
        self._order = torch.empty(0)
        self.full = self._size == samples
        self.steps_per_epoch = steps_per_epoch(samples, self._size)

    def between(self, start: int, end: int) -> Iterator[tuple[int, int, Tensor | None]]:
        """Cut the steps ``start`` to ``end`` into runs of equal batch size.

        Yields:
            (first, last, indices): indices are int64 (last - first, K, batch), or None
            for the full batch.
        """
        if self.full:
            yield start, end, None
            return
        while start < end:
            epoch, position = divmod(start, self.steps_per_epoch)
            ragged = self._samples % self._size
            whole = self._samples // self._size
            stop = whole if position < whole else self.steps_per_epoch
            count = min(end - start, stop - position)
            size = self._size if position < whole else ragged
            first = position * self._size
            rows = self._epoch_order(epoch)[:, first : first + count * size]
            yield (
                start,
                start + count,
                rows.reshape(-1, count, size).transpose(0, 1).contiguous(),
            )
            start += count

    def _epoch_order(self, epoch: int) -> Tensor:
        """Return the orders (K, N) of one epoch; the latest epoch is kept."""
        if epoch != self._epoch:
            orders = [
                torch.randperm(
                    self._samples, generator=generator(derive(seed, "order", epoch))
                )
                for seed in self._seeds
            ]
            self._order = torch.stack(orders).to(self._device)
            self._epoch = epoch
        return self._order


class SampledBatches:
    """The batches of K replicas as a sampler gives them.

    Args:
        sampler: Says which samples stand in which batch, equally many for each seed.
        seeds: One seed per replica; equal ones see equal batches.
        device: Where the indices are needed.
    """

    def __init__(
        self, sampler: Sampler, seeds: Sequence[int], device: torch.device
    ) -> None:
        self._sampler, self._device = sampler, device
        # The points of a grid share their batches: each batch is asked for once.
        self._different = list(dict.fromkeys(seeds))
        self._places = torch.tensor([self._different.index(seed) for seed in seeds])
        self.steps_per_epoch = sampler.batches_per_epoch

    def between(self, start: int, end: int) -> Iterator[tuple[int, int, Tensor]]:
        """Cut the steps ``start`` to ``end`` into runs of equal batch size.

        Yields:
            (first, last, indices): indices are int64 (last - first, K, batch).
        """
        run: list[Tensor] = []
        for step in range(start, end):
            batch = self._batch(step)
            if run and run[0].shape != batch.shape:
                yield step - len(run), step, self._of_replicas(run)
                run = []
            run.append(batch)
        if run:
            yield end - len(run), end, self._of_replicas(run)

    def _batch(self, step: int) -> Tensor:
        """Return what each different seed sees at a step, (seeds, batch)."""
        return torch.stack(
            [self._sampler.indices(seed, step) for seed in self._different]
        )

    def _of_replicas(self, run: list[Tensor]) -> Tensor:
        return torch.stack(run)[:, self._places].to(self._device)
