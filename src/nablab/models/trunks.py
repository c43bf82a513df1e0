"""A trunk and its head: what is kept of a trained network, and what is learned anew.

The head is the last linear layer; the trunk is everything before it. A network may be
taken apart so if it has a method ``features(x)`` that gives (N, D), and its last linear
layer reads D numbers. ``last_block`` may name the parts that stand last in the trunk;
where it is missing, the last child with parameters counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.models.factory import output_of

NEEDED = "it must have a method features(x) that returns (N, D)"


class SmallTrunk(nn.Module):
    """Convolutions of 3 x 3 with batch norm, the image halved after each but the first.

    Args:
        channels: Of the images, 1 or 3.
        classes: Number of logits.
        widths: Channels after each convolution; the last of them are averaged over the
            image and become the features.
    """

    def __init__(
        self, channels: int, classes: int, *, widths: Sequence[int] = (32, 64, 128)
    ) -> None:
        super().__init__()
        steps = pairwise((channels, *widths))
        self.blocks = nn.Sequential(
            *(
                _block(inputs, outputs, halve=place > 0)
                for place, (inputs, outputs) in enumerate(steps)
            )
        )
        self.last_block = (f"blocks.{len(widths) - 1}",)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """Return what the last layer decides by, (N, widths[-1])."""
        found: Tensor = self.blocks(x).mean(dim=(2, 3))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class FineTuned(nn.Module):
    """A network of which a part is trained; the rest stays as it is.

    A frozen layer must be left out of training mode, too: batch norm would otherwise
    take its mean and variance from the batch and move its running statistics, so that
    "frozen" features change with every batch.

    Args:
        net: The network; its parameters are frozen in place.
        trained: The names of the parts to train; None for everything.
        fixed_statistics: Whether frozen layers stay in evaluation mode. False is a
            mistake that is often made.
    """

    def __init__(
        self,
        net: nn.Module,
        trained: Sequence[str] | None = None,
        *,
        fixed_statistics: bool = True,
    ) -> None:
        super().__init__()
        self.net = net
        names = [""] if trained is None else list(trained)
        chosen = [net.get_submodule(name) for name in names]
        moving = {part for root in chosen for part in root.modules()}
        net.requires_grad_(False)
        for root in chosen:
            root.requires_grad_(True)
        self.still = [part for part in net.modules() if part not in moving]
        self.fixed_statistics = fixed_statistics

    def forward(self, x: Tensor) -> Tensor:
        """Return what the network returns."""
        found: Tensor = self.net(x)
        return found

    def train(self, mode: bool = True) -> FineTuned:
        """Set the mode of what is trained; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.fixed_statistics:
            for part in self.still:
                part.training = False
        return self


def head_of(net: nn.Module) -> str:
    """Return the name of the last linear layer.

    Raises:
        UsageError: There is none.

    >>> head_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    '2'
    """
    parts = dict(net.named_modules())
    found = [name for name, part in parts.items() if isinstance(part, nn.Linear)]
    if not found:
        raise UsageError(
            f"The network {type(net).__name__} has no linear layer to replace: transfer "
            "learning gives a network a new last layer. End it with nn.Linear."
        )
    return str(found[-1])


def last_block_of(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the parts that stand last before the head, and of the head.

    Raises:
        UsageError: There is no linear layer, ``last_block`` names what is not there, or
            it is missing and no child has parameters but the one with the head.
    """
    head = head_of(net)
    named = getattr(net, "last_block", None)
    if named is not None:
        known = {name for name, _ in net.named_modules()}
        if missing := [name for name in named if name not in known]:
            raise UsageError(
                f"last_block of {type(net).__name__} names {', '.join(missing)}, which "
                "the network does not have."
            )
        return (*named, head)
    children = [
        name
        for name, part in net.named_children()
        if any(True for _ in part.parameters()) and head.split(".")[0] != name
    ]
    if not children:
        raise UsageError(
            f"Which part of {type(net).__name__} is its last block cannot be seen: "
            "everything stands in one part. Name it: last_block = ('body.3',)."
        )
    return (children[-1], head)


def check_trunk(net: nn.Module, shape: Sequence[int]) -> int:
    """Return the number of features of a network for images (N, *shape).

    Draws no random number.

    Raises:
        UsageError: It has no ``features``, they are not (N, D), or its last linear
            layer does not read D numbers.
    """
    features = getattr(net, "features", None)
    kind = type(net).__name__
    if not callable(features):
        raise UsageError(f"The network {kind} has no features: {NEEDED}.")
    x = torch.zeros(2, *shape)
    found = output_of(_Features(net), x, wanted=NEEDED, kind=kind)
    head = net.get_submodule(head_of(net))
    assert isinstance(head, nn.Linear)
    if found.ndim != 2 or len(found) != 2 or found.shape[1] != head.in_features:
        raise UsageError(
            f"The features of {kind} are {tuple(found.shape)} for two images, and its "
            f"last linear layer reads {head.in_features}: {NEEDED}, with "
            f"D = {head.in_features}."
        )
    return head.in_features


def replace_head(net: nn.Module, head: nn.Linear) -> nn.Module:
    """Put another last layer into a network, in place; return the network."""
    path, _, name = head_of(net).rpartition(".")
    setattr(net.get_submodule(path), name, head)
    return net


@torch.no_grad()
def settle_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch norm to the mean over some batches.

    Random weights need this before their features mean anything: the statistics of a
    fresh network are 0 and 1, whatever comes in. Leaves it in evaluation mode.

    Args:
        net: The network.
        batches: Of its inputs, each of the same size.
    """
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # a plain mean over what comes
    net.train()
    for batch in batches:
        net(batch)
    net.eval()
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum


def moved_statistics(before: nn.Module, after: nn.Module) -> float:
    """Measure how far the running means of batch norm moved, in standard deviations.

    Returns:
        The root of the mean square over all channels; 0 without batch norm.
    """
    pairs = [
        ((b.running_mean - a.running_mean) / (a.running_var + a.eps).sqrt())
        for a, b in zip(before.modules(), after.modules(), strict=True)
        if isinstance(a, nn.BatchNorm2d)
        and isinstance(b, nn.BatchNorm2d)
        and a.running_mean is not None
        and a.running_var is not None
        and b.running_mean is not None
    ]
    return float(torch.cat(pairs).square().mean().sqrt()) if pairs else 0.0


class _Features(nn.Module):
    """The features of a network as a network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net.features(x)  # type: ignore[operator]
        return found


def _block(inputs: int, outputs: int, *, halve: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.MaxPool2d(2) if halve else nn.Identity(),
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
