"""Safe replacements for the functions and classes that a pickled numpy array names.

Numpy's own functions would accept object arrays and forged dtypes from the file; these accept
bytes of known length and dtype only.
"""

import re
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeGuard

import numpy as np

from hig.errors import UnsafeResultError

__all__ = ["FUNCTIONS", "KINDS", "PLAIN", "build", "is_numpy_scalar", "resolve"]

Array = np.ndarray[Any, np.dtype[Any]]

PLAIN = (type(None), bool, int, float, complex, str, bytes)
KINDS = "biufcSU"  # numpy kinds whose elements are plain bytes: no objects, no records


def is_numpy_scalar(value: object) -> TypeGuard[np.generic]:
    """Return whether the value is a numpy scalar of an exact numpy type."""
    return isinstance(value, np.generic) and type(value) is value.dtype.type


# Neither class is hashable: `resolve` does not look for them in sets or among the keys of a dict.


class _Dtype:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str, *_: object):
        if not re.fullmatch(rf"[{KINDS}]\d+", name):
            raise UnsafeResultError(f"an array of numpy dtype {name[:100]!r}")
        self.dtype = np.dtype(name)

    def set_state(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # all else follows from the name


class _Array:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: Array | None = None):
        self.array = array

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def build(target: object, state: object) -> None:
    """Set the state of an array or dtype; an UnsafeResultError for anything else."""
    if not isinstance(target, _Array | _Dtype):
        raise UnsafeResultError(f"a change to a {type(target).__name__}")
    target.set_state(state)


def _array(data: Any, dtype: _Dtype, shape: Any, order: Literal["C", "F"] = "C") -> Array:
    array: Array = np.ndarray(shape, dtype.dtype, data, order=order)
    # Strings of length 0 take no bytes, so that any number of them would fit: bound the number too.
    if array.nbytes != len(data) or array.size > max(len(data), 1):
        raise ValueError(f"array of shape {shape} and dtype {dtype.dtype} in {len(data)} bytes")
    if array.dtype.kind == "U":
        order_of_bytes: Any = dtype.dtype.byteorder
        codes = np.frombuffer(data, np.dtype("u4").newbyteorder(order_of_bytes))
        if codes.max(initial=0) > sys.maxunicode:
            raise ValueError("a string with a code point that is not a character")
    return array.copy(order="K")  # `data` is read-only


FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes under protocol 2
    ("__builtin__", "bytes"): lambda: b"",  # empty bytes under protocol 2
}
for _core in ("numpy.core", "numpy._core"):
    FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = lambda *_: _Array()
    FUNCTIONS[f"{_core}.multiarray", "scalar"] = lambda dtype, data: _array(data, dtype, ())[()]
    FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = lambda *arguments: _Array(_array(*arguments))
for _builtins in ("builtins", "__builtin__"):
    FUNCTIONS[_builtins, "complex"] = complex
    FUNCTIONS[_builtins, "set"] = set
    FUNCTIONS[_builtins, "frozenset"] = frozenset


def resolve(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """Replace the stand-ins by their arrays; `seen` guards against cycles."""
    value_type = type(value)
    if value_type in (*PLAIN, set, frozenset) or is_numpy_scalar(value):
        return value
    if value_type is _Array:
        return value.array
    if value_type not in (dict, list, tuple):
        raise TypeError(f"it holds a {value_type.__qualname__}")
    if id(value) in seen:
        if seen[id(value)][1] is None:
            raise ValueError("it holds a tuple that holds itself")
        return seen[id(value)][1]
    # The first entry keeps the object alive, so that its id is not reused.
    seen[id(value)] = (value, None if value_type is tuple else value)
    if value_type is tuple:
        seen[id(value)] = (value, tuple(resolve(item, seen) for item in value))
    for key, item in (
        value.items() if value_type is dict else enumerate(value) if value_type is list else ()
    ):
        value[key] = resolve(item, seen)
    return seen[id(value)][1]
