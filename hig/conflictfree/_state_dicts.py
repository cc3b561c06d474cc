"""State dicts of objects whose parts may have a state."""

from typing import Any

__all__ = ["load_states", "states"]


def states(**parts: Any) -> dict[str, Any]:
    """Return the state of each part that has one, by its name."""
    return {name: part.state_dict() for name, part in parts.items() if hasattr(part, "state_dict")}


def load_states(state_dict: dict[str, Any], **parts: Any) -> None:
    """Load the state of each part that has one; a ValueError unless states and parts match."""
    expected = {name for name, part in parts.items() if hasattr(part, "state_dict")}
    present = {name for name in parts if name in state_dict}
    if expected != present:
        raise ValueError(
            f"the state has parts {sorted(present)}, this object {sorted(expected)}; construct it "
            "as the one whose state it was"
        )
    for name in expected:
        parts[name].load_state_dict(state_dict[name])
