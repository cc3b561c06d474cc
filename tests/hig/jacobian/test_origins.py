"""Entries of a parameter behind arrangements of it, and what is derived from parameters alone."""

import pytest
import torch
from torch import nn

from hig._jacobian.origins import Walk

PARAMETER = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
ARRANGEMENTS = {
    "itself": lambda p: p,
    "transpose": lambda p: p.transpose(-1, 0),
    "matrix transpose": lambda p: p.mT,
    "permute": lambda p: p.permute(1, -1, 0),
    "view": lambda p: p.view(6, 4),
    "reshape of a transpose": lambda p: p.mT.reshape(-1, 2),
    "expand": lambda p: p.expand(5, 2, 3, 4),
    "unsqueeze and squeeze": lambda p: p[None].squeeze(0)[:, None],
    "repeat": lambda p: p.repeat(2, 1, 3),
    "flip": lambda p: p.flip(-1, 0),
    "last": lambda p: p[-1],
    "slice": lambda p: p[:, ::2, 1:3],
    "slice from the end": lambda p: p[..., -2:],
    "narrow": lambda p: p.narrow(1, 1, 2),
    "chunk": lambda p: p.chunk(2, 2)[1],
    "pieces of several sizes": lambda p: p.split([1, 3], 2)[1],
    "unbind": lambda p: p.unbind(1)[2],
    "index": lambda p: p[:, torch.tensor([2, 0])],
    "contiguous": lambda p: p.mT.contiguous(),
    "double": lambda p: p.float().double(),
    "complex": lambda p: torch.view_as_complex(p.view(2, 3, 2, 2)),
    "parts of a complex one": lambda p: torch.view_as_complex(p.view(2, 3, 2, 2)).mT.imag,
    "and back": lambda p: torch.view_as_real(torch.view_as_complex(p.view(2, 3, 2, 2)))[0],
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_entries_are_where_the_numbers_are(name):
    parameter = nn.Parameter(PARAMETER.clone())
    operand = ARRANGEMENTS[name](parameter)
    (consumer,) = Walk((operand * torch.rand(7, *operand.shape)).sum(), [parameter]).consumers()
    assert consumer.node.name() == "MulBackward0" and consumer.position == 0
    assert torch.equal(consumer.entries(), operand.detach())


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        (lambda p: 3 * p, 3), (lambda p: -p / 2, -0.5), (lambda p: 1 - p, -1),
        (lambda p: torch.add(torch.ones(2, 3, 4), p, alpha=4), 4), (lambda p: p - 1, 1),
        (lambda p: (2 * p.mT + 5) * torch.tensor(3.0), 6),
    ],
)  # fmt: skip
def test_factors_and_shifts(change, scale):
    parameter = nn.Parameter(PARAMETER.clone())
    operand = change(parameter)
    (consumer,) = Walk((operand * torch.rand(7, *operand.shape)).sum(), [parameter]).consumers()
    assert float(consumer.scale) == scale


def test_a_complex_parameter_has_pairs_of_entries():
    parameter = nn.Parameter(torch.randn(2, 3, dtype=torch.complex128))
    prediction = (parameter.T * torch.ones(4, 3, 2)).sum()
    (consumer,) = Walk(prediction, [parameter]).consumers()
    numbers = torch.view_as_complex(torch.arange(12, dtype=torch.float64).view(2, 3, 2))
    assert torch.equal(consumer.entries(), numbers.T)


def test_every_use_is_found_once_and_no_other_leaf():
    weight, other = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))
    x = torch.randn(5, 3, requires_grad=True)
    prediction = torch.tanh(x @ weight + other) @ weight.T * other.exp()
    walk = Walk(prediction, [weight])
    assert [c.node.name() for c in walk.consumers()] == ["MmBackward0"] * 2
    found = [
        (c.node.name(), c.source.number) for c in Walk(prediction, [weight, other]).consumers()
    ]
    assert sorted(found) == [
        ("AddBackward0", 1), ("ExpBackward0", 1), ("MmBackward0", 0), ("MmBackward0", 0)
    ]  # fmt: skip


def test_derived_results_are_sources():
    raw, gain = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3, 1))
    x = torch.randn(5, 2)
    weight = gain * raw / raw.norm(dim=1, keepdim=True)
    walk = Walk(x @ weight.T, [raw, gain])
    quotient = walk.numbers[weight.grad_fn]
    assert not walk.determined(walk.nodes[0], ())  # a product with data
    product = next(node for node in walk.nodes if node.name() == "MulBackward0")
    norm = next(node for node in walk.nodes if "VectorNorm" in node.name())
    assert walk.determined(product, ()) and walk.determined(norm, ())
    (consumer,) = walk.consumers({quotient, walk.numbers[product], walk.numbers[norm]})
    assert consumer.node.name() == "MmBackward0"
    assert not consumer.source.is_parameter and consumer.source.shape == weight.shape
    assert walk.parameters_of(-1 - consumer.source.number) == [0, 1]


def test_a_mask_of_the_same_shape_may_be_part_of_a_derived_weight_and_data_may_not():
    weight = nn.Parameter(torch.randn(3))
    masked = Walk((weight * torch.tensor([0.0, 1, 1])).exp(), [weight])
    assert masked.determined(masked.nodes[-1], ())
    spread = Walk((weight * torch.ones(4, 3)).exp(), [weight])
    assert not spread.determined(spread.nodes[-1], ())
