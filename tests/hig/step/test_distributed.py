"""The objective of a batch on several process ranks, which are threads here."""

import pytest
import torch

import hig
from hig._jacobian.capture import Capture
from hig._spectral.filters import Damped, HalfInverse
from hig._step.distributed import agreed_split, digest_of_filter, whole_batch
from hig._step.objective import StepContext, objective_of
from hig._torch.host import PhaseClock
from hig._torch.ranks import Ranks
from tests.hig.networks import build
from tests.hig.rank_threads import Thread, together
from tests.textbook import relative_error

SAMPLES = [(5,), (3, 4), (1, 2, 4)]


class Rank(Thread, Ranks):
    """A thread with all that a process rank can say to the others."""

    def __init__(self, thread):
        super().__init__(thread.rank, thread.size, thread._board, thread._barrier)

    def _group_device(self):
        return torch.device("cpu")


def loss_of(prediction, target, reduction):
    per_sample = ((prediction - target).square() + 0.1 * prediction.pow(4)).flatten(1).sum(1)
    return per_sample.mean() if reduction == "mean" else per_sample.sum()


def objective_at(network, inputs, target, reduction, ranks=None):
    parameters = list(network.parameters())
    with Capture(parameters) as capture:
        prediction = network(inputs)
    loss = loss_of(prediction, target, reduction)
    step = StepContext(parameters, [1.0], [None] * len(parameters), ranks, PhaseClock())
    return objective_of(loss, prediction, capture.captured, step, curvature=True)


def on_all(samples, reduction, settings=lambda rank: 7, change=lambda rank, network: None):
    """The joined objective of each process rank, and that of all samples in one process."""
    _, example = build("mlp")
    inputs = torch.randn(sum(samples), *example.shape[1:], dtype=torch.float64)
    target = torch.randn(sum(samples), 3, dtype=torch.float64)
    expected = objective_at(build("mlp")[0], inputs, target, reduction)
    networks = [build("mlp")[0] for _ in samples]

    def local(split):
        ranks = Rank(split.ranks)
        rank = ranks.rank
        change(rank, networks[rank])
        start = sum(samples[:rank])
        chosen = slice(start, start + samples[rank])
        objective = objective_at(networks[rank], inputs[chosen], target[chosen], reduction, ranks)
        forward = objective.forward
        agreed = agreed_split(forward.prediction, forward.parameters, ranks, settings(rank))
        return whole_batch(objective, agreed, reduction)

    return together(samples, 3, local), expected


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("samples", SAMPLES)
def test_loss_and_gradient_are_those_of_all_samples(samples, reduction):
    found, expected = on_all(samples, reduction)
    for rank, objective in enumerate(found):
        assert float(objective.loss) == pytest.approx(float(expected.loss.detach()), rel=1e-14)
        assert not objective.loss.requires_grad
        assert relative_error(objective.flat_gradient, expected.flat_gradient) < 1e-14
        assert torch.equal(objective.flat_gradient, found[0].flat_gradient)
        local = expected.flat_gradient[objective.split.local_rows]
        assert relative_error(objective.gradient.detach().flatten(), local) < 1e-14
        assert objective.gradient.requires_grad  # for products with the Hessian
        share = samples[rank] / sum(samples) if reduction == "mean" else 1.0
        assert objective.weight == share


def move_a_parameter(rank, network):
    if rank == 1:
        with torch.no_grad():
            network[0].weight[0, 0] += 1e-9


def remove_a_parameter(rank, network):
    if rank == 1:
        network[0].register_parameter("bias", None)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"settings": lambda rank: rank},
            "of learning rates, .* got 0 on rank 0, 1 on rank 1",
        ),
        ({"change": move_a_parameter}, "checksum of the values of the parameters must be the same"),
        ({"change": remove_a_parameter}, "the number of parameters must be the same on all"),
    ],
    ids=["settings", "values", "number"],
)
def test_differences_of_process_ranks_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        on_all((3, 4), "mean", **options)


def test_digests_of_filters_are_those_of_their_gains():
    class Tikhonov:
        rcond, needs_small_values = 0.0, False

        def __init__(self, damping):
            self.damping = damping

        def gain(self, singular_values):
            return 1 / (singular_values.square() + self.damping)

    same = [Damped(1e-3), Tikhonov(1e-3), Tikhonov(1e-3)]  # whose repr holds an address
    assert len({digest_of_filter(filter) for filter in same}) == 1
    others = [Damped(2e-3), Damped(1e-3, 1e-6), HalfInverse(), HalfInverse(-1.0)]
    others += [HalfInverse(rcond="auto"), HalfInverse(rcond=0.0), hig.HalfInverse(rcond=1e-5)]
    assert len({digest_of_filter(filter) for filter in [same[0], *others]}) == 8
