"""What results come from: a command, a revision of the code, a moment."""

import os
import shlex
import subprocess
import sys
from datetime import datetime
from functools import cache
from pathlib import Path

# What git, called from a hook of another repository, would take for its own.
_OTHERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")

_ROOT = Path(__file__).resolve().parents[1]


def origin() -> dict[str, str]:
    """What was called, of which revision, and when; to be asked before the work, not after.

    Returns:
        ``command``, as a shell takes it; ``revision``, see `revision`; ``started``, in ISO 8601
        with the distance from UTC.
    """
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    # Of the interpreter its path is left out, which is another one on every machine.
    command = shlex.join(["python", *sys.orig_argv[1:]])
    return {"command": command, "revision": revision(), "started": started}


@cache
def revision(root: Path = _ROOT) -> str:
    """Git revision of a working tree, when it was first asked for.

    Args:
        root: Folder of the tree, by default the one that this package lies in.

    Returns:
        The hash, with ``-dirty`` where files that git knows have been changed since; ``"none"``
        where the folder is no clone, or where git is missing or refuses to tell.
    """
    if not (root / ".git").exists():  # git would find one further up, which is of something else
        return "none"
    line = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = {key: value for key, value in os.environ.items() if key not in _OTHERS}
    try:
        done = subprocess.run(
            line,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    return done.stdout.strip()
