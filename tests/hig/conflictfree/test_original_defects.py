"""Defects of ``conflictfree``: its results, and those of this package."""

import pytest
import torch
from torch import nn

import hig.conflictfree
from tests.hig.conflictfree.matrices import STRUCTURES, cosines, random_matrix
from tests.hig.conflictfree.original import OURS, THEIRS, get, gradient_of
from tests.textbook import flat

pytestmark = pytest.mark.usefixtures("least_squares")


def update(package, rows):
    return get(package, "grad_operator", "ConFIGOperator")().calculate_gradient(rows)


@pytest.mark.parametrize("second", [torch.zeros(3), torch.tensor([-2.0, 0.0, 0.0])])
def test_defect_two_losses_zero_or_anti_parallel(second):
    first = torch.tensor([1.0, 0.0, 0.0])
    assert torch.isnan(update(THEIRS, [first, second])).any()
    expected = first if not second.any() else torch.zeros(3)
    assert torch.equal(update(OURS, [first, second]), expected)


def test_defect_float64_with_three_losses():
    rows = random_matrix((3, 10))
    with pytest.raises(RuntimeError):
        update(THEIRS, rows)
    assert float(cosines(update(OURS, rows), rows).min()) > 0.1


def test_defect_small_gradients():
    """Squares below the range of float32."""
    rows = 1e-24 * random_matrix((3, 10), dtype=torch.float32)
    assert not torch.isfinite(update(THEIRS, rows)).all() or not update(THEIRS, rows).any()
    assert float(cosines(1e24 * update(OURS, rows), rows.double() * 1e24).min()) > 0.1


def test_defect_nearly_dependent_gradients_are_cut():
    """With many parameters the original takes angles below 1e-3 for zero."""
    rows = STRUCTURES["conflicting"]((3, 20_000), dtype=torch.float32, gap=3e-4)
    assert float(cosines(update(THEIRS, rows), rows).min()) < 0
    assert float(cosines(update(OURS, rows), rows).min()) > 1e-5


def test_defect_separate_momentum():
    with pytest.raises(TypeError):
        get(THEIRS, "momentum_operator", "SeparateMomentumOperator")(2)
    operator = get(OURS, "momentum_operator", "SeparateMomentumOperator")(2)
    operator.calculate_gradient(0, torch.ones(3))
    assert operator.calculate_gradient(1, torch.ones(3)).any()


def test_defect_momentum_of_losses():
    with pytest.raises(TypeError):
        get(THEIRS, "loss_recorder", "MomentumLossRecorder")(2).record_loss(0, 1.0)
    found = get(OURS, "loss_recorder", "MomentumLossRecorder")(2).record_loss(0, 1.0)
    assert found == [pytest.approx(1), 0]


def test_defect_defaults_are_shared():
    for package, shared in ((THEIRS, True), (OURS, False)):
        one, two = (get(package, "momentum_operator", "PseudoMomentumOperator")(2) for _ in "ab")
        assert (one.gradient_operator is two.gradient_operator) == shared
        one, two = (get(package, "grad_operator", "ConFIGOperator")() for _ in "ab")
        assert (one.length_model is two.length_model) == shared


def test_defect_a_stack_of_gradients_with_momentum():
    rows = torch.eye(3)[:2]
    for package in (THEIRS, OURS):
        operator = get(package, "momentum_operator", "PseudoMomentumOperator")(2)
        if package == THEIRS:
            with pytest.raises((RuntimeError, IndexError)):
                operator.calculate_gradient([0, 1], rows)
        else:
            assert operator.calculate_gradient([0, 1], rows).shape == (3,)


def test_defect_gradients_land_in_the_wrong_parameters():
    """The second loss reaches the second layer alone, and is what is differentiated last."""

    def updated(package):
        torch.manual_seed(0)
        network = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
        grads = [
            gradient_of(package, network, layer(torch.ones(1, 2)).square().sum())
            for layer in network
        ]
        get(package, "grad_operator", "PCGradOperator")().update_gradient(network, grads)
        return network, sum(grads)

    network, expected = updated(THEIRS)
    assert network[0].weight.grad is None
    assert torch.equal(flat(p.grad for p in network[1].parameters()), expected[:3])
    network, expected = updated(OURS)
    assert torch.equal(flat(p.grad for p in network.parameters()), expected)


def test_defect_parameters_outside_the_network():
    """There they are silently left out; here they can be given."""
    network, viscosity = nn.Linear(1, 1), nn.Parameter(torch.ones(()))
    (network(torch.ones(1, 1)) * viscosity).sum().backward()
    with pytest.raises(AttributeError):
        get(THEIRS, "utils", "get_gradient_vector")([*network.parameters(), viscosity])
    found = get(OURS, "utils", "get_gradient_vector")([*network.parameters(), viscosity])
    assert found.shape == (3,)
    get(OURS, "utils", "apply_gradient_vector")([*network.parameters(), viscosity], 2 * found)
    assert viscosity.grad == 2 * found[2]


def test_defect_recorded_losses_keep_their_graph():
    loss = torch.ones((), requires_grad=True) * 1
    for package, kept in ((THEIRS, True), (OURS, False)):
        recorder = get(package, "loss_recorder", "LatestLossRecorder")(1)
        assert recorder.record_loss([0], [loss])[0].requires_grad == kept


def test_defect_steps_along_non_finite_directions():
    for package, refused in ((THEIRS, False), (OURS, True)):
        network = nn.Linear(2, 1, bias=False)
        network(torch.ones(1, 2)).sum().backward()
        rows = torch.tensor([[1.0, 1.0], [float("inf"), 1.0]])
        get(package, "grad_operator", "ConFIGOperator")().update_gradient(network, rows)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        if refused:
            with pytest.raises(hig.NonFiniteError, match="gradient of loss 1 "):
                optimizer.step()
        else:
            optimizer.step()  # says nothing
        assert bool(torch.isfinite(network.weight).all()) == refused


def test_defect_the_selected_indexes_are_refused():
    for package in (THEIRS, OURS):
        operator = get(package, "momentum_operator", "PseudoMomentumOperator")(3)
        indexes, grads = get(package, "utils", "RandomSliceSelector")().select(
            2, list(torch.eye(3))
        )
        if package == THEIRS:
            with pytest.raises(TypeError):
                operator.calculate_gradient(indexes, grads)
        else:
            assert operator.calculate_gradient(indexes, grads).shape == (3,)


def test_defect_a_vector_is_a_window_on_the_gradient():
    for package, shared in ((THEIRS, True), (OURS, False)):
        network = nn.Linear(2, 1, bias=False)
        network(torch.ones(1, 2)).sum().backward()
        vector = get(package, "utils", "get_gradient_vector")(network)
        network.zero_grad(set_to_none=False)
        assert bool(vector.any()) != shared
