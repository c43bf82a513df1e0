"""Compile the fused kernels with the machine's C compiler, once, and load it.

The library lies in the user's cache folder (or ``$NABLAB_CACHE``). Its name holds a
hash of everything that went in: the source, the options, and what the compiler says of
itself and of this machine's processor. So a home folder shared by different machines is
safe. The name also holds a hash of the library's content, for loading a damaged file
could crash the process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from nablab.training.engine import Unsupported

_FOLDER = Path(__file__).parent
_HEADERS = ("blocks.h", "update.h", "job.h", "image_layers.h", "tiles.h")

_OPTIONS = (
    "-O3",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
)

# The first that the compiler accepts. GCC and clang prefer 256-bit vectors unless told
# otherwise; some clang versions for ARM know only -mcpu.
_MACHINE_OPTIONS = (
    ("-march=native", "-mprefer-vector-width=512"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)

# Compiling takes 2 s on one core; a compiler that waits for a license or a network disk
# must not hang us.
_TIMEOUT_SECONDS = 120


def load(real: str, source: str = "dense.c") -> ctypes.CDLL:
    """Load a kernel's library, compiled if the cache has none.

    Args:
        real: The type of every number in it.
        source: The kernel's file, beside this one.

    Returns:
        The library for numbers of type ``real``, ``"float"`` or ``"double"``.

    Raises:
        Unsupported: There is no C compiler, or it fails, or its library cannot be
            loaded.
    """
    return _load(real, source, str(cache_folder()), tuple(_compiler()))


def cache_folder() -> Path:
    """Return the folder where compiled kernels are kept.

    It is ``$NABLAB_CACHE/kernels``, or below the user's cache folder.
    """
    return (
        Path(os.environ.get("NABLAB_CACHE") or platformdirs.user_cache_dir("nablab"))
        / "kernels"
    )


@functools.cache
def _load(
    real: str, source: str, folder: str, compiler: tuple[str, ...]
) -> ctypes.CDLL:
    machine, description = _describe(compiler)
    options = (*_OPTIONS, *machine, f"-DREAL={real}")
    texts = [(_FOLDER / name).read_bytes() for name in (source, *_HEADERS)]
    key = _digest(*texts, repr((compiler, options)).encode(), description)
    known = _find(Path(folder), key)
    if known is not None:
        return _opened(known)
    if _is_writable(Path(folder)):
        return _opened(_build(compiler, options, _FOLDER / source, Path(folder), key))
    # Each process compiles for itself then. What is loaded stays, although its file
    # goes.
    with tempfile.TemporaryDirectory(prefix="nablab-") as scratch:
        return _opened(_build(compiler, options, _FOLDER / source, Path(scratch), key))


def _opened(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise Unsupported(f"the compiled kernel cannot be loaded: {error}") from error


def _compiler() -> list[str]:
    candidates = [shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]]
    for command in candidates:
        if command and shutil.which(command[0]):
            return command
    raise Unsupported("no C compiler found (tried $CC, cc, gcc and clang)")


def _describe(compiler: Sequence[str]) -> tuple[tuple[str, ...], bytes]:
    """Ask the compiler for the machine options it accepts and its predefined macros.

    The macros name the compiler's version and each instruction set that it will use.
    """
    for machine in _MACHINE_OPTIONS:
        result = _run([*compiler, *machine, "-E", "-dM", "-x", "c", os.devnull])
        if result.returncode == 0:
            return machine, result.stdout
    raise Unsupported(
        f"the C compiler '{shlex.join(compiler)}' does not work: "
        f"{_first_line(result.stderr)}"
    )


def _find(folder: Path, key: str) -> Path | None:
    """Find a library in the cache whose content is what its name says.

    Damaged ones are removed.
    """
    for library in sorted(folder.glob(f"{key}-*.so")):
        if library.stem == f"{key}-{_digest(library.read_bytes())}":
            return library
        library.unlink(missing_ok=True)
    return None


def _build(
    compiler: Sequence[str],
    options: Sequence[str],
    source: Path,
    folder: Path,
    key: str,
) -> Path:
    """Compile into the cache.

    The rename is atomic, so several processes may do this at once.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / "kernel.so"
        result = _run(
            [*compiler, *options, str(source), "-o", str(built), "-lm", "-pthread"]
        )
        if result.returncode != 0:
            raise Unsupported(
                f"the C compiler '{shlex.join(compiler)}' failed: "
                f"{_first_line(result.stderr)}"
            )
        library = folder / f"{key}-{_digest(built.read_bytes())}.so"
        built.replace(library)
    return library


def _is_writable(folder: Path) -> bool:
    """Tell whether the folder is there, made now if need be, and can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(
            f"the C compiler '{command[0]}' cannot be run: {error}"
        ) from error


def _first_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if "error" in line]
    return (errors or lines or ["no message"])[0]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:24]
