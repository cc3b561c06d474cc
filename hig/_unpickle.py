"""Unpickling that can build plain Python and numpy arrays, and nothing else."""

import pickle
import re
from collections.abc import Callable
from typing import Any, Literal, TypeGuard

import numpy as np

from hig._errors import UnsafeResultError

__all__ = ["KINDS", "PLAIN", "Unpickler", "is_numpy_scalar", "resolve"]

Array = np.ndarray[Any, np.dtype[Any]]

PLAIN = (type(None), bool, int, float, complex, str, bytes)
KINDS = "biufcSU"  # numpy kinds whose elements are bytes alone: no objects, no records


def is_numpy_scalar(value: object) -> TypeGuard[np.generic]:
    """Whether the value is a numpy scalar of an exact numpy type."""
    return isinstance(value, np.generic) and type(value) is value.dtype.type


# Stand-ins for what a pickled array names. Numpy's own functions would take object arrays and
# forged dtypes from the file; these take bytes of known length and kind. None is hashable, so
# that none can hide in a set or among the keys of a dict.


class _Dtype:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str, *_: object):
        if not re.fullmatch(rf"[{KINDS}]\d+", name):
            raise UnsafeResultError(f"an array of numpy dtype {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the only thing that the name leaves open


class _Array:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: Array | None = None):
        self.array = array

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


class _Constructor:
    """What the file may call; a slot and no state, so that the file cannot rewire it."""

    __slots__ = ("construct",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, construct: Callable[..., Any]):
        self.construct = construct

    def __call__(self, *arguments: Any) -> Any:
        return self.construct(*arguments)

    def __setstate__(self, state: object) -> None:
        raise UnsafeResultError("a change to a function")


def _array(data: Any, dtype: _Dtype, shape: Any, order: Literal["C", "F"] = "C") -> Array:
    array: Array = np.ndarray(shape, dtype.dtype, data, order=order)
    if array.nbytes != len(data):
        raise ValueError(f"array of shape {shape} and dtype {dtype.dtype} in {len(data)} bytes")
    return array.copy(order="K")  # `data` is read-only


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes under protocol 2,
    ("__builtin__", "bytes"): lambda: b"",  # which has another way for none
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = lambda *_: _Array()
    _ALLOWED[f"{_core}.multiarray", "scalar"] = lambda dtype, data: _array(data, dtype, ())[()]
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = lambda *given: _Array(_array(*given))
for _builtins in ("builtins", "__builtin__"):
    _ALLOWED.update({(_builtins, kind.__name__): kind for kind in (complex, set, frozenset)})


class Unpickler(pickle.Unpickler):
    """Unpickles plain Python and stand-ins for arrays; raises `UnsafeResultError` otherwise."""

    def find_class(self, module: str, name: str) -> _Constructor:
        """The stand-in for a global that a pickled array names."""
        if (module, name) not in _ALLOWED:
            raise UnsafeResultError(f"{module}.{name}")
        return _Constructor(_ALLOWED[module, name])


def resolve(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """Puts the arrays in the place of their stand-ins; `seen` guards against cycles."""
    kind = type(value)
    if kind in (*PLAIN, set, frozenset) or is_numpy_scalar(value):
        return value
    if kind is _Array:
        return value.array
    if kind not in (dict, list, tuple):
        raise TypeError(f"it holds a {kind.__qualname__}")
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = (value, value)  # the first keeps the id from being used again
    if kind is tuple:
        seen[id(value)] = (value, tuple(resolve(item, seen) for item in value))
    for key, item in value.items() if kind is dict else enumerate(value) if kind is list else ():
        value[key] = resolve(item, seen)
    return seen[id(value)][1]
