"""Files that are there as a whole or not at all."""

import os
import uuid

from hig.arguments import check_path
from hig.errors import described

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file so that the one there before survives a failure at any moment.

    The bytes go to a hidden file beside it, reach the disk, and take its name in one step. A
    process that is killed meanwhile leaves that file, `.<name>.<random>.tmp`, behind; every other
    failure removes it.

    Args:
        path: Where to write, as a str or path, in a folder that exists.
        data: The bytes of the whole file.

    Raises:
        OSError: The file cannot be written; the one there before is unchanged.
        TypeError: The path is none, or the data are no bytes.
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
