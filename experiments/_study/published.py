"""Published numbers of others, to compare with a study."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_HIG = "[Schnell, Holl, Thuerey, ICLR 2022](https://arxiv.org/abs/2203.10131)"
_CONFIG = "[Liu, Chu, Thuerey, ICLR 2025](https://arxiv.org/abs/2408.11104)"


@dataclass(frozen=True)
class Published:
    """Losses of one problem.

    Attributes:
        losses: The texts as they are published, by method.
        circumstances: Their source and conditions.
    """

    losses: Mapping[str, str]
    circumstances: str


#: By the folder of the submit scripts; not all of it in print, hence the circumstances.
PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "nonlinear_oscillators": Published(
            MappingProxyType({"hig": "1.1e-3"}),
            f"not a number of {_HIG}, but the result of its code (TensorFlow, float32, seed 22) on "
            "two cores after 8 epochs of about 41 s each",
        ),
        "conditioning_toy": Published(
            MappingProxyType({"hig": "2.9e-3", "gn": "0.40", "adam": "0.24"}),
            f"losses after 20 s at λ = 0.01, {_HIG}",
        ),
        "pinn/burgers": Published(
            MappingProxyType({"adam": "0.0310", "config": "0.00638", "mconfig": "0.00186"}),
            "least test errors within 5,000 iterations of one run on 2,000 interior, 50 boundary "
            "and 50 initial points (step sizes Adam and ConFIG 1e-4, M-ConFIG 5e-4), from the "
            f"tutorial of {_CONFIG}",
        ),
    }
)
