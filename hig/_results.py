"""Result files: dictionaries of plain Python values and numpy arrays, read without running code."""

import io
import os
import pickle
import pickletools
import re
import uuid
from pathlib import Path

import numpy as np

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_KINDS = "biufcSU"  # numpy kinds whose elements are bytes alone: no objects, no records
# What unpickling raises on bytes that are no (whole) pickle or ask for impossible values. An
# out-of-date escape in an old string opcode is a warning, hence an error where warnings are errors.
_GARBAGE = (pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, OverflowError)
_GARBAGE += (RecursionError, TypeError, ValueError, DeprecationWarning)


class UnsafeResultError(ValueError):
    """A result file asks for something outside plain Python and numpy; nothing of it was run."""


class CorruptResultError(ValueError):
    """A result file is truncated, is not a pickle, or does not hold one dictionary."""


def save_results(path, results):
    """Writes a result file so that the file there before survives a failure at any moment.

    The scalars among the results, `sim_par` first of all, are written beside it as `<stem>.txt`.

    Args:
        path: Where to write, as a str or path; missing folders are created.
        results: dict of None, bool, int, float, complex, str, bytes, lists, tuples, sets and
            dicts thereof, and of numpy arrays and scalars of boolean, number or string dtype.

    Raises:
        TypeError: A value is of another type. The text names its key path and the remedy.
        ValueError: `path` ends in `.txt`, the name of the text beside it.
    """
    path = Path(path)
    if path.suffix == ".txt":
        raise ValueError(f"path must not end in .txt, got {path}: the settings are written there")
    if type(results) is not dict:
        raise TypeError(f"results must be a dict, got {type(results).__qualname__}")
    _check(results, "results")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Protocol 4 keeps the file readable by every numpy; protocol 5 needs the newer `_frombuffer`.
    _replace(path, pickle.dumps(results, protocol=4))
    _replace(path.with_suffix(".txt"), "\n".join([*_scalar_lines(results), ""]).encode())


def load_results(path):
    """Reads a result file. No code from the file runs, whoever wrote it.

    Args:
        path: A file written by `save_results`, or any pickle of the same kinds of values.

    Returns:
        The dict of results; arrays keep their shape and dtype.

    Raises:
        FileNotFoundError: There is no such file; the text lists the files that are there.
        UnsafeResultError: The file asks for a function or class that is not on the short list
            of numpy's, or for an array of objects or records.
        CorruptResultError: The file is truncated, is not a pickle or holds no dict.
    """
    path = Path(path)
    if not path.exists():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.pickle"))[:10])
        raise FileNotFoundError(f"no result file {path}; in its folder: {there or 'none'}")
    data = path.read_bytes()
    try:
        # A pickle of a few bytes may ask for a memo of many gigabytes.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name.endswith("PUT") and argument > len(data):
                raise ValueError(f"memo index {argument} in a file of {len(data)} bytes")
        results = _resolve(_Unpickler(io.BytesIO(data)).load(), {})
        if type(results) is not dict:
            raise TypeError(f"it holds one {type(results).__qualname__}")
    except UnsafeResultError as error:
        raise UnsafeResultError(
            f"{path} asks for {error}, which a result file does not need; nothing of it was run. "
            "If its author is trusted, read it with pickle and write it with hig.save_results"
        ) from None
    except _GARBAGE as error:
        raise CorruptResultError(
            f"{path} ({len(data)} bytes) is not a whole result file: {error or type(error)}; "
            "run the experiment again, or restore the file"
        ) from error
    return results


def _check(value, where):
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            _check(key, f"key {key!r} of {where}")
            _check(item, f"{where}[{key!r}]")
    elif kind in (list, tuple, set, frozenset):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif kind is np.ndarray or _is_numpy_scalar(value):
        if value.dtype.kind not in _KINDS:
            raise TypeError(
                f"{where} has numpy dtype {value.dtype}; results hold booleans, numbers and "
                "strings: convert it, for example with .astype(float), or save it as a list"
            )
    elif kind not in _PLAIN:
        bases = {(base.__module__, base.__name__) for base in kind.__mro__}
        tensor = ("torch", "Tensor") in bases  # known by name: torch is not imported for this
        remedy = ".detach().cpu().numpy()" if tensor else "float(), str(), list() or numpy.array()"
        raise TypeError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}; results hold plain Python and "
            f"numpy values only: convert it with {remedy}"
        )


def _is_numpy_scalar(value):
    return isinstance(value, np.generic) and type(value) is value.dtype.type


def _replace(path, data):
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)  # os.replace: one atomic step within a folder
    finally:
        temporary.unlink(missing_ok=True)


def _scalar_lines(values, indent=""):
    for key, value in values.items():
        if type(value) in _PLAIN or _is_numpy_scalar(value):
            yield f"{indent}{key}: {' '.join(str(value).split())}"
    for key, value in values.items():
        lines = list(_scalar_lines(value, indent + "  ")) if type(value) is dict else []
        if lines:
            yield from (f"{indent}{key}:", *lines)


# Stand-ins for what a pickled array names. Numpy's own functions would take object arrays and
# forged dtypes from the file; these take bytes of known length and kind. None is hashable, so
# that none can hide in a set or among the keys of a dict.


class _Dtype:
    __hash__ = None

    def __init__(self, name, *_):
        if not re.fullmatch(rf"[{_KINDS}]\d+", name):
            raise UnsafeResultError(f"an array of numpy dtype {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])  # the only thing that the name leaves open


class _Array:
    __hash__ = None

    def __init__(self, array=None):
        self.array = array

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


class _Constructor:
    """What the file may call; a slot and no state, so that the file cannot rewire it."""

    __slots__ = ("construct",)
    __hash__ = None

    def __init__(self, construct):
        self.construct = construct

    def __call__(self, *arguments):
        return self.construct(*arguments)

    def __setstate__(self, state):
        raise UnsafeResultError("a change to a function")


def _array(data, dtype, shape, order="C"):
    array = np.ndarray(shape, dtype.dtype, data, order=order)
    if array.nbytes != len(data):
        raise ValueError(f"array of shape {shape} and dtype {dtype.dtype} in {len(data)} bytes")
    return array.copy(order="K")  # `data` is read-only


_ALLOWED = {
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


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise UnsafeResultError(f"{module}.{name}")
        return _Constructor(_ALLOWED[module, name])


def _resolve(value, seen):
    """Puts the arrays in the place of their stand-ins; `seen` guards against cycles."""
    kind = type(value)
    if kind in (*_PLAIN, set, frozenset) or _is_numpy_scalar(value):
        return value
    if kind is _Array:
        return value.array
    if kind not in (dict, list, tuple):
        raise TypeError(f"it holds a {kind.__qualname__}")
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = (value, value)  # the first keeps the id from being used again
    if kind is tuple:
        seen[id(value)] = (value, tuple(_resolve(item, seen) for item in value))
    for key, item in value.items() if kind is dict else enumerate(value) if kind is list else ():
        value[key] = _resolve(item, seen)
    return seen[id(value)][1]
