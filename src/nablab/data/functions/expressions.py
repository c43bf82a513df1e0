"""Functions of x that a user writes, such as ``sin(5*pi*x)/x + 1``.

Parsed, never evaluated as Python.

The text becomes a syntax tree, every node of the tree must be on a short list, and
NumPy computes the rest in float64. A name that is not on the list, an attribute, a
string or a call of anything else is an error before any number is computed.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nablab.errors import UsageError, unknown

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]

LONGEST_TEXT = 200  # characters; more is a mistake or an attack on the parser
DEEPEST_TREE = 40  # Python's own stack holds about 1,000

CONSTANTS: Mapping[str, float] = {"pi": np.pi, "e": np.e}


def sinc(x: Array) -> Array:
    """Compute sin(x)/x, with its limit 1 at 0 (not NumPy's sin(πx)/(πx))."""
    return np.asarray(np.sinc(x / np.pi), dtype=np.float64)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


FUNCTIONS: Mapping[str, tuple[int, Callable[..., Array]]] = {
    "sin": (1, np.sin),
    "cos": (1, np.cos),
    "tan": (1, np.tan),
    "sinc": (1, sinc),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "sqrt": (1, np.sqrt),
    "abs": (1, np.abs),
    "sign": (1, np.sign),
    "tanh": (1, np.tanh),
    "relu": (1, _relu),
    "floor": (1, np.floor),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
}

_OPERATORS: Mapping[type[ast.AST], Callable[..., Array]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
}

ALLOWED = (
    f"numbers, x, {', '.join(CONSTANTS)}, + - * / **, parentheses, "
    f"and the functions {', '.join(FUNCTIONS)} (min and max of two values)"
)


def parse_expression(text: str) -> Function:
    """Compile an expression of ``x`` to a function of a float64 array.

    Where the expression has no value (a division by zero, the logarithm of a negative
    number, an overflow) the function returns NaN or infinity and stays silent: the
    caller decides.

    Args:
        text: At most 200 characters of numbers, ``x``, ``pi``, ``e``, ``+ - * / **``,
            parentheses and the functions in `FUNCTIONS`.

    Raises:
        UsageError: The text does not parse, or holds something that is not on the list.

    >>> parse_expression("x**2 - 1")(np.array([0.0, 3.0]))
    array([-1.,  8.])
    """
    if len(text) > LONGEST_TEXT:
        raise UsageError(
            f"An expression has at most {LONGEST_TEXT} characters; this "
            f"one has {len(text)}."
        )
    try:
        with warnings.catch_warnings():
            # Python warns of "1if" and the like; we raise instead
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        where = (
            f" near character {error.offset}"
            if isinstance(error, SyntaxError) and error.offset
            else ""
        )
        raise UsageError(
            f"'{text}' is not an expression{where}. It may hold {ALLOWED}."
        ) from None
    _check(tree, text, depth=0)

    def function(x: Array) -> Array:
        x = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            return np.array(np.broadcast_to(_evaluate(tree, x), x.shape))

    return function


def _check(node: ast.AST, text: str, depth: int) -> None:
    """Walk the tree and refuse whatever is not on the list."""
    if depth > DEEPEST_TREE:
        raise UsageError(
            f"'{text}' is nested more than {DEEPEST_TREE} levels deep. "
            "Write it flatter."
        )
    for child in _children(node, text):
        _check(child, text, depth + 1)


def _children(node: ast.AST, text: str) -> list[ast.expr]:
    """Return the operands of one allowed node."""
    match node:
        case ast.Constant(value=value) if isinstance(
            value, (int, float)
        ) and not isinstance(value, bool):
            return []
        case ast.Name(id=name):
            if name == "x" or name in CONSTANTS:
                return []
            if name in FUNCTIONS:
                raise UsageError(
                    f"'{name}' in '{text}' needs an argument, such as {name}(x)."
                )
            raise unknown(f"name in '{text}'", name, ["x", *CONSTANTS, *FUNCTIONS])
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return [operand]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
            return [left, right]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            _check_call(name, len(arguments), text)
            return arguments
    raise _refused(node, text)


def _check_call(name: str, given: int, text: str) -> None:
    if name not in FUNCTIONS:
        raise unknown(f"function in '{text}'", name, FUNCTIONS)
    arity = FUNCTIONS[name][0]
    if given != arity:
        raise UsageError(
            f"{name} in '{text}' takes {arity} value{'s' * (arity > 1)}, not {given}."
        )


def _refused(node: ast.AST, text: str) -> UsageError:
    piece = ast.get_source_segment(text.strip(), node) or ast.unparse(node)
    power = (
        " A power is written x**2."
        if isinstance(getattr(node, "op", None), ast.BitXor)
        else ""
    )
    return UsageError(
        f"'{piece}' in '{text}' is not allowed.{power} An expression may "
        f"hold {ALLOWED}."
    )


def _evaluate(node: ast.AST, x: Array) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            # floats overflow to infinity; Python's integers would grow
            return np.float64(value)
        case ast.Name(id=name):
            return x if name == "x" else np.float64(CONSTANTS[name])
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_evaluate(operand, x))
        case ast.BinOp(op=op, left=left, right=right):
            return _OPERATORS[type(op)](_evaluate(left, x), _evaluate(right, x))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name][1](
                *(_evaluate(argument, x) for argument in arguments)
            )
    raise AssertionError("unreachable: the tree was checked")
