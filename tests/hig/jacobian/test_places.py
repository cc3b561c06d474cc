"""Samples of places by tags: any axis, any order, any number for each sample."""

import pytest
import torch
from torch.autograd.graph import get_gradient_edge

from hig._jacobian.places import Places, find_plan

B, D = 6, 3
ORDER, RAGGED = torch.tensor([1, 3, 4, 0, 5, 2]), torch.arange(9) * 2 // 3


def plan_of(make, shape, dtype=torch.float64):
    """The plan for a hidden tensor whose last axis is that of features."""
    torch.manual_seed(0)
    hidden = (torch.randn(shape, dtype=dtype) * 1.0).requires_grad_() * 1.0
    edge = get_gradient_edge(hidden)

    def arrange(gradient):  # (k, *shape) -> (k, 1, m, out)
        return gradient.reshape(len(gradient), 1, -1, shape[-1])

    prediction = make(hidden)
    return find_plan(prediction, [(edge.node, edge.output_nr)], [arrange])


def samples_of(places, count):
    """The sample of each of ``count`` places, -1 where there is none."""
    if places.index is None:
        return torch.arange(places.samples).repeat_interleave(count // places.samples)
    owner = torch.full((count,), -1)
    for sample, row in enumerate(places.index):
        present = slice(None) if places.present is None else places.present[sample]
        owner[row[present]] = sample
    return owner


ARRANGED = {
    "samples first": (lambda h: h.tanh(), (B, D), torch.arange(B)),
    "times after samples": (lambda h: h.sin().sum(1), (B, 4, D), torch.arange(24) // 4),
    "times first": (lambda h: h.sin().sum(0), (4, B, D), torch.arange(24) % B),
    "as many times as samples": (lambda h: h.sin().sum(0), (B, B, D), torch.arange(36) % B),
    "in another order": (lambda h: h[ORDER.argsort()], (B, D), ORDER),
    "more places than are used": (
        lambda h: h[:B], (8, D), torch.tensor([0, 1, 2, 3, 4, 5, -1, -1])
    ),
    "samples of different size": (
        lambda h: torch.zeros(B, D, dtype=h.dtype).index_add(0, RAGGED, h.sin()), (9, D), RAGGED,
    ),
    "two with none": (
        lambda h: torch.cat([h.tanh(), torch.ones(2, D, dtype=h.dtype)]), (4, D), torch.arange(4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ARRANGED)
def test_places(name, dtype):
    make, shape, expected = ARRANGED[name]
    plan = plan_of(make, shape, dtype)
    assert plan.passes is None and plan.by_outputs == [False]
    assert samples_of(plan.places[0], len(expected)).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda h: h - h.mean(0),
        lambda h: h + 1e-3 * h.roll(1, 0),
        lambda h: h.sin() * h.sum(),
    ],
)
def test_samples_that_influence_one_another(make):
    assert plan_of(make, (B, D)).places == [None]


def test_places_that_belong_to_outputs():
    weights = torch.randn(B, D, dtype=torch.float64)
    plan = plan_of(lambda h: weights @ h.T.sin(), (4, D))
    assert plan.by_outputs == [True]
    assert samples_of(plan.places[0], 4).tolist() == [0, 1, 2, 3]


def parts(h):
    return torch.cat([h[:4, 0], h[:4, 1] * 2, h[4:, 0] - 1])


def test_equations_at_the_same_points_take_passes_of_their_own():
    plan = plan_of(parts, (B, 2))
    assert plan.passes.tolist() == [[1] * 4 + [0] * 4 + [1] * 2, [0] * 4 + [1] * 4 + [0] * 2]
    owner = samples_of(plan.places[0], 12)  # places of both passes, one after the other
    assert owner.tolist() == [0, 1, 2, 3, 8, 9, 4, 5, 6, 7, -1, -1]


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: torch.stack([a, b], 1).flatten(),
        lambda a, b: torch.stack([a, b]).view(-1) * 0.3,
        lambda a, b: torch.cat([a[:, None], b[:, None]], 1).reshape(-1, 1),
        lambda a, b: torch.cat([torch.cat([a, b]), a.new_zeros(2) + a[:2].detach()]),
    ],
)
def test_ways_to_join_equations(join):
    plan = plan_of(lambda h: join(h[:, 0].sin(), h[:, 1]), (B, 2))
    assert len(plan.passes) == 2 and plan.places[0] is not None


def test_behind_a_unit_at_rest_the_order_of_the_others_counts():
    def rectified(h):
        return torch.cat([torch.zeros(1, D, dtype=h.dtype), h[1:]]) + 0 * h

    plan = plan_of(rectified, (B, D))
    assert samples_of(plan.places[0], B).tolist() == list(range(B))


def test_taking_fills_absent_places_with_zeros():
    places = Places(torch.tensor([[0, 2], [1, 0]]), torch.tensor([[True, True], [True, False]]), 2)
    taken = places.take(torch.tensor([[1.0, 2.0, 3.0]]), 1)
    assert taken.tolist() == [[[1.0, 3.0], [2.0, 0.0]]]
