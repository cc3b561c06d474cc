"""Result files that survive interruptions and run no code when they are read.

``hig.save_results`` and ``hig.load_results`` are for results; `write_atomically` and `unpickle`,
which they are built on, are for files of other kinds.
"""

from hig.errors import CorruptResultError, UnsafeResultError
from hig.files._atomic_write import write_atomically
from hig.files._results import load_results, save_results
from hig.files._safe_unpickler import unpickle

__all__ = [
    "CorruptResultError",
    "UnsafeResultError",
    "load_results",
    "save_results",
    "unpickle",
    "write_atomically",
]
