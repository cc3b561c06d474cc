"""Pairs of points carried through a tanh network as one sample, for periodic conditions.

Both ends of a pair would be two values, each of which sees the biases, where an interior point has
one. A pair is carried instead as its left end, the slope there, and what has to be added to both to
get those of the right end: one value, and three channels that do not see the biases. So it has the
shape of an interior point with three derivatives, and shares a sample axis with it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from problems.pinn._jets import Jet, Rule, propagate, tangents


def start_pairs(pairs: Tensor) -> Jet:
    """Network inputs for pairs of points (count, 2, coordinates).

    Value (2 * count, coordinates) and channels (2 * count, 3, coordinates): every pair twice, for a
    row of the differences of the values and one of those of the slopes along the first coordinate.
    """
    left, right = pairs.repeat_interleave(2, 0).unbind(1)
    slope = tangents(left, 1, 0)
    return Jet(left, torch.cat([slope, (right - left).unsqueeze(1), torch.zeros_like(slope)], 1))


def difference_rule(z: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Apply tanh to a value (..., width), its slope and the two differences."""
    slope, step, bend = channels.unbind(-2)
    left, right = z.tanh(), (z + step).tanh()
    left_slope = (1 - left.square()) * slope
    right_slope = (1 - right.square()) * (slope + bend)
    return left, torch.stack([left_slope, right - left, right_slope - left_slope], -2)


def pair_rows(at: Jet) -> Tensor:
    """Rows (2 * count, F): right minus left, of the values and then of the slopes, by pair."""
    by_pair = at.derivatives.unflatten(0, (-1, 2))
    return torch.stack([by_pair[:, 0, 1], by_pair[:, 1, 2]], 1).flatten(0, 1)


def propagate_side_by_side(
    network: nn.Sequential, starts: Sequence[Jet], rules: Sequence[Rule]
) -> list[Jet]:
    """Carry equally many samples of several kinds through a tanh network, each by its rule."""
    sizes = [len(start.value) for start in starts]

    def rule(z: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
        runs = zip(rules, z.split(sizes), channels.split(sizes), strict=True)
        values, derivatives = zip(*(own(*run) for own, *run in runs), strict=True)
        return torch.cat(values), torch.cat(derivatives)

    together = Jet(*(torch.cat(parts) for parts in zip(*starts, strict=True)))
    at = propagate(network, together, rule)
    return [Jet(*parts) for parts in zip(*(part.split(sizes) for part in at), strict=True)]
