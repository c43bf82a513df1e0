"""Features of a frozen trunk, computed once, as fast as they may be.

Nothing is trained here: no gradients are kept, the network is in evaluation mode, and
batch norm, which is then a scaling, is multiplied into the convolution before it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BATCH = 250  # images at once: 12 MB at 3 x 64 x 64
CLOSE = 1e-4  # relative; what rounding in float32 makes of another order of products


class CachedFeatures:
    """The features of images, each computed when it is first asked for.

    Args:
        net: A network with ``features(x)``; it is copied, and stays as it is.
        images: As stored, (N, C, H, W).
        prepare: Makes the network's input of a batch of stored images.
        bfloat16: Whether to multiply in bfloat16.
    """

    def __init__(
        self,
        net: nn.Module,
        images: Tensor,
        prepare: Callable[[Tensor], Tensor],
        *,
        bfloat16: bool = False,
    ) -> None:
        self._images, self._prepare = images, prepare
        self._bfloat16 = bfloat16
        example = prepare(images[:2])
        folded: Any = fold_batch_norms(net, example)
        self._net = folded.to(memory_format=torch.channels_last)
        self._there = torch.zeros(len(images), dtype=torch.bool)
        self._kept: Tensor | None = None

    def __call__(self, places: Tensor | None = None) -> Tensor:
        """Return features float32 (n, D).

        Args:
            places: Of the images, int64 (n,), at least one; None for all.
        """
        if places is None:
            places = torch.arange(len(self._images))
        missing = torch.unique(places[~self._there[places]])
        for part in missing.split(BATCH):
            found = self._compute(self._images[part])
            if self._kept is None:
                self._kept = torch.empty(len(self._images), found.shape[1])
            self._kept[part] = found
            self._there[part] = True
        assert self._kept is not None
        return self._kept[places]

    def _compute(self, images: Tensor) -> Tensor:
        net: Any = self._net
        x = self._prepare(images).contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=self._bfloat16)
        with torch.inference_mode(), autocast:
            found: Tensor = net.features(x).float()
        return found


@torch.no_grad()
def fold_batch_norms(net: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy for evaluation with batch norms multiplied into convolutions.

    A batch norm belongs to a convolution if it gets what that one returned. Which do is
    seen by sending an example through; the copy must then give the same, but for
    rounding. If it does not (a convolution's output is used elsewhere, too), nothing is
    folded.

    Args:
        net: A network with ``features(x)``, or any other one.
        example: A batch of its inputs.
    """
    plain: Any = copy.deepcopy(net).eval().requires_grad_(False)
    folded: Any = copy.deepcopy(plain)
    pairs = _pairs(folded, example)
    for convolution, norm in pairs:
        whole = fuse_conv_bn_eval(
            folded.get_submodule(convolution), folded.get_submodule(norm)
        )
        _put(folded, convolution, whole)
        _put(folded, norm, nn.Identity())
    expected, found = _out(plain, example), _out(folded, example)
    scale = float(expected.abs().max())
    same = torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE * scale)
    chosen: nn.Module = folded if pairs and same else plain
    return chosen


def _pairs(net: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Name the convolutions whose output is the input of a batch norm, with that one."""
    returned: list[tuple[str, Tensor]] = []
    found: dict[str, str] = {}
    calls: list[str] = []

    def convolved(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            calls.append(name)
            returned.append((name, output))

        return keep

    def normed(name: str) -> Callable[..., None]:
        def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls.append(name)
            for convolution, output in returned:
                if output is inputs[0]:
                    found[convolution] = name

        return look

    handles: list[Any] = []
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d):
            handles.append(part.register_forward_hook(convolved(name)))
        elif isinstance(part, nn.BatchNorm2d) and part.track_running_stats:
            handles.append(part.register_forward_pre_hook(normed(name)))
    _out(net, example)
    for handle in handles:
        handle.remove()
    # A layer that is used twice has two inputs, and no scaling of its own.
    return [
        pair for pair in found.items() if all(calls.count(name) == 1 for name in pair)
    ]


def _out(net: Any, example: Tensor) -> Tensor:
    out: Tensor = net.features(example) if hasattr(net, "features") else net(example)
    return out


def _put(net: nn.Module, name: str, part: nn.Module) -> None:
    path, _, last = name.rpartition(".")
    setattr(net.get_submodule(path), last, part)
