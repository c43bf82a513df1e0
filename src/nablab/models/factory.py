"""Bring your own network: ``package.module:factory`` or ``path/to/file.py:factory``.

A factory is a function without arguments that returns a fresh `torch.nn.Module`. It is
called once for every seed, so its random weights must come from torch's global
generator, as PyTorch's layers do.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nablab.errors import UsageError, in_short, unknown
from nablab.files.places import is_file, place
from nablab.importing import fresh_imports, modules, user_code
from nablab.text.naming import sentence

if TYPE_CHECKING:
    from torch import Tensor, nn

FORM = "Write package.module:factory or path/to/file.py:factory."


def load_factory(spec: str) -> Callable[[], nn.Module]:
    """Load a user's factory; what it returns on each call is checked.

    Modules are looked up as Python does, with the current folder first; a file may
    import its neighbors.

    Args:
        spec: ``package.module:factory`` or ``path/to/file.py:factory``.

    Returns:
        A function that calls the factory and raises `UsageError` if the factory raises,
        returns something else than a `torch.nn.Module`, or a module without parameters.

    Raises:
        UsageError: No colon, no such file or module, an error inside it, no such name,
            or not callable.
    """
    factory = load_function(spec)
    folder = _folder(_split(spec)[0])

    def build() -> nn.Module:
        with fresh_imports.importing(folder):  # an import may stand inside the factory
            return _checked(factory, spec)

    return build


def load_function(spec: str) -> Callable[..., Any]:
    """Load a user's function, such as a loss of (output, target), without calling it.

    Args:
        spec: ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        UsageError: No colon, no such file or module, an error inside it, no such name,
            or not callable.
    """
    source, name = _split(spec)
    module = (
        _load_file(Path(source), spec)
        if source.endswith(".py")
        else _load_module(source, spec)
    )
    if not hasattr(module, name):
        public = [
            key
            for key in vars(module)
            if not key.startswith("_") and callable(vars(module)[key])
        ]
        raise unknown(f"name in {source}", name, public)
    function: Callable[..., Any] = getattr(module, name)
    if not callable(function):
        raise UsageError(
            f"'{name}' in {source} is a {type(function).__name__}, not a function."
        )
    return function


def check_output(module: nn.Module, x: Tensor, expected_shape: Sequence[int]) -> None:
    """Raise `UsageError` unless ``module(x)`` is a tensor of the expected shape.

    Draws no random number.

    Args:
        module: The network; its mode and the state of the random generator are
            restored.
        x: A batch of inputs.
        expected_shape: The shape that the output must have.
    """
    expected = tuple(expected_shape)
    output = output_of(
        module, x, wanted=f"it must return one tensor of shape {expected}"
    )
    if tuple(output.shape) != expected:
        raise UsageError(
            f"The network {type(module).__name__} turns an input of shape "
            f"{tuple(x.shape)} into {tuple(output.shape)}; it must return {expected}. "
            "Change its last layer."
        )


def output_of(module: nn.Module, x: Tensor, *, wanted: str, kind: str = "") -> Tensor:
    """Return a network's output for a batch, in eval mode and without gradients.

    Draws no random number.

    Args:
        module: The network; its mode and the state of the random generator are
            restored.
        x: A batch of inputs.
        wanted: What it should return, for messages: a sentence without capital and full
            stop.
        kind: What the network is called in messages [default: its class].

    Raises:
        UsageError: It raises an error, or returns something else than a tensor.
    """
    import torch

    kind = kind or type(module).__name__

    was_training = {part: part.training for part in module.modules()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            output: Any = module.eval()(x)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"The network {kind} fails on an input of shape "
                f"{tuple(x.shape)}: {in_short(error)}. {sentence(wanted)}."
            ) from error
        finally:
            for part, training in was_training.items():
                part.training = training
    if not isinstance(output, torch.Tensor):
        raise UsageError(
            f"The network {kind} returns a {type(output).__name__}; {wanted}."
        )
    return output


def source_hash(spec: str) -> str:
    """Return the SHA-256 of the code that the factory is made of.

    Empty where there is no file (a built-in module).

    It covers the factory's file, what that imports from beside it, and the data files
    that these name; of an installed package the one file. See
    `nablab.importing.user_code`.

    Args:
        spec: The factory, as ``package.module:factory`` or ``path/to/file.py:factory``.

    Raises:
        UsageError: As `load_factory` for a spec without a colon or a missing file or
            module.
    """
    code = _code(spec)
    return "" if code is None else code.sha256


def unseen(spec: str) -> tuple[str, ...]:
    """List what decides the factory's networks but is not covered by `source_hash`.

    Each comes with its file and line.

    Args:
        spec: The factory, as in `source_hash`.

    Raises:
        UsageError: As `source_hash`.
    """
    code = _code(spec)
    return () if code is None else code.unseen


def _code(spec: str) -> user_code.Code | None:
    source, _ = _split(spec)
    if source.endswith(".py"):
        path = _existing(Path(source), spec)
        return user_code.code_of(path, folder=path.resolve().parent)
    try:
        return _code_of_module(source)
    except ModuleNotFoundError as error:
        raise UsageError(f"There is no module '{source}' (from '{spec}').") from error


def _code_of_module(name: str) -> user_code.Code | None:
    """Return the code of a module; None if it is built in.

    Raises:
        ModuleNotFoundError: There is no such module.
    """
    found = modules.find_module(name, Path.cwd())
    return user_code.code_of(found, folder=Path.cwd(), module=name) if found else None


def _folder(source: str) -> Path:
    """Return the folder where a factory's imports are looked up first."""
    return (
        Path(source).expanduser().resolve().parent
        if source.endswith(".py")
        else Path.cwd()
    )


def _split(spec: str) -> tuple[str, str]:
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name.isidentifier():
        raise UsageError(f"'{spec}' does not name a factory. {FORM}")
    return source, name


def _existing(path: Path, spec: str) -> Path:
    path = place(path)
    if not is_file(path):
        raise UsageError(
            f"There is no file '{path}' (from '{spec}', looked for in "
            f"{Path.cwd()}). {FORM}"
        )
    return path


def _load_file(path: Path, spec: str) -> ModuleType:
    path = _existing(path, spec).resolve()
    name = (
        f"nablab_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    )
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UsageError(f"'{path}' is not a Python file. {FORM}")
    module = importlib.util.module_from_spec(found)
    code = user_code.code_of(path, folder=path.parent)
    fresh_imports.forget_stale(code)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        with fresh_imports.importing(path.parent):
            found.loader.exec_module(module)
    # sys.exit() in a user's file must not end nablab in silence
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed("Loading", str(path), error) from error
    fresh_imports.remember(code)
    return module


def _load_module(name: str, spec: str) -> ModuleType:
    with fresh_imports.importing(Path.cwd()):
        try:
            code = _code_of_module(name)
            if code:
                fresh_imports.forget_stale(code)
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise UsageError(
                    f"There is no module '{error.name}' (from '{spec}', looked for in "
                    f"{Path.cwd()} and among the installed packages). {FORM}"
                ) from None
            raise _failed("Importing", name, error) from error
        except (Exception, SystemExit) as error:
            raise _failed("Importing", name, error) from error
    if code:
        fresh_imports.remember(code)
    return module


def _checked(factory: Callable[[], Any], spec: str) -> nn.Module:
    from torch import nn
    from torch.nn.parameter import is_lazy

    try:
        module = factory()
    except (Exception, SystemExit) as error:
        raise _failed("Calling", f"{spec}()", error) from error
    if not isinstance(module, nn.Module):
        what = (
            "the class itself, not an instance"
            if isinstance(module, type)
            else f"an object of type {type(module).__name__}"
        )
        raise UsageError(f"{spec}() returned {what}; it must return a torch.nn.Module.")
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise UsageError(
            f"{spec}() returned a network whose layers have no size yet ({lazy[0]}). "
            "Let it call the network on one batch of inputs before it returns it, or "
            "give the layers their sizes."
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UsageError(
            f"{spec}() returned a network without trainable parameters: there is "
            "nothing to train."
        )
    return module


def _failed(doing: str, what: str, error: BaseException) -> UsageError:
    return UsageError(f"{doing} {what} raised {in_short(error)}.")
