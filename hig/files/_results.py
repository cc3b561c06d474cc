"""Result files: dictionaries of plain Python values and numpy arrays, read without running code."""

import pickle
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any

import numpy as np

from hig.arguments import check_path
from hig.errors import CorruptResultError, UnsafeResultError, described
from hig.files._atomic_write import write_atomically
from hig.files._numpy_pickle import FUNCTIONS, KINDS, PLAIN, build, is_numpy_scalar, resolve
from hig.files._safe_unpickler import unpickle

__all__ = ["load_results", "save_results"]

# Largest size of results with all shared parts written out, per byte of the file and in any file.
# A few hundred bytes may hold nested lists that are far too large to print or convert.
EXPANSION, ALWAYS_EXPANDED = 1000, 1_000_000


def save_results(path: str | PathLike[str], results: dict[Any, Any]) -> None:
    """Write a result file so that an existing one survives a failure at any moment.

    The scalars among the results, such as those of `sim_par`, are also written to `<stem>.txt`
    next to it.

    Args:
        path: Path of the file, as a str or path; missing folders are created.
        results: dict of None, bool, int, float, complex, str, bytes, lists, tuples, sets and
            dicts thereof, and of numpy arrays and scalars of boolean, number or string dtype.

    Raises:
        TypeError: A value is of another type. The text names its key path and the remedy.
        ValueError: `path` ends in `.txt`, the name of the text file; the results contain
            themselves or are nested too deeply, or repeat the same values so often that
            `load_results` would refuse them.
    """
    path = check_path(path)
    if path.suffix == ".txt":
        raise ValueError(f"path must not end in .txt, got {path}: the settings are written there")
    if type(results) is not dict:
        raise TypeError(
            f"results must be a dict, got {described(results)}; such as {{'results': ...}}"
        )
    try:
        _check(results, "results")
        # Protocol 4 keeps the file readable by every numpy; protocol 5 needs the newer
        # `_frombuffer`.
        data = pickle.dumps(results, protocol=4)
        _check_expansion(results, len(data))
        lines = "\n".join([*_scalar_lines(results), ""])
    except RecursionError:
        raise ValueError(
            "results must not hold themselves, or lists in lists some hundred levels deep; save "
            "copies of what is shared, or flatten it"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    write_atomically(path.with_suffix(".txt"), lines.encode(errors="backslashreplace"))


def load_results(path: str | PathLike[str]) -> dict[Any, Any]:
    """Read a result file without running code from it, whoever wrote it.

    Args:
        path: A file written by `save_results`, or any pickle of the same kinds of values.

    Returns:
        The dict of results; arrays keep their shape and dtype.

    Raises:
        FileNotFoundError: There is no such file; the text lists the files that are there.
        IsADirectoryError: The path is that of a folder; the text lists the result files in it.
        UnsafeResultError: The file names a function or class that is not on the short list of
            numpy's, or holds an array of objects or records.
        CorruptResultError: The file is truncated, is not a pickle or does not hold a dict; or its
            values contain themselves, or repeat out of proportion to the size of the file.
    """
    path = check_path(path)
    if not path.exists():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.pickle"))[:10])
        raise FileNotFoundError(f"no result file {path}; in its folder: {there or 'none'}")
    if path.is_dir():
        there = ", ".join(sorted(file.name for file in path.glob("*.pickle"))[:10])
        raise IsADirectoryError(f"{path} is a folder; give a result file, in it: {there or 'none'}")
    data = path.read_bytes()
    try:
        results = resolve(unpickle(data, FUNCTIONS, build), {})
        if type(results) is not dict:
            raise TypeError(f"it holds one {type(results).__qualname__}")
        _check_expansion(results, len(data))
    except UnsafeResultError as error:
        raise UnsafeResultError(
            f"{path} asks for {error}, which a result file does not need; nothing of it was run. "
            "If its author is trusted, read it with pickle and write it with hig.save_results"
        ) from None
    except (RecursionError, TypeError, ValueError) as error:
        raise CorruptResultError(
            f"{path} ({len(data)} bytes) is not a whole result file: {error}; "
            "run the experiment again, or restore the file"
        ) from error
    return results


def _check(value: Any, where: str) -> None:
    value_type = type(value)
    if value_type is dict:
        for key, item in value.items():
            name = _text(repr, key)
            _check(key, f"key {name} of {where}")
            _check(item, f"{where}[{name}]")
    elif value_type in (list, tuple, set, frozenset):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif value_type is np.ndarray or is_numpy_scalar(value):
        if value.dtype.kind not in KINDS:
            raise TypeError(
                f"{where} has numpy dtype {value.dtype}; results hold booleans, numbers and "
                "strings: convert it, for example with .astype(float), or save it as a list"
            )
    elif value_type not in PLAIN:
        bases = {(base.__module__, base.__name__) for base in value_type.__mro__}
        tensor = ("torch", "Tensor") in bases  # known by name: torch is not imported for this
        remedy = ".detach().cpu().numpy()" if tensor else "float(), str(), list() or numpy.array()"
        raise TypeError(
            f"{where} is a {value_type.__module__}.{value_type.__qualname__}; results hold plain "
            f"Python and numpy values only: convert it with {remedy}"
        )


def _check_expansion(results: dict[Any, Any], size: int) -> None:
    if _expanded(results, {}) > EXPANSION * size + ALWAYS_EXPANDED:
        raise ValueError("the results repeat their parts to far more than a file of them holds")


def _expanded(value: Any, sizes: dict[int, int]) -> int:
    """Count values, and bytes of arrays, strings and integers, as often as they occur.

    ``sizes`` has the sizes of containers by id, 0 while they are being counted.
    """
    value_type = type(value)
    if value_type not in (dict, list, tuple, set, frozenset):
        return 1 + _bytes(value)
    size = sizes.get(id(value))
    if size == 0:
        raise ValueError(f"it holds a {value_type.__name__} that holds itself")
    if size is None:
        size, sizes[id(value)] = 1, 0
        for item in [*value, *value.values()] if value_type is dict else value:
            size += _expanded(item, sizes)  # one frame per level, as in saving: the same limit
        sizes[id(value)] = size
    return size


def _bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if type(value) is int:
        return value.bit_length() // 8
    return len(value) if isinstance(value, str | bytes) else 0


def _scalar_lines(values: dict[Any, Any], indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        if type(value) in PLAIN or is_numpy_scalar(value):
            yield f"{indent}{_text(str, key)}: {' '.join(_text(str, value).split())}"
    for key, value in values.items():
        lines = list(_scalar_lines(value, indent + "  ")) if type(value) is dict else []
        if lines:
            yield from (f"{indent}{_text(str, key)}:", *lines)


def _text(convert: Callable[[Any], str], value: Any) -> str:
    try:
        return convert(value)
    except ValueError:  # Python refuses to print integers of thousands of digits in decimal
        return hex(value) if type(value) is int else f"a {type(value).__name__} of large numbers"
