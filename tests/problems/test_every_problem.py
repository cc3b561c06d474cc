"""What holds for the data and the settings of every problem alike."""

import pytest
import torch

from problems import (
    BurgersControl,
    CartPole,
    ConditioningToy,
    NonlinearOscillators,
    Poisson,
    PoissonSource,
    QuantumDipole,
    ReactionDiffusion,
    SmokeControl,
)
from problems.multitask import Toy

SIZES = {"train_size": 7, "test_size": 4}
# Published settings: batch size, learning rate, cut-off.
PUBLISHED = {
    BurgersControl(time_steps=3, **SIZES): {},
    CartPole(**SIZES): {},
    ConditioningToy(**SIZES): {},
    NonlinearOscillators(**SIZES): {
        "hig": (128, 1.0, 1e-6),
        "gn": (128, 1.0, 1e-6),
        "adam": (512, 3e-4, None),
    },
    Poisson(**SIZES): {"hig": (64, 0.01, 1e-5), "adam": (64, 3e-4, None)},
    PoissonSource(**SIZES): {},
    QuantumDipole(**SIZES): {"hig": (16, 0.5, 1e-5), "adam": (256, 5e-4, None)},
    ReactionDiffusion(window_steps=1, **SIZES): {},
    SmokeControl(size=8, time_steps=2, **SIZES): {},
}


def data(problem, seed):
    return problem.data(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("problem", PUBLISHED, ids=lambda problem: problem.name)
def test_data_depend_on_the_seed_alone(problem):
    train, test = data(problem, 4)
    torch.manual_seed(99)
    again, other = data(problem, 4), data(problem, 5)
    assert train.keys() == test.keys()
    for name, values in train.items():
        assert (len(values), len(test[name])) == (7, 4)
        assert values.dtype == test[name].dtype == torch.float64
        assert not values.requires_grad
        assert torch.equal(values, again[0][name])
        assert torch.equal(test[name], again[1][name])
    assert any(not torch.equal(values, other[0][name]) for name, values in train.items())
    assert any(not torch.equal(values[:4], test[name]) for name, values in train.items())


@pytest.mark.parametrize("problem", [*PUBLISHED, Toy()], ids=lambda problem: problem.name)
def test_settings_claim_to_be_published_where_they_are(problem):
    published = {
        name: (settings.batch_size, settings.lr, settings.rcond)
        for name, settings in problem.settings.items()
        if settings.published
    }
    assert published == PUBLISHED.get(problem, {})
