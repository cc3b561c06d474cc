"""The folders that result files go to."""

import sys
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make the folder of ``--out`` before anything is computed that would be lost without it.

    Args:
        folder: Where files are going to be written; parents that are missing are made too.

    Raises:
        SystemExit: With an error message, where something else has the name or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        there = "a file of this name exists" if folder.is_file() else error.strerror
        sys.exit(
            f"error: --out must be a folder that is there or can be made, got {folder}: {there}; "
            "give another one, such as --out results"
        )
