import pytest
import torch

import hig
from problems import Poisson, PoissonSource
from problems._fields import math, noise, on_grid, phiflow_like
from problems.poisson_source import PASSES, _solve
from tests.textbook import relative_error, step_of, textbook_jacobian, textbook_power

DTYPES = [torch.float32, torch.float64]
each_passes = pytest.mark.parametrize("passes", PASSES)


def dense_laplacian(size):
    """Entry by entry: -4 on the diagonal, 1 for each neighbour."""
    matrix = -4 * torch.eye(size**2, dtype=torch.float64)
    for x in range(size):
        for y in range(size):
            for other_x, other_y in [(x + 1, y), (x, y + 1)]:
                if other_x < size and other_y < size:
                    one, other = x * size + y, other_x * size + other_y
                    matrix[one, other] = matrix[other, one] = 1
    return matrix


def direct(source):
    """Solutions (B, size, size) by a direct solver, in float64."""
    size = source.shape[-1]
    columns = source.double().flatten(1).T
    return torch.linalg.solve(dense_laplacian(size), columns).T.view_as(source)


def sources(samples, size, seed=0):
    return noise(samples, size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
def test_solves_the_equation(size, dtype, tolerance):
    source = sources(4, size).to(dtype)
    solution = PoissonSource(size=size).physics(source)
    assert solution.dtype == dtype
    assert relative_error(solution, direct(source)) < tolerance
    # The operator itself, and the sign: a positive source bends its solution upwards.
    torch.testing.assert_close(
        Poisson(size=size).physics(solution), source, rtol=0, atol=20 * tolerance
    )
    assert PoissonSource(size=size).physics(torch.ones_like(source)).max() < 0


def test_samples_of_any_scale_are_solved_alike():
    # PhiFlow holds each sample to the tolerances of all: unscaled, the zero would stop none.
    scales = torch.tensor([1.0, 0.0, 1e-30, 1e30])[:, None, None]
    source = sources(4, 8).float() * scales
    solution, expected = PoissonSource().physics(source), direct(source)
    for found, one in zip(solution.double(), expected, strict=True):
        assert relative_error(found, one) < 1e-6
    assert not solution[1].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_source_that_is_not_finite_spoils_its_own_sample_alone(bad):
    source = sources(3, 4)
    source[1, 2, 3] = bad
    solution = PoissonSource(size=4).physics(source)
    assert solution[1].isnan().all()
    assert relative_error(solution[[0, 2]], direct(source[[0, 2]])) < 1e-11


@each_passes
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
def test_jacobian_is_the_inverse_of_the_laplacian(passes, dtype, tolerance):
    source = sources(2, 4).to(dtype).requires_grad_()
    solution = PoissonSource(size=4, passes=passes).physics(source)
    one_by_one = textbook_jacobian(solution, [source])
    (batched,) = torch.autograd.grad(
        solution, source, torch.eye(32, dtype=dtype).view(32, 2, 4, 4), is_grads_batched=True
    )
    oracle = torch.block_diag(*[torch.linalg.inv(dense_laplacian(4))] * 2)
    assert batched.dtype == dtype
    assert relative_error(one_by_one, oracle) < tolerance
    assert relative_error(batched.flatten(1), oracle) < tolerance


def training_case(passes="together", dtype=torch.float64):
    torch.manual_seed(3)
    problem = PoissonSource(size=3, hidden=(4,), train_size=3, test_size=1, passes=passes)
    train, _ = problem.data(torch.Generator().manual_seed(2))
    batch = {name: values.to(dtype) for name, values in train.items()}
    network = problem.network().to(dtype)

    def closure():
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    return network, batch, closure


def textbook_step(network, batch):
    answers = network(batch["target"].flatten(1)).view_as(batch["target"])
    inverse = torch.linalg.inv(dense_laplacian(3))
    prediction = answers.flatten(1) @ inverse.T
    jacobian = textbook_jacobian(prediction, network.parameters())
    residual = (prediction - batch["target"].flatten(1)).flatten().detach()
    return -textbook_power(jacobian, residual, -0.5, 1e-5)


@each_passes
@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-7)])
def test_step_of_hig(passes, engine, dtype, tolerance):
    network, _, closure = training_case(passes, dtype)
    twin, twin_batch, _ = training_case()
    optimizer = hig.HIG(network.parameters(), lr=1.0, rcond=1e-5, engine=engine, step_rule="fixed")
    step = step_of(optimizer, closure)
    assert relative_error(step.double(), textbook_step(twin, twin_batch)) < tolerance
    # Nothing refused to be batched.
    assert optimizer.report.notes == []


def test_step_of_hig_through_the_plain_solver_goes_one_pass_at_a_time():
    network, batch, _ = training_case()

    def closure():
        answers = network(batch["target"].flatten(1)).view_as(batch["target"])
        prediction = on_grid(_solve, answers)
        return 0.5 * (prediction - batch["target"]).square().sum(), prediction

    expected = textbook_step(network, batch)
    optimizer = hig.HIG(network.parameters(), lr=1.0, rcond=1e-5, step_rule="fixed")
    with phiflow_like(batch["target"]):
        step = step_of(optimizer, closure)
    assert relative_error(step, expected) < 1e-7
    assert "one by one" in " ".join(optimizer.report.notes)


def test_a_solve_that_does_not_converge(monkeypatch):
    monkeypatch.setattr("problems.poisson_source.TOLERANCE", 1e-40)
    with pytest.raises(RuntimeError, match=r"CG .*did not converge for 3 of 3 samples"):
        PoissonSource(size=4).physics(sources(3, 4))
    assert math.get_precision() == 32


def test_data_metrics_and_example():
    problem = PoissonSource(train_size=5, test_size=2)
    train, test = problem.data(torch.Generator().manual_seed(0))
    assert torch.equal(train["truth"], sources(5, 8))
    assert relative_error(train["target"], direct(train["truth"])) < 1e-11
    perfect = torch.nn.Linear(64, 64, bias=False).double()
    with torch.no_grad():
        perfect.weight.copy_(dense_laplacian(8))
    assert problem.loss(problem.predict(perfect, train), train) < 1e-18
    assert problem.metrics(perfect, train)["l1_distance"] < 1e-10
    example = problem.example(perfect, test)
    assert example["quantity"] == "source"
    assert abs(example["prediction"] - example["truth"]).max() < 1e-10


def test_batches_are_those_of_the_poisson_problem_with_physics_of_their_own():
    problem = PoissonSource(train_size=1, size=4)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    batch = next(problem.batches(train, 500, torch.Generator().manual_seed(1)))
    assert batch["truth"].shape == (500, 4, 4)
    assert relative_error(batch["target"], direct(batch["truth"])) < 1e-11


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("passes", "all", r"passes must be one of \('together', 'single'\), got 'all'"),
        ("size", 1, "size must be at least 2"),
    ],
)
def test_parameters(field, value, text):
    with pytest.raises(ValueError, match=text):
        PoissonSource(**{field: value})


@pytest.mark.cuda
@each_passes
def test_on_a_gpu(passes):
    source = sources(3, 8).cuda().requires_grad_()
    solution = PoissonSource(passes=passes).physics(source)
    assert relative_error(solution.detach().cpu(), direct(source.detach().cpu())) < 1e-11
    (gradient,) = torch.autograd.grad(
        solution, source, source.detach().expand(2, -1, -1, -1), is_grads_batched=True
    )
    assert relative_error(gradient[1].cpu(), direct(source.detach().cpu())) < 1e-11
