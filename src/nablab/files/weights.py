"""Weights from files, held against the network: names, shapes, kinds.

Files are safetensors, or what `torch.save` writes. Of the latter tensors alone are read;
what could run code is refused, and none of it is run.
"""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.files.places import place

# What wrappers put before the names of a network's tensors: torch.compile,
# DataParallel, and FSDP.
PREFIXES = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")
COUNT = ".num_batches_tracked"
# Under which the tensors stand in files that hold more than them.
NESTED = ("state_dict", "model_state_dict", "model")
SAVE_STATE = (
    "Save the tensors alone, where you trust the file: "
    "torch.save(network.state_dict(), PATH)."
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name.

    Args:
        path: A safetensors file, or one of `torch.save` with a network's tensors by
            name, also below one of the names `NESTED`.

    Raises:
        UsageError: It cannot be read, holds something else than tensors, or could run
            code.
    """
    if _is_pickle(path):
        return _read_pickle(path)
    try:
        return load_file(place(path))
    except (OSError, SafetensorError) as error:
        reason = str(error).removeprefix("Error while deserializing ").rstrip(".")
        raise UsageError(
            f"The weights '{path}' cannot be read as safetensors: {reason}."
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Read what `torch.save` wrote, with PyTorch's reader that runs no code."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a damaged file asks
            found: Any = torch.load(place(path), map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        struct.error,
    ) as error:
        if "nsupported" in str(error):  # a class or an operation that is no tensor's
            raise UsageError(
                f"The weights '{path}' are not read: the file holds more than tensors "
                f"and could run any code. Nothing of it was run. {SAVE_STATE}"
            ) from error
        raise UsageError(
            f"The weights '{path}' cannot be read: the file is damaged or cut short."
        ) from error
    for name in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(part, Tensor)
        for name, part in found.items()
    )
    if not tensors or not found:
        raise UsageError(
            f"The weights '{path}' are no tensors by name, but "
            f"{type(found).__name__}. {SAVE_STATE}"
        )
    return {name: part.contiguous() for name, part in found.items()}


def load_weights(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Give a network the weights of a file; see `set_weights`."""
    return set_weights(module, read_weights(path), path)


def set_trunk_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str, *, head: str
) -> tuple[str, ...]:
    """Give a network weights by name, all but those of its last layer if need be.

    The last layer of a trunk is replaced anyway, so weights may be of a network that
    tells other classes apart, or has no last layer.

    Args:
        module: The network.
        tensors: As in its ``state_dict()``, in any precision.
        path: Where they are from, for messages.
        head: The name of the last layer in the network.

    Returns:
        What was done so that they fit.

    Raises:
        UsageError: As `set_weights`.
    """
    own = module.state_dict()
    state, notes = _renamed(dict(tensors), own, path)
    note = ""
    for name in (f"{head}.weight", f"{head}.bias"):
        if name in own and (name not in state or state[name].shape != own[name].shape):
            there = "is missing"
            if name in state and state[name].ndim:
                there = f"tells {len(state[name]):,} classes apart"
            note = (
                f"The last layer {there} in '{path}'; it is not used, because the "
                "target has classes of its own."
            )
            state[name] = own[name]
    notes += (note,) if note else ()
    halves = {t.dtype for t in state.values()} & {torch.float16, torch.bfloat16}
    if halves:
        kinds = " and ".join(sorted(str(k).removeprefix("torch.") for k in halves))
        notes += (f"The weights '{path}' are {kinds}; they are converted to float32.",)
    return notes + set_weights(module, state, path)


def set_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str
) -> tuple[str, ...]:
    """Give a network weights by name.

    Args:
        module: The network.
        tensors: As in its ``state_dict()``.
        path: Where they are from, for messages.

    Returns:
        What was done so that they fit: prefixes left out, numbers rounded.

    Raises:
        UsageError: Names, shapes or kinds of numbers differ.
    """
    own = module.state_dict()
    state, notes = _renamed(dict(tensors), own, path)
    for name in own.keys() - state.keys():
        # Files from before PyTorch 0.4.1, torchvision's among them, have no such count;
        # batch norm with a momentum never looks at it.
        if name.endswith(COUNT) and f"{name.removesuffix(COUNT)}.running_mean" in state:
            state[name] = own[name]
    kind = type(module).__name__
    missing, extra = (
        sorted(own.keys() - state.keys()),
        sorted(state.keys() - own.keys()),
    )
    if missing or extra:
        raise UsageError(
            f"The weights '{path}' do not fit {kind}: missing "
            f"{', '.join(missing[:5]) or 'nothing'}; not in the network "
            f"{', '.join(extra[:5]) or 'nothing'}."
        )
    for name, tensor in state.items():
        _check_tensor(
            name, tensor, own[name], f"The weights '{path}' do not fit {kind}"
        )
    narrowed = sorted(
        {
            f"{_kind(t)} to {_kind(own[n])}"
            for n, t in state.items()
            if _narrows(t, own[n])
        }
    )
    module.load_state_dict(state)
    if narrowed:
        notes += (f"The weights '{path}' were rounded: {', '.join(narrowed)}.",)
    return notes


def _renamed(
    state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path | str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Remove the prefixes of wrappers, if these keep the weights from fitting."""
    left_out: list[str] = []
    while state and not state.keys() <= own.keys():
        prefix = next(
            (p for p in PREFIXES if all(name.startswith(p) for name in state)), None
        )
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        left_out.append(prefix)
    if not left_out:
        return state, ()
    words = "".join(left_out)
    return state, (
        f"The names in '{path}' begin with '{words}', which a wrapper adds; "
        "it was left out.",
    )


def _check_tensor(name: str, tensor: Tensor, own: Tensor, message: str) -> None:
    if tensor.shape != own.shape:
        raise UsageError(
            f"{message}: '{name}' has shape {tuple(tensor.shape)} there and "
            f"{tuple(own.shape)} in the network."
        )
    if _family(tensor) != _family(own):
        raise UsageError(
            f"{message}: '{name}' holds {_kind(tensor)} there and {_kind(own)} in the "
            "network. Quantized weights need their scales: store the weights "
            "themselves."
        )


def _family(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "decimal" if tensor.is_floating_point() else "whole"


def _narrows(tensor: Tensor, own: Tensor) -> bool:
    return tensor.dtype != own.dtype and not bool(
        (tensor.to(own.dtype).to(tensor.dtype) == tensor).all()
    )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_pickle(path: Path) -> bool:
    """Tell whether the file is what torch.save writes.

    A zip archive, or a bare pickle in its older form.
    """
    try:
        with place(path).open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    if start[8:] == b"{":  # safetensors: a length of eight bytes, then JSON
        return False
    return start[:2] == b"PK" or start[:1] == b"\x80"
