"""What a loop saves of the objects that it changes.

Their state becomes plain data in JSON and arrays, and is given back to the last bit.

A part of a state is anything with ``state_dict()`` and ``load_state_dict(...)`` (a
network, an optimizer, a class of the user's), a dataclass, or a generator of random
numbers. What it gives must be made of mappings, lists, tuples, arrays, tensors,
numbers, strings, truth values and None. Nothing is pickled.

PyTorch is not imported: a tensor can only occur where other code has imported it.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nablab.errors import UsageError, in_short

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

WHOLE = ""  # the name of a state that is one object
# JSON gives these back exactly, NaN and long integers too
PLAIN = (bool, int, float, str, type(None))
# What safetensors keeps under its own name; other arrays are kept as bytes, with their
# dtype in the JSON.
KEPT = {
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
}
CAN_BE_SAVED = (
    "It can be made of mappings, lists, tuples, NumPy arrays, tensors, numbers, "
    "strings, truth values and None"
)


@dataclass
class Packed:
    """Plain data, taken apart.

    Attributes:
        structure: Its shape and its small values, as JSON types.
        arrays: Its arrays by the name that the structure gives them, each in C order.
        copies: Whether the arrays stay as they are when the objects change.
    """

    structure: Any = None
    arrays: dict[str, Array] = field(default_factory=dict)
    copies: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


# Objects


def names_of(state: Any) -> list[str]:
    """Return the names of a state's parts; a single object has one empty name.

    Raises:
        UsageError: A part has no state that could be saved and restored.
    """
    return list(_parts(state))


def take(state: Any, *, copies: bool = True) -> Packed:
    """Take down the state of an object, or of several by name.

    Args:
        state: The object or objects.
        copies: Copy all arrays, for a state that is kept while the objects change.

    Raises:
        UsageError: It holds something that cannot be saved; the text names the entry.
    """
    parts = _parts(state)
    taken = {name: _taken(part, _path(name)) for name, part in parts.items()}
    if WHOLE in parts:
        return pack(taken[WHOLE], "state", copies=copies)
    packed = Packed(copies=copies)
    pairs = [
        [name, _packed(value, _path(name), packed)] for name, value in taken.items()
    ]
    packed.structure = {"mapping": pairs}
    return packed


def give(state: Any, packed: Packed) -> None:
    """Put what `take` took down back into the same objects.

    Raises:
        UsageError: An object does not take it.
    """
    parts = _parts(state)
    values = unpack(packed)
    for name, part in parts.items():
        try:
            _given(part, values if name == WHOLE else values[name], _path(name))
        except UsageError:
            raise
        except Exception as error:  # the user's own method may raise anything
            raise UsageError(
                f"{_path(name)} does not take back what it saved: {in_short(error)}. "
                "Mend load_state_dict, or start over with --fresh."
            ) from error


def _parts(state: Any) -> dict[str, Any]:
    """Return the objects of a state by name.

    A network that is a mapping, too (``nn.ModuleDict``), is one object.
    """
    if _is_part(state):
        return {WHOLE: state}
    if not isinstance(state, Mapping):
        raise UsageError(
            f"lab.steps cannot save state: {_kind(state)} has no state_dict() and "
            "load_state_dict(). Give an object that has both, a dataclass, a "
            "generator, or a mapping of names to such objects."
        )
    for name, part in state.items():
        if not isinstance(name, str) or not name:
            raise UsageError(
                f"lab.steps names the parts of a state by text, not by {name!r}."
            )
        if not _is_part(part):
            raise UsageError(
                f"lab.steps cannot save {_path(name)}: {_kind(part)} has no "
                "state_dict() and load_state_dict(), so it could not be given back on "
                "resuming. Hold it in a dataclass."
            )
    return dict(state)


def _is_part(part: Any) -> bool:
    if isinstance(part, type):
        return False
    both = callable(getattr(part, "state_dict", None)) and callable(
        getattr(part, "load_state_dict", None)
    )
    return both or _is_generator(part) or dataclasses.is_dataclass(part)


def _is_generator(part: Any) -> bool:
    return isinstance(
        part, (np.random.Generator, np.random.RandomState, random.Random)
    ) or ((torch := _torch()) is not None and isinstance(part, torch.Generator))


def _taken(part: Any, path: str) -> Any:
    """Return the state of one object as plain data.

    Parts inside a dataclass are taken down in their turn.
    """
    if callable(getattr(part, "state_dict", None)):
        return part.state_dict()
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    if isinstance(part, np.random.RandomState):
        return part.get_state(legacy=False)
    if isinstance(part, random.Random):
        return part.getstate()
    if _is_generator(part):
        return part.get_state()
    return {
        one.name: _taken(value, f"{path}.{one.name}") if _is_part(value) else value
        for one in dataclasses.fields(part)
        for value in [_field(part, one.name, path)]
    }


def _field(part: Any, name: str, path: str) -> Any:
    value = getattr(part, name)
    if part.__dataclass_params__.frozen and not _is_part(value):
        raise UsageError(
            f"lab.steps cannot save {path}.{name}: {type(part).__name__} is frozen, so "
            "it could not be given back on resuming. Leave out frozen=True."
        )
    return value


def _given(part: Any, value: Any, path: str) -> None:
    if callable(getattr(part, "load_state_dict", None)):
        part.load_state_dict(value)
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = value
    elif isinstance(part, np.random.RandomState):
        part.set_state(value)
    elif isinstance(part, random.Random):
        part.setstate(value)
    elif _is_generator(part):
        part.set_state(value)
    else:
        for one in dataclasses.fields(part):
            now = getattr(part, one.name)
            if _is_part(now):
                _given(now, value[one.name], f"{path}.{one.name}")
            else:
                setattr(part, one.name, value[one.name])


def _path(name: str) -> str:
    return "state" if name == WHOLE else f"state[{name!r}]"


# Plain data


def pack(value: Any, path: str, *, copies: bool = True) -> Packed:
    """Take plain data apart into JSON and arrays.

    Args:
        value: The data.
        path: What it is called in messages.
        copies: Copy all arrays.

    Raises:
        UsageError: It holds something else; the text names the entry.
    """
    packed = Packed(copies=copies)
    packed.structure = _packed(value, path, packed)
    return packed


def unpack(packed: Packed) -> Any:
    """Put plain data together again: equal values of equal types.

    The arrays may be written to.
    """
    return _unpacked(packed.structure, packed.arrays)


def _packed(value: Any, path: str, into: Packed) -> Any:
    """Return the JSON of a value.

    What is neither a list nor a plain value becomes an object whose first name tells
    its kind.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is list:
        return _packed_items(value, path, into)
    if kind is tuple:
        return {"tuple": _packed_items(value, path, into)}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Mapping):
        return _packed_mapping(value, path, into)
    if isinstance(value, np.generic):
        return {"scalar": _packed_array(np.asarray(value), path, into)}
    if kind is np.ndarray:
        return {"array": _packed_array(value, path, into)}
    if _is_tensor(value):
        return {"tensor": _packed_tensor(value, path, into)}
    raise UsageError(f"lab.steps cannot save {path}: {_kind(value)}. {CAN_BE_SAVED}.")


def _packed_items(value: Any, path: str, into: Packed) -> list[Any]:
    return [_packed(item, f"{path}[{place}]", into) for place, item in enumerate(value)]


def _packed_mapping(
    value: Mapping[Any, Any], path: str, into: Packed
) -> dict[str, Any]:
    pairs = []
    for key, item in value.items():
        if type(key) not in PLAIN and not (
            type(key) is tuple and all(type(part) in PLAIN for part in key)
        ):
            raise UsageError(
                f"lab.steps cannot save {path} because of its key {key!r}, "
                f"{_kind(key)}. Keys can be text, numbers, truth values, None, and "
                "tuples of these."
            )
        pairs.append(
            [_packed(key, path, into), _packed(item, f"{path}[{key!r}]", into)]
        )
    if not isinstance(value, OrderedDict):
        return {"mapping": pairs}
    found: dict[str, Any] = {"ordered": pairs}
    # the versions of a network's modules, without which old ones are assumed
    if hasattr(value, "_metadata"):
        found["versions"] = _packed(value._metadata, f"{path}._metadata", into)
    return found


def _packed_array(array: Array, path: str, into: Packed) -> dict[str, Any]:
    if array.dtype.hasobject or array.dtype.names:
        raise UsageError(
            f"lab.steps cannot save {path}: it is an array of {array.dtype}. Arrays "
            "can hold numbers, truth values, texts and dates; keep the fields of a "
            "structured array in arrays of their own."
        )
    # The order of the numbers in memory decides how BLAS adds them up, and so the last
    # digits.
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    own = np.array(
        array.T if turned else array, order="C", copy=True if into.copies else None
    )
    facts: dict[str, Any] = {"name": str(len(into.arrays))}
    if turned:
        facts["turned"] = True
    if own.dtype.name not in KEPT or not own.dtype.isnative:
        facts |= {"dtype": own.dtype.str, "shape": list(own.shape)}
        own = np.frombuffer(own.tobytes(), dtype=np.uint8)
    into.arrays[facts["name"]] = own
    return facts


def _packed_tensor(tensor: Any, path: str, into: Packed) -> dict[str, Any]:
    if tensor.layout is not _torch().strided or tensor.is_quantized:
        raise UsageError(
            f"lab.steps cannot save {path}: it is a sparse or quantized tensor."
        )
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    facts: dict[str, Any] = {
        "dtype": str(plain.dtype).removeprefix("torch."),
        "shape": list(plain.shape),
    }
    if str(tensor.device) != "cpu":
        facts["device"] = str(tensor.device)
    if tensor.requires_grad:
        facts["requires_grad"] = True
    data = plain.reshape(-1).view(_torch().uint8).numpy()
    return facts | {"bytes": _packed_array(data, path, into)}


def _unpacked(structure: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(structure, list):
        return [_unpacked(item, arrays) for item in structure]
    if not isinstance(structure, dict):
        return structure
    kind = next(iter(structure))
    inner = structure[kind]
    return _MAKERS[kind](inner, structure, arrays)


def _unpacked_tuple(inner: Any, structure: Any, arrays: Mapping[str, Array]) -> Any:
    return tuple(_unpacked(item, arrays) for item in inner)


def _unpacked_complex(inner: Any, structure: Any, arrays: Mapping[str, Array]) -> Any:
    return complex(*inner)


def _unpacked_mapping(inner: Any, structure: Any, arrays: Mapping[str, Array]) -> Any:
    return {_unpacked(key, arrays): _unpacked(item, arrays) for key, item in inner}


def _unpacked_ordered(inner: Any, structure: Any, arrays: Mapping[str, Array]) -> Any:
    found: Any = OrderedDict(_unpacked_mapping(inner, structure, arrays))
    if "versions" in structure:
        found._metadata = _unpacked(structure["versions"], arrays)
    return found


def _unpacked_array(facts: Any, structure: Any, arrays: Mapping[str, Array]) -> Array:
    array = arrays[facts["name"]]
    if "dtype" in facts:
        array = np.frombuffer(array.tobytes(), dtype=np.dtype(facts["dtype"])).reshape(
            facts["shape"]
        )
    own = np.array(array, copy=True)
    return own.T if facts.get("turned") else own


def _unpacked_scalar(facts: Any, structure: Any, arrays: Mapping[str, Array]) -> Any:
    return _unpacked_array(facts, structure, arrays)[()]


def _unpacked_tensor(facts: Any, structure: Any, arrays: Mapping[str, Array]) -> Any:
    import torch  # only code that had imported it can have saved the tensor

    tensor = torch.empty(facts["shape"], dtype=getattr(torch, facts["dtype"]))
    if tensor.numel():  # PyTorch cannot view an empty tensor as bytes
        data = torch.from_numpy(_unpacked_array(facts["bytes"], structure, arrays))
        tensor.view(-1).view(torch.uint8).copy_(data)
    tensor = tensor.to(facts.get("device", "cpu"))
    return tensor.requires_grad_() if facts.get("requires_grad") else tensor


_MAKERS = {
    "tuple": _unpacked_tuple,
    "complex": _unpacked_complex,
    "mapping": _unpacked_mapping,
    "ordered": _unpacked_ordered,
    "array": _unpacked_array,
    "scalar": _unpacked_scalar,
    "tensor": _unpacked_tensor,
}


def _torch() -> Any:
    """Return PyTorch if it has been imported: else nothing here can be a tensor."""
    return sys.modules.get("torch")


def _is_tensor(value: Any) -> bool:
    torch = _torch()
    return torch is not None and isinstance(value, torch.Tensor)


def _kind(value: Any) -> str:
    """Say what a value is, for a message.

    >>> _kind({1})
    'it is of type set'
    """
    if isinstance(value, type):
        return f"it is the class {value.__name__} itself"
    return f"it is of type {type(value).__name__}"
