"""Settings of the methods on physics-informed problems."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from problems._problem import Settings

FIRST_ORDER = (
    *("adam", "pcgrad", "imtlg", "minmax", "relobralo", "lra", "config"),
    *("mpcgrad", "mimtlg", "mconfig"),
)


def settings_for(interior: int, rows: int) -> Mapping[str, Settings]:
    """Settings by method: published batches of points, and ours of ``rows`` for Jacobians."""
    published = Settings(batch_size=interior, lr=1e-3, schedule="cosine", published=True)
    # The half-inverse wants a search along its direction, and small singular values; but in float64
    # an SVD for the smallest takes ten times as long as the rest of a step.
    searched = Settings(rows, lr=1.0, rcond=1e-12, method="gram", step_rule="line_search")
    return MappingProxyType(
        {
            **dict.fromkeys(FIRST_ORDER, published),
            "hig": searched,
            "multihig": searched,
            "gn": replace(searched, rcond=1e-6),
            "lm": Settings(batch_size=rows, lr=1.0, damping=1e-3),
        }
    )
