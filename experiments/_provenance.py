"""Provenance of results: command, revision of the code, time, machine."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from functools import cache
from pathlib import Path

import numpy as np
import torch

import hig

# Variables that git, called from a hook of another repository, would take for its own.
_OTHERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")

_ROOT = Path(__file__).resolve().parents[1]


def origin() -> dict[str, str]:
    """Command, revision and start of a process; to be called before the work, not after.

    Returns:
        ``command``, as a shell takes it; ``revision``, see `revision`; ``started``, in ISO 8601
        with the distance from UTC.
    """
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    # Without the path of the interpreter, which differs between machines.
    command = shlex.join(["python", *sys.orig_argv[1:]])
    return {"command": command, "revision": revision(), "started": started}


@cache
def revision(root: Path = _ROOT) -> str:
    """Git revision of a working tree at the first call.

    Args:
        root: Folder of the tree, by default the one that this package lies in.

    Returns:
        The hash, with ``-dirty`` if files that git knows have been changed since; ``"none"``
        if the folder is not a clone, or if git is missing or refuses.
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


def machine(device: str) -> dict[str, str | int]:
    """Versions, device and thread count, in plain Python; PhiFlow's if it has been imported."""
    phiflow = sys.modules.get("phi")
    on_gpu = torch.device(device).type == "cuda"
    return {
        "hig": hig.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        **({"phiflow": phiflow.__version__} if phiflow else {}),
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(torch.device(device)) if on_gpu else "cpu",
        "cuda": torch.version.cuda or "none",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
