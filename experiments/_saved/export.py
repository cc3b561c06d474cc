"""Result files for whoever does not want pickles: as JSON, or as NPZ, numpy's archive of arrays.

NPZ files hold arrays and numbers, those of nested dictionaries under keys with dots, such as
sim_par.lr; lists of numbers are arrays there. Texts are left out: JSON files hold everything,
arrays as nested lists. NaN and infinite numbers, which JSON has not, are the texts "NaN",
"Infinity" and "-Infinity", which float() reads; a complex number is the list of its two parts,
bytes are a text in base64, and tuples and sets are lists.
"""

import argparse
import base64
import io
import json
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments._saved.folders import make_folder
from experiments._saved.result_files import ERRORS, ResultFileError, fail, files_in, note, read

# Exceptions of the libraries for values that their formats do not have.
_FAILURES = (OverflowError, RecursionError, ValueError, struct.error)


def as_json(results: Mapping[object, object]) -> bytes:
    """Results as JSON in UTF-8.

    Raises:
        ResultFileError: Two keys of one dict are the same as texts.
    """
    plain = _plain(results, "")
    text = json.dumps(plain, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # half pairs, as JSON itself writes them


def as_npz(results: Mapping[object, object]) -> tuple[bytes, list[str]]:
    """Arrays and numbers as an archive that ``numpy.load`` reads without pickle.

    Returns also the keys that are left out.

    Raises:
        ResultFileError: Two values would have the same key.
    """
    arrays: dict[str, np.ndarray] = {}
    left_out = []
    for key, value in _flat(results, ""):
        array = _array(value)
        if array is None:
            left_out.append(key)
        elif key in arrays:
            raise ResultFileError(f"two values have the key '{key}'; rename one, or take --to json")
        else:
            arrays[key] = array
    file = io.BytesIO()
    # Not by numpy.savez, to which some keys would be arguments.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return file.getvalue(), left_out


def _flat(value: object, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _array(value: object) -> np.ndarray | None:
    """Arrays as they are, numbers and lists of them as arrays, None for everything else."""
    if isinstance(value, np.ndarray):
        return value
    if value is None or isinstance(value, str | bytes | set | frozenset):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # a list of lists of several lengths
        return None
    return array if array.dtype.kind in "biufc" and array.size else None


def _plain(value: object, key: str) -> object:
    """Convert any value of a result file to values of JSON."""
    if isinstance(value, np.generic | np.ndarray):
        # Numbers of more than eight bytes have no Python type to become.
        wide = {"f": float, "c": complex}.get(value.dtype.kind)
        value = (value if wide is None else value.astype(wide)).tolist()
    if isinstance(value, dict):
        plain = {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
        if len(plain) < len(value):
            where = f"'{key[1:]}'" if key else "the results"
            raise ResultFileError(
                f"two keys of {where} are the same as texts, among {', '.join(plain)}; rename one"
            )
        return plain
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, key) for item in value), key=repr)
    if isinstance(value, complex):
        return [_plain(value.real, key), _plain(value.imag, key)]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULT", help="result files, or folders of them"
    )
    parser.add_argument("--to", choices=("json", "npz"), required=True, help="the format")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the new files (next to the result files)"
    )
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Write the files; returns the exit status, 2 after an error whose text went to stderr."""
    if options.out is not None:
        make_folder(options.out)
    try:
        for path, target in _targets(options).items():
            _export(path, target)
            print(f"{path} written to {target}")
    except ERRORS as error:
        return fail(error)
    return 0


def _targets(options: argparse.Namespace) -> dict[Path, Path]:
    """Choose the path of each file; an error if one would overwrite another."""
    targets: dict[Path, Path] = {}
    for path, _ in files_in(options.results):
        target = (options.out or path.parent) / f"{path.stem}.{options.to}"
        if target == path:
            raise ResultFileError(f"{path} would be written over itself; rename it to *.pickle")
        for other, taken in targets.items():
            if taken == target and other != path:
                raise ResultFileError(
                    f"{path} and {other} would both be written to {target}; export them one by one "
                    "with an --out each"
                )
        targets[path] = target
    return targets


def _export(path: Path, target: Path) -> None:
    results = read(path)
    try:
        if target.suffix == ".json":
            data = as_json(results)
        else:
            data, left_out = as_npz(results)
            if left_out:
                note(f"not numbers, hence only in JSON files: {', '.join(left_out)} of {path}")
    except ResultFileError as error:
        raise ResultFileError(f"{path}: {error}") from error
    except _FAILURES as error:
        raise ResultFileError(
            f"{path} holds values that no {target.suffix[1:]} file can, such as lists of great "
            f"depth, long names or whole numbers of thousands of digits: {error}; change it"
        ) from error
    target.write_bytes(data)
