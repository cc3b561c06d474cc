"""Small result files as the runner and the published scripts write them."""

import pickle

import numpy as np
import pytest

from plots._files import load


def jacobian_results():
    generator = np.random.default_rng(0)
    values = np.sort(10.0 ** generator.uniform(-9, 2, (6, 40)), axis=1)[:, ::-1].copy()
    return {
        "step_time": np.linspace(0.1, 8.0, 60),
        "rank": generator.integers(20, 40, 60),
        "rows": 40,
        "columns": 90,
        "spectrum": {"epochs": np.arange(6.0), "singular_values": values, "rcond": 1e-6},
    }


def example_results():
    time = np.linspace(0.0, 12.0, 13)
    generator = np.random.default_rng(0)
    state = generator.normal(size=(2, 13, 4))
    populations = generator.dirichlet(np.ones(4), (2, 13))[..., :3]  # the fourth is not shown
    truth = generator.normal(size=(2, 5, 6))
    return {
        "time": time,
        "control_time": time[:-1],
        "state": state,
        "target": state[:, -1] + 0.1,
        "control": np.arange(24.0).reshape(2, 12),
        "state_names": ["x1", "x2", "v1", "v2"],
        "position": np.linspace(0.1, 1.9, 7),
        "density": generator.random((2, 13, 7)),
        "target_density": generator.random((2, 7)),
        "populations": populations,
        "population_names": ["n = 1", "n = 2", "n = 3"],
        "target_populations": np.array([[0.0, 0.3, 0.7], [0.1, 0.9, 0.0]]),
        "velocity": generator.normal(size=(2, 13, 7)),
        "force": generator.normal(size=(2, 12, 7)),
        "uncontrolled_velocity": generator.normal(size=(2, 7)),
        "target_velocity": generator.normal(size=(2, 7)),
        "truth": truth,
        "prediction": truth + 0.1 * generator.normal(size=truth.shape),
        "start": truth[:, ::-1],
        "uncontrolled": 0.5 * truth,
        "quantity": "solution",
    }


def solution_results(unknowns=("u",), **sides):
    """The example of a physics-informed run, on a grid of so many places from 0 to 1 a side."""
    sides = sides or {"x": 4, "t": 3}
    places = np.meshgrid(*[np.linspace(0.0, 1.0, n) for n in sides.values()], indexing="ij")
    points = np.stack(places, axis=-1).reshape(-1, len(sides))
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(len(points), len(unknowns)))
    return {
        "points": points,
        "prediction": reference + 0.1 * generator.normal(size=reference.shape),
        "solution": reference,
        "coordinates": list(sides),
        "unknowns": list(unknowns),
    }


def activation_results(points=9, neurons=7):
    generator = np.random.default_rng(0)
    mean = generator.uniform(-1, 1, (points, neurons))
    return {"test_activation_mean": mean, "test_activation_spread": np.sqrt(1 - mean**2)}


def descent_results(start=1, points=9):
    x, y = np.linspace(-2, 2, 5), np.linspace(-1, 1, 4)
    losses = np.stack(np.meshgrid((x - 1) ** 2, (x + 1) ** 2), -1)[:, :4]
    path = np.stack([np.linspace(-2, start, points), np.linspace(1, 0, points)], 1)
    front = np.stack([np.linspace(-1, 1, 6), np.zeros(6)], 1)
    return {
        "test_position": path,
        "example": {"x": x, "y": y, "landscape": losses, "front": front},
        "sim_par": {"start": start, "rcond": 1e-6, "batch_size": 1},
    }


def step_time_results():
    seconds = np.array([0.4, 0.1, 0.2])
    return {
        "batch_size": np.array([256, 64, 128]),
        "seconds_per_step": seconds,
        "seconds_per_step_min": 0.5 * seconds,
        "seconds_per_step_max": 2 * seconds,
    }


def run_results(method="hig", label="HIG", seed=0, factor=1.0, points=9, **other):
    time = np.linspace(0.0, points - 1.0, points)
    loss = factor * 10.0 ** (-time / 3)
    return {
        "problem": "nonlinear_oscillators",
        "method": method,
        "label": label,
        "seed": seed,
        "epochs": 2 * time,
        "time": time,
        "test_loss": loss,
        "train_loss": 0.5 * loss,
        "epoch_time": np.diff(time),
        "simulation_time": time[-1],
        "sim_par": {"rcond": 1e-6, "lr": 1.0, "batch_size": 128},
    } | other


@pytest.fixture
def write(tmp_path):
    """Writes result files; returns their paths as a command line has them."""

    def writer(name, results):
        path = tmp_path / f"{name}.pickle"
        path.write_bytes(pickle.dumps(results))
        return str(path)

    return writer


@pytest.fixture
def run_file(write):
    """Writes a run of the runner, with changes, and loads it as the figures do."""

    def writer(name="run", **changes):
        return load(write(name, run_results(**changes)))

    return writer


@pytest.fixture
def solved_run(run_file):
    """Writes a run with a physics-informed solution and loads it; example and run can change."""

    def writer(name="run", unknowns=("u",), sides=None, changes=None, **other):
        example = solution_results(unknowns, **(sides or {})) | (changes or {})
        return run_file(name, example=example, **other)

    return writer


@pytest.fixture
def full_run(write):
    """The path of a run with everything that a figure can want, but a solution on a grid."""
    descent = descent_results()
    results = run_results(
        **jacobian_results(),
        **activation_results(),
        **step_time_results(),
        **descent | {"example": example_results() | descent["example"]},
    )
    return write("full", results)
