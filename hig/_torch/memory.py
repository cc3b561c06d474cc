"""Memory that is available, allocations that would not fit into it, and pieces used again."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hig.errors import InsufficientMemoryError

__all__ = ["available_memory", "check_room", "keep_freed_pieces"]

# What is smaller is not looked at: reading the accounts of the system takes a tenth of a
# millisecond, and so small an allocation seldom decides.
CHECKED_BYTES = 256 * 2**20

# The largest piece by which the allocator of glibc learns (DEFAULT_MMAP_THRESHOLD_MAX), with room
# for what it adds to each.
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
    """Raise if an allocation on the CPU is larger than all memory that can be had.

    Args:
        needed: bytes that will be allocated for certain, not more than that.
        like: a tensor on the device of the allocation.
        what: what is allocated, the subject of a sentence.
        remedy: what to do about it.

    Raises:
        InsufficientMemoryError: memory and swap that are available are less.
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
    """Have the allocator keep some tens of megabytes that are freed, for the next step.

    A step frees its Jacobian. What glibc gives back to the system by then costs the next step a
    page fault per 4 kB, a tenth of its time. It keeps up to twice the largest piece below 32 MB
    that was ever freed: here is one, of which no page is touched. Other allocators do not mind.
    """
    torch.empty(LARGEST_PIECE, dtype=torch.uint8, device="cpu")


def available_memory() -> int | None:
    """Bytes that this process can still get, swap included; None where the system does not say.

    On Linux, within the limits of the control groups of the process. Elsewhere free memory is no
    measure of what can be had: systems compress and drop pages when asked for more.
    """
    facts = _numbers(_PROC / "meminfo", 1024)
    if "MemAvailable" not in facts:
        return None
    swap = facts.get("SwapFree", 0)
    found = facts["MemAvailable"] + swap
    for group in _control_groups():
        room = _room_of_group(group, swap)
        found = found if room is None else min(found, room)
    return max(0, found)


def _control_groups() -> list[Path]:
    """The folders of the control groups of this process, those around them included."""
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
    """What a control group may still take; None where it has no limit."""
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
    """The first number after every name of a file of names and numbers."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    words = [line.replace(":", " ").split() for line in lines]
    return {w[0]: unit * int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}
