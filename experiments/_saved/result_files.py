"""Result files for commands that take any number of them."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import hig
from hig.errors import printable

SUFFIX = ".pickle"


class ResultFileError(ValueError):
    """Result files without the data that a command needs; the text has the remedy."""


def files_in(paths: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """The result files that are named, and those in the folders that are.

    Yields each path, and whether it was found in a folder and not named itself. Folders below are
    not looked into.

    Raises:
        ResultFileError: A folder has no result files.
    """
    for path in paths:
        if not path.is_dir():
            yield path, False
            continue
        found = sorted(path.glob(f"*{SUFFIX}"))
        if not found:
            below = sorted({str(file.parent) for file in path.rglob(f"*{SUFFIX}")})
            remedy = f"give one of {', '.join(below[:10])}" if below else "give another folder"
            raise ResultFileError(f"{path} has no result files (*{SUFFIX}) in it; {remedy}")
        yield from ((file, True) for file in found)


def read(path: Path) -> dict[str, object]:
    """Read a result file.

    Raises:
        ResultFileError: The file is the text next to a result file.
        OSError: There is no such file, or it cannot be read.
        CorruptResultError: It is not a result file.
        UnsafeResultError: It asks for more than plain Python and numpy.
    """
    result = path.with_suffix(SUFFIX)
    if path.suffix == ".txt" and result.exists():
        raise ResultFileError(f"{path} is the text next to a result file; give {result}")
    return hig.load_results(path)


def note(text: str) -> None:
    """Report on stderr what a command leaves out."""
    print(f"note: {printable(text)}", file=sys.stderr)


def fail(error: Exception) -> int:
    """Report on stderr why a command ends; returns its exit status, 2."""
    print(f"error: {printable(error)}", file=sys.stderr)
    return 2


#: All that `files_in` and `read` raise; the texts are for whoever typed the command.
ERRORS = (ResultFileError, hig.CorruptResultError, hig.UnsafeResultError, OSError)
