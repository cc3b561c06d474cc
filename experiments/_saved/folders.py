"""Folders of result files."""

import os
import sys
from pathlib import Path


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make the folder of an option, before anything is computed that would be lost without it.

    ``option`` is the one it was given by, for the error text.

    Raises:
        SystemExit: With an error message, where something else has the name, it cannot be made or
            nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError)
        there = "a file of this name exists" if in_the_way else error.strerror
        sys.exit(
            f"error: {option} must be a folder that is there or can be made, got {folder}: "
            f"{there}; give another one, such as results"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        sys.exit(
            f"error: {option} must be a folder that can be written to, got {folder}: Permission "
            "denied; give another one, such as results"
        )


def make_place(file: Path, option: str) -> None:
    """Make the folder of a file, as `make_folder`; exit if the file is a folder itself."""
    if file.is_dir():
        sys.exit(f"error: {option} must be a file, got the folder {file}; add a name")
    make_folder(file.parent, f"the folder of {option}")
