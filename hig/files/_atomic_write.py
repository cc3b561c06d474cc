"""Atomic writes: a file is either complete or absent."""

import os
import uuid

from hig.arguments import check_path
from hig.errors import described

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that an existing one survives a failure at any moment.

    The bytes go to a hidden file next to it, are flushed to the disk, and take its name in one
    step. A process that is killed meanwhile leaves that file, `.<name>.<random>.tmp`, behind;
    every other failure removes it.

    Args:
        path: Path of the file, as a str or path, in a folder that exists.
        data: The bytes of the whole file.

    Raises:
        OSError: The file cannot be written; an existing one is unchanged.
        TypeError: `path` is not path-like, or `data` is not bytes-like.
    """
    path = check_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path must be that of a file, got the folder {path}; add a name")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"data must be bytes, got {described(data)}; encode or pickle them first")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)  # os.replace: one atomic step within a folder
    finally:
        temporary.unlink(missing_ok=True)
