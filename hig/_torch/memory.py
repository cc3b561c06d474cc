"""Available memory, checks of large allocations, and reuse of freed memory."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hig.errors import InsufficientMemoryError

__all__ = ["available_memory", "check_room", "keep_freed_pieces"]

# Smaller allocations are not checked: reading the accounts of the system takes a tenth of a
# millisecond, and so small an allocation seldom decides.
CHECKED_BYTES = 256 * 2**20

# The largest piece by which the allocator of glibc learns (DEFAULT_MMAP_THRESHOLD_MAX), less its
# own overhead per piece.
LARGEST_PIECE = 32 * 2**20 - 2**16

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Limit, use, and pages that the system drops when memory is asked for: versions 2 and 1.
_ACCOUNTS = (
    ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)


def check_room(needed: int, like: Tensor, what: str, remedy: str) -> None:
    """Raise if an allocation on the CPU is larger than all available memory.

    Args:
        needed: lower bound of the bytes that will be allocated.
        like: a tensor on the device of the allocation.
        what: name of the allocation, the subject of a sentence.
        remedy: advice for the error message.

    Raises:
        InsufficientMemoryError: available memory and swap are less.
    """
    if like.device.type != "cpu" or needed < CHECKED_BYTES:
        return
    room = available_memory()
    if room is not None and needed > room:
        raise InsufficientMemoryError(
            f"{what} would take {needed / 1e9:.1f} GB, and {room / 1e9:.1f} GB of memory are "
            f"available; {remedy}"
        )


@cache  # once in a process
def keep_freed_pieces() -> None:
    """Make the allocator keep some tens of megabytes of freed memory for the next step.

    A step frees its Jacobian. Memory that glibc then returns to the system costs the next step a
    page fault per 4 kB, a tenth of its time. glibc keeps up to twice the largest piece below 32 MB
    that was ever freed: this frees one, without touching a page. No effect on other allocators.
    """
    torch.empty(LARGEST_PIECE, dtype=torch.uint8, device="cpu")


def available_memory() -> int | None:
    """Return the bytes that this process can still allocate, with swap; None if unknown.

    On Linux, within the limits of the control groups of the process. Elsewhere free memory is not
    a measure of available memory: systems compress and drop pages when asked for more.
    """
    facts = _numbers(_PROC / "meminfo", 1024)
    if "MemAvailable" not in facts:
        return None
    swap = facts.get("SwapFree", 0)
    available = facts["MemAvailable"] + swap
    for group in _control_groups():
        room = _room_of_group(group, swap)
        available = available if room is None else min(available, room)
    return max(0, available)


def _control_groups() -> list[Path]:
    """Return the folders of the control groups of this process and of their parents."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / "memory" if controllers else _CGROUPS
        here = root / path.lstrip("/")
        # A container may see its own group as the root of all.
        groups += [here, *(parent for parent in here.parents if parent.is_relative_to(root))]
    return groups


def _room_of_group(group: Path, swap: int) -> int | None:
    """Return the bytes that a control group may still take; None without a limit."""
    for limit, used, dropped in _ACCOUNTS:
        most, now = _number(group / limit), _number(group / used)
        if most is not None and now is not None:
            facts = _numbers(group / "memory.stat", 1)
            return most - now + sum(facts.get(name, 0) for name in dropped) + swap
    return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _numbers(file: Path, unit: int) -> dict[str, int]:
    """Return the first number after every name in a file of names and numbers."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    words = [line.replace(":", " ").split() for line in lines]
    return {w[0]: unit * int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}
