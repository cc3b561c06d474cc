"""Directions of sketches: what the command compares."""

import json

import pytest
import torch

from experiments import directions
from experiments.directions import KINDS, CarriedOver, CarryingVariance, Leading, WithoutReplacement


def gradients(samples=5, outputs=6):
    return torch.randn(samples, outputs, dtype=torch.float64)


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "random"])
def test_directions_besides_the_gradient(kind):
    draw = KINDS[kind](3, torch.Generator().manual_seed(0))
    for _ in range(5):
        found = draw(gradients())
        assert found.shape == (5, 2, 6) and found.dtype == torch.float64
        assert torch.linalg.matrix_rank(found).eq(2).all()


def test_a_basis_is_used_up_before_the_next_one():
    draw = WithoutReplacement(3, torch.Generator().manual_seed(0))
    bases = [torch.cat([draw(gradients())[0] for _ in range(3)]) for _ in range(2)]
    for basis in bases:
        torch.testing.assert_close(basis @ basis.mT, torch.eye(6, dtype=torch.float64))
    assert not torch.allclose(*bases)


def test_variance_and_leading_directions_are_those_of_the_gradients():
    torch.manual_seed(0)
    scales = torch.tensor([1e-3, 1, 1e-3, 1e-3, 10, 1e-3], dtype=torch.float64)
    leading, carrying = (
        kind(3, torch.Generator().manual_seed(0)) for kind in (Leading, CarryingVariance)
    )
    for _ in range(3):
        given = scales * gradients(200)
        found = leading(given)
        drawn = carrying(given)
    assert found[0].square().sum(0)[[1, 4]].sum() == pytest.approx(2, rel=1e-3)
    spread = drawn.square().mean((0, 1)).sqrt()
    torch.testing.assert_close(spread / spread[4], scales / 10, rtol=0.2, atol=1e-3)


def test_the_last_mean_gradients_are_carried_over():
    draw = CarriedOver(3, torch.Generator().manual_seed(0))
    given = [gradients() for _ in range(3)]
    first = draw(given[0])
    assert not torch.allclose(first[0, 0], given[0].mean(0))
    torch.testing.assert_close(draw(given[1])[2, 0], given[0].mean(0))
    torch.testing.assert_close(draw(given[2])[4], torch.stack([given[1].mean(0), given[0].mean(0)]))


def test_the_command(tmp_path, capsys):
    file = tmp_path / "directions.json"
    threads = torch.get_num_threads()
    try:
        directions.main(
            ["conditioning_toy", "--seconds", "0.05", "--sketch", "2", "--batch-size", "16",
             "--seeds", "0", "--json", str(file)]
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(file.read_text())["conditioning_toy"]
    assert [row["directions"] for row in rows] == list(KINDS)
    assert all(row["steps"] >= 1 and row["loss"] > 0 for row in rows)
    assert "| without replacement |" in capsys.readouterr().out
