"""scikit-learn's `GridSearchCV` over a skorch network: the convention people know.

What it is given here, and what no default would do, makes its arithmetic that of
`nablab.training`: the first weights come from a seed, and the order of the samples is
that of `nablab.training.Shuffled`. skorch's loader draws an order of its own, and goes
on drawing from one generator, so that a fit depends on those before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nablab.training import Shuffled, build_replicas

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GridSearched:
    """What `GridSearchCV` found.

    Attributes:
        points: The settings that were tried.
        scores: float64 (points, folds): the validation accuracy of each network.
        best: The point that it chose.
        seconds: What all of it took, without the import of scikit-learn and skorch.
    """

    points: tuple[Mapping[str, Any], ...]
    scores: npt.NDArray[np.float64]
    best: Mapping[str, Any]
    seconds: float

    def of(self, points: Iterable[Mapping[str, Any]]) -> npt.NDArray[np.float64]:
        """Return the scores (points, folds) of these points, in this order."""
        return self.scores[[self.points.index(point) for point in points]]


def grid_search_cv(
    build: Callable[..., nn.Module],
    data: tuple[Tensor, Tensor],
    *,
    grid: Mapping[str, Sequence[Any]],
    folds: Sequence[tuple[Tensor, Tensor]],
    optimizer: str,
    batch_size: int,
    start: int,
    order: int,
    jobs: int = 1,
    **options: Any,
) -> GridSearched:
    """Search a grid with `GridSearchCV` over skorch's `NeuralNetClassifier`.

    Args:
        build: Makes an untrained network; takes the entries ``module__...`` of a point.
        data: Inputs float32 (N, ...) and labels int64 (N,).
        grid: The values to be tried, by skorch's names: ``lr``, ``max_epochs``,
            ``optimizer__weight_decay``, ``module__...``.
        folds: Per fold the samples to train on and those to score, int64.
        optimizer: Its name in `torch.optim`.
        batch_size: Samples per step.
        start: Seed of every network's first weights.
        order: Seed of the order of samples, by their places in a fold's training set.
        jobs: Processes, as scikit-learn's ``n_jobs``.
        **options: Further options of `NeuralNetClassifier`.
    """
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        Start(build, start),
        criterion=nn.CrossEntropyLoss,
        optimizer=getattr(torch.optim, optimizer),
        batch_size=batch_size,
        iterator_train__sampler=SameOrder(len(folds[0][0]), batch_size, order),
        train_split=None,  # the folds of GridSearchCV are all that is held out
        verbose=0,
        **options,
    )
    search = GridSearchCV(
        net,
        {name: list(values) for name, values in grid.items()},
        scoring="accuracy",
        cv=[(train.numpy(), test.numpy()) for train, test in folds],
        refit=False,
        n_jobs=jobs,
        error_score="raise",
    )
    x, y = (part.numpy() for part in data)
    # At their first fit the libraries load parts of themselves; that is not timed.
    first = folds[0][0].numpy()
    point = {name: values[0] for name, values in grid.items()} | {"max_epochs": 1}
    clone(net).set_params(**point).fit(x[first], y[first])
    began = time.perf_counter()
    search.fit(x, y)
    seconds = time.perf_counter() - began
    found = search.cv_results_
    scores = [found[f"split{fold}_test_score"] for fold in range(len(folds))]
    return GridSearched(
        points=tuple(found["params"]),
        scores=np.stack(scores, axis=1).astype(np.float64),
        best=search.best_params_,
        seconds=seconds,
    )


@dataclass(frozen=True)
class Start:
    """Builds a network whose first weights are those of a seed.

    skorch calls it where it would call the class of the network.

    Attributes:
        build: Makes an untrained network.
        seed: As if set by ``torch.manual_seed``.
    """

    build: Callable[..., nn.Module]
    seed: int

    def __call__(self, **options: Any) -> nn.Module:
        """Build one."""
        return build_replicas(lambda: self.build(**options), [self.seed])[0]


class SameOrder(torch.utils.data.Sampler[int]):
    """Gives PyTorch's loader the order of `nablab.training.Shuffled`, epoch by epoch.

    scikit-learn copies it for each fit, so each begins with the first epoch.

    Args:
        samples: Of the training set.
        batch_size: Samples per step.
        seed: Of the order.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self._size, self._samples, self._seed = batch_size, samples, seed
        self._epoch = 0

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[int]:
        shuffled = Shuffled(self._samples, self._size)
        count = shuffled.batches_per_epoch
        for batch in range(self._epoch * count, (self._epoch + 1) * count):
            yield from shuffled.indices(self._seed, batch).tolist()
        self._epoch += 1
