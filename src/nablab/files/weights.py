"""The weights of a measurement, from safetensors files, held against the network.

Names, shapes, kinds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.files.places import place

# What wrappers put before the names of a network's tensors: torch.compile,
# DataParallel, and FSDP.
PREFIXES = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")
CONVERT = (
    "Convert it once, where you trust the file: from safetensors.torch import "
    "save_file; save_file(torch.load(PATH, weights_only=True), 'weights.safetensors')."
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name.

    Raises:
        UsageError: It cannot be read, or it is one of PyTorch's pickles, which could
            run any code.
    """
    try:
        return load_file(place(path))
    except (OSError, SafetensorError) as error:
        message = f"The weights '{path}' cannot be read as safetensors"
        if _is_pickle(path):
            raise UsageError(
                f"{message}: this is a file of torch.save, which is not opened, as it "
                f"could run any code. {CONVERT}"
            ) from error
        reason = str(error).removeprefix("Error while deserializing ").rstrip(".")
        raise UsageError(f"{message}: {reason}.") from error


def load_weights(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Give a network the weights of a file; see `set_weights`."""
    return set_weights(module, read_weights(path), path)


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
            start = file.read(2)
    except OSError:
        return False
    return (start == b"PK" and zipfile.is_zipfile(place(path))) or start[:1] == b"\x80"
