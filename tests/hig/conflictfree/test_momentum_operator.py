"""Behaviour that all operators with a memory share."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import hig
from hig.conflictfree import (
    ConFIGOperator,
    EqualWeight,
    LatestLossRecorder,
    MomentumOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
)
from tests.hig.conflictfree.matrices import random_matrix
from tests.textbook import flat, relative_error

KINDS = pytest.mark.parametrize("kind", [PseudoMomentumOperator, SeparateMomentumOperator])


@KINDS
def test_zero_until_every_loss_was_seen(kind):
    operator = kind(3)
    for index in (0, 1, 1, 0):
        assert not operator.calculate_gradient(index, torch.ones(4)).any()
        assert not operator.all_initialized
    assert operator.calculate_gradient(2, torch.ones(4)).any()
    assert operator.t_grads == [2, 2, 1]


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ways_to_pass_several_gradients(kind, dtype):
    rows = random_matrix((3, 8), dtype=dtype)
    results = []
    for indexes, grads in (
        ([0, 2, 1], rows),
        ((0, 2, 1), list(rows)),
        (np.array([0, 2, 1]), rows),
        (range(3), rows[[0, 2, 1]]),
    ):
        operator = kind(3)
        for _ in range(3):
            results.append(operator.calculate_gradient(indexes, grads))
    for found in results:
        assert found.dtype == dtype
    for attempt in range(1, 4):
        for step in range(3):
            assert relative_error(results[3 * attempt + step], results[step]) < 1e-5


@KINDS
def test_one_gradient_as_vector_list_or_row(kind):
    for grads in (torch.ones(4), [torch.ones(4)], torch.ones(1, 4)):
        for index in (0, [0], torch.tensor(0), np.array([0])):
            operator = kind(1)
            assert operator.calculate_gradient(index, grads).shape == (4,)


@KINDS
@pytest.mark.parametrize("steps", [1, 4])
def test_exact_resume(kind, steps, tmp_path):
    def make():
        return kind(2, 0.8, 0.9, loss_recorder=LatestLossRecorder(2))

    operator, gradients = make(), random_matrix((10, 6), dtype=torch.float32)
    for step in range(steps):
        operator.calculate_gradient(step % 2, gradients[step], float(step))
    state = operator.state_dict()
    torch.save(state, tmp_path / "state")
    others = [make(), make(), copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))]
    expected = [
        operator.calculate_gradient(step % 2, gradients[step], float(step))
        for step in range(steps, 10)
    ]
    others[0].load_state_dict(state)
    others[1].load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for other in others:
        for step in range(steps, 10):
            found = other.calculate_gradient(step % 2, gradients[step], float(step))
            assert torch.equal(found, expected[step - steps])
        assert other.loss_recorder.current_losses == operator.loss_recorder.current_losses


@KINDS
def test_states_of_other_operators(kind):
    with pytest.raises(ValueError, match="state is of 2 losses, the operator of 3"):
        kind(3).load_state_dict(kind(2).state_dict())
    with pytest.raises(ValueError, match="loss_recorder"):
        kind(2).load_state_dict(kind(2, loss_recorder=LatestLossRecorder(2)).state_dict())
    fresh = kind(2)
    fresh.load_state_dict(kind(2).state_dict())
    assert fresh.m is None


@KINDS
def test_losses_reach_the_weight_model_through_the_recorder(kind):
    seen = []

    class Weights(EqualWeight):
        def get_weights(self, gradients, losses=None, device=None):
            seen.append(losses)
            return super().get_weights(gradients, losses, device)

    operator = kind(
        2, gradient_operator=ConFIGOperator(Weights()), loss_recorder=LatestLossRecorder(2)
    )
    for step, gradient in enumerate(random_matrix((3, 5))):
        operator.calculate_gradient(step % 2, gradient, torch.tensor(float(step)))
    assert seen == [[0, 1], [2, 1]]
    with pytest.raises(ValueError, match=r"no loss recorder.*LatestLossRecorder"):
        kind(2).calculate_gradient(0, torch.ones(3), 1.0)


@KINDS
def test_operators_share_nothing(kind):
    first, second = kind(2), kind(2)
    assert first.gradient_operator is not second.gradient_operator
    first.calculate_gradient([0, 1], torch.eye(2))
    assert second.report is None
    assert second.m is None


@KINDS
def test_given_gradients_are_not_changed_or_kept(kind):
    operator, gradient = kind(1), torch.ones(3)
    first = operator.calculate_gradient(0, gradient).clone()
    assert torch.equal(gradient, torch.ones(3))
    gradient *= 100
    assert torch.allclose(torch.stack(operator.m), 0.1 * torch.ones(1, 3))
    assert torch.isfinite(first).all()


@KINDS
@pytest.mark.parametrize("mode", ["zero", "skip"])
def test_update_of_a_network_of_which_losses_reach_parts(kind, mode):
    """Vectors for all parameters, or for those that have a gradient, find their places."""
    torch.manual_seed(0)
    network = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    operator = kind(2, gradient_operator=PCGradOperator())
    for step in range(4):
        network.zero_grad()
        layers = network if mode == "skip" else [network[step % 2]]
        sum(layer(torch.ones(1, 2)).square().sum() for layer in layers).backward()
        gradient = hig.conflictfree.get_gradient_vector(network, none_grad_mode=mode)
        assert gradient.shape == (6,)
        copy = kind(2, gradient_operator=PCGradOperator())
        copy.load_state_dict(operator.state_dict())
        operator.update_gradient(network, step % 2, gradient)
        expected = copy.calculate_gradient(step % 2, gradient)
        assert torch.equal(flat(p.grad for p in network.parameters()), expected)


@KINDS
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda o: o.calculate_gradient(2, torch.ones(3)), "losses count from 0 to 1, got 2"),
        (lambda o: o.calculate_gradient(-1, torch.ones(3)), "losses count from 0 to 1, got -1"),
        (lambda o: o.calculate_gradient([0, 1], torch.ones(3)), r"shape \(2, 3\) for losses"),
        (
            lambda o: [o.calculate_gradient(0, torch.ones(n)) for n in (3, 4)],
            r"shape \(1, 3\) .*got \(1, 4\).*none_grad_mode='zero'",
        ),
    ],
)
def test_what_is_refused(kind, call, match):
    with pytest.raises(ValueError, match=match):
        call(kind(2))


@KINDS
def test_numbers_out_of_range(kind):
    with pytest.raises(ValueError, match="num_vectors must be at least 1, got 0"):
        kind(0)
    with pytest.raises(TypeError, match=r"num_vectors must be a whole number, got 2\.0"):
        kind(2.0)
    with pytest.raises(ValueError, match=r"beta_2 must be in \[0, 1\), got 1.0"):
        kind(2, 0.9, 1.0)
    with pytest.raises(NotImplementedError, match="must define calculate_gradient"):
        MomentumOperator(2).calculate_gradient(0, torch.ones(2))


@KINDS
@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"gradient_operator": PseudoMomentumOperator(2)}, "without a memory"),
        ({"loss_recorder": 2}, r"a method record_loss, got 2; take LatestLossRecorder\(2\)"),
    ],
)
def test_parts_that_do_not_fit(kind, parts, match):
    with pytest.raises(TypeError, match=match):
        kind(2, **parts)


@KINDS
def test_what_is_no_state(kind):
    operator = kind(2)
    with pytest.raises(ValueError, match=rf"it has nothing; load what {kind.__name__}.state_dict"):
        operator.load_state_dict({})
    assert operator.t_grads == [0, 0]


@pytest.mark.cuda
@KINDS
def test_on_a_gpu(kind):
    operators = {device: kind(2, loss_recorder=LatestLossRecorder(2)) for device in ("cpu", "cuda")}
    for step, gradient in enumerate(random_matrix((6, 9))):
        found = {
            device: operator.calculate_gradient(step % 2, gradient.to(device), float(step))
            for device, operator in operators.items()
        }
        assert found["cuda"].is_cuda
    assert relative_error(found["cuda"].cpu(), found["cpu"]) < 1e-9


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_a_memory(kind, dtype):
    """Second moments of small gradients do not vanish: they are kept in float32."""
    rows = 1e-3 * random_matrix((8, 9), dtype=dtype)
    half, single = kind(2), kind(2)
    for step, row in enumerate(rows):
        found = half.calculate_gradient(step % 2, row)
        expected = single.calculate_gradient(step % 2, row.float())
        assert found.dtype == dtype
        assert half.m[0].dtype == torch.float32
    assert relative_error(found.double(), expected.double()) < torch.finfo(dtype).eps
