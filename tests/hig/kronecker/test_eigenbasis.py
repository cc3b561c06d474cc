"""Adam in the eigenbasis of the factors, against loops written out, and its basis."""

import math

import pytest
import torch
from torch import nn

import hig
from hig._kronecker.eigenbasis import eigenbasis_steps, followed_basis, refresh_eigenbasis
from hig._kronecker.layer_factors import random_probe
from tests.faults import no_convergence
from tests.textbook import flat, relative_error

DOUBLE = {"dtype": torch.float64}


# -- a whole step, by hand -------------------------------------------------------------------------


def two_layers(samples=6):
    """A network of two layers before a simulator with five outputs."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    physics = torch.randn(2, 5, **DOUBLE)
    batches = torch.randn(8, samples, 4, **DOUBLE)

    def predict(inputs):
        controls = network(inputs)
        return (controls @ physics).sin() + controls.square().sum(1, keepdim=True)

    return network, predict, batches


class ByHand:
    """Adam in the eigenbasis with vectors and dense matrices: nothing of the package but signs."""

    def __init__(self, network, predict, lr, kappa, damping, betas, decay, eps):
        self.layers = [network[0], network[2]]
        self.predict, self.lr, self.damping, self.decay, self.eps = predict, lr, damping, decay, eps
        self.beta, self.rest = betas[0], (1 - kappa) / 2 - 0.25
        self.count, self.means, self.squares, self.bases = 0, [0, 0], [0, 0], [None, None]
        self.factors = [[0, 0], [0, 0]]

    def of_samples(self, inputs, step):
        """Return S and A of both layers, sample by sample, with ones for the bias."""
        probe = random_probe(self.predict(inputs).detach(), step, None)
        found = [[0, 0], [0, 0]]
        for number, layer in enumerate(self.layers):
            for sample, signs in zip(inputs, probe, strict=True):
                kept = []
                hook = layer.register_forward_hook(lambda _, a, z, kept=kept: kept.append((a, z)))
                prediction = self.predict(sample[None])
                hook.remove()
                ((a,), z) = kept[0]
                (delta,) = torch.autograd.grad(prediction, z, signs[None])
                one = torch.cat([a[0].detach(), torch.ones(1, **DOUBLE)])
                found[number][0] = found[number][0] + torch.outer(delta[0], delta[0])
                found[number][1] = found[number][1] + torch.outer(one, one) / len(inputs)
        return found

    def iterated(self, factor, basis):
        """Shifted orthogonal iteration by Gram-Schmidt, column by column."""
        size = len(factor)
        shifted = factor / factor.trace() + 1e-4 * torch.eye(size, **DOUBLE)
        for _ in range(8 if basis is None else 1):
            basis = torch.eye(size, **DOUBLE) if basis is None else basis
            values = 1.37 * (basis.T @ shifted @ basis).diagonal()
            order = [math.floor(math.log2(value)) for value in values.tolist()]
            ordered = sorted(range(size), key=lambda column, order=order: -order[column])
            product = (shifted @ basis)[:, ordered]
            columns = []
            for column in product.T:
                for _ in range(2):  # twice is enough
                    for other in columns:
                        column = column - (other @ column) * other
                columns.append(column / column.norm())
            basis = torch.stack(columns, 1)
        return basis

    def step(self, loss_of, inputs):
        """Take a step that updates and decomposes the factors."""
        parameters = [p for layer in self.layers for p in (layer.weight, layer.bias)]
        gradients = torch.autograd.grad(loss_of(self.predict(inputs)), parameters)
        found, self.count = self.of_samples(inputs, self.count), self.count + 1
        changes, norms = [], []
        for number in range(2):
            gradient = torch.cat([gradients[2 * number], gradients[2 * number + 1][:, None]], 1)
            factors, before = [], self.bases[number]
            for side in range(2):
                old = self.factors[number][side]
                self.factors[number][side] = (
                    self.decay * old + (1 - self.decay) * found[number][side]
                )
                factors.append(self.factors[number][side] / (1 - self.decay**self.count))
            pairs = zip(factors, before or (None, None), strict=True)
            outputs, inner = (self.iterated(f, b) for f, b in pairs)
            self.bases[number] = outputs, inner
            # The basis of vec: all products of an eigenvector of S and one of A, in columns.
            basis = torch.kron(outputs, inner)
            if before is not None:
                overlap = basis.T @ torch.kron(*before)
                self.squares[number] = overlap.square() @ self.squares[number]
            mean = self.beta * self.means[number] + (1 - self.beta) * gradient
            self.means[number] = mean
            inside = basis.T @ gradient.flatten()
            square = self.decay * self.squares[number] + (1 - self.decay) * inside.square()
            self.squares[number] = square
            corrected = basis.T @ mean.flatten() / (1 - self.beta**self.count)
            root = (square / (1 - self.decay**self.count)).sqrt()
            root = root + self.eps + 1e-6 * root.norm()
            values = [
                (q.T @ f @ q).diagonal() for q, f in zip((outputs, inner), factors, strict=True)
            ]
            products = torch.kron(*values)
            damped = products + self.damping * products.mean()
            direction = damped ** (-self.rest) * corrected / root.sqrt()
            norms.append((corrected / root).norm())
            changes.append((basis @ direction).view_as(gradient))
        # As long as Adam's step all together, and each within a factor of the root of two.
        whole = torch.stack(norms).norm() / flat(changes).norm()
        for number, (change, norm) in enumerate(zip(changes, norms, strict=True)):
            own = norm / change.norm()
            changes[number] = change * own * (whole / own).clamp(2**-0.5, 2**0.5)
        factor = self.lr * torch.stack(norms).norm() / flat(changes).norm()
        with torch.no_grad():
            for layer, change in zip(self.layers, changes, strict=True):
                layer.weight -= factor * change[:, :-1]
                layer.bias -= factor * change[:, -1]


@pytest.mark.parametrize("kappa", [-1.0, -0.5, 0.5, 1.0])
def test_steps_are_those_written_out(kappa):
    options = {"kappa": kappa, "damping": 0.05, "betas": (0.8, 0.5), "decay": 0.9, "eps": 1e-5}
    network, predict, batches = two_layers()
    optimizer = hig.KroneckerHIG(
        network.parameters(), lr=0.02, probe_every=1, refresh_every=1, **options
    )
    twin, twin_predict, _ = two_layers()
    by_hand = ByHand(twin, twin_predict, 0.02, **options)

    def loss_of(prediction):
        return (prediction - 1).square().sum(1).mean()

    start = flat(network.parameters())
    for inputs in batches:

        def closure(inputs=inputs):
            prediction = predict(inputs)
            return loss_of(prediction), prediction

        optimizer.step(closure)
        by_hand.step(loss_of, inputs)
        moved = flat(network.parameters()) - start
        assert relative_error(moved, flat(twin.parameters()) - start) < 1e-9
    assert optimizer.report.layers == 2 and optimizer.report.others == 0


# -- the basis -------------------------------------------------------------------------------------


def spd(size, rank=None, groups=2):
    torch.manual_seed(size)
    root = torch.randn(groups, size, rank or 2 * size, **DOUBLE)
    return root @ root.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_are_orthonormal_and_converge_to_eigenvectors(dtype):
    values = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5], **DOUBLE)
    vectors = torch.linalg.qr(spd(5)).Q
    factor = ((vectors * values) @ vectors.mT).to(dtype)
    basis = None
    for _ in range(60):
        basis = followed_basis(factor, basis)
    exact = 64 * torch.finfo(dtype).eps
    one = torch.eye(5, dtype=dtype).expand(2, 5, 5)
    torch.testing.assert_close(basis.mT @ basis, one, rtol=0, atol=exact)
    overlaps = (basis.double().mT @ vectors).abs()
    torch.testing.assert_close(overlaps, one.double(), rtol=0, atol=exact)


def assert_same_directions(basis, other, atol):
    """Columns are equal up to signs and order, which no step depends on."""
    overlaps = (basis.mT @ other).abs()
    for axis in (1, 2):
        nearest = overlaps.amax(axis)
        torch.testing.assert_close(nearest, torch.ones_like(nearest), rtol=0, atol=atol)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rounding_errors_do_not_turn_the_basis(rank, scale):
    """Where eigenvalues are equal or zero, eigenvectors themselves are arbitrary."""
    torch.manual_seed(0)
    factor, error = scale * spd(6, rank), torch.randn(2, 6, 6, **DOUBLE)
    other = factor + 1e-16 * factor.abs().max() * (error + error.mT)
    one, two = None, None
    for _ in range(3):
        one, two = followed_basis(factor, one), followed_basis(other, two)
        assert_same_directions(one, two, 1e-10)
    same = torch.eye(6, **DOUBLE).expand(2, 6, 6)
    assert_same_directions(followed_basis(scale * same, one), one, 1e-12)


def test_a_weak_direction_does_not_stay_before_strong_ones():
    """An exact null vector is a fixed point of the iteration, which rounding alone would leave."""
    null, other = torch.tensor([[1.0, 1, 1, 1]], **DOUBLE) / 2, torch.randn(4, 4, **DOUBLE)
    basis = torch.linalg.qr(torch.cat([null.T, other], 1)).Q[:, :4]
    rows = torch.randn(5, 4, **DOUBLE)
    rows = rows - rows @ null.T @ null
    factor = rows.T @ rows
    basis = followed_basis(factor[None], basis[None])[0]
    assert float((factor @ basis[:, -1]).norm() / factor.norm()) < 1e-12
    assert float((basis[:, -1] @ null.T).abs()) == pytest.approx(1, abs=1e-12)


def test_a_decomposition_that_fails_is_named(monkeypatch):
    with no_convergence(monkeypatch), pytest.raises(hig.DecompositionError, match="graft='layer'"):
        followed_basis(spd(3), None)


def test_a_factor_of_zero_leaves_the_basis_as_it_is():
    zero, basis = torch.zeros(2, 4, 4, **DOUBLE), torch.linalg.qr(spd(4)).Q
    found = followed_basis(zero, basis)
    assert_same_directions(found, basis, 1e-14)
    first = followed_basis(zero, None)
    torch.testing.assert_close(first.abs(), torch.eye(4, **DOUBLE).expand(2, 4, 4))


# -- second moments --------------------------------------------------------------------------------


def state_of(outputs, inputs, power=0.75):
    state = {"step": 1}
    refresh_eigenbasis(state, outputs, inputs, power, 0.1)
    return state


def test_moments_follow_the_basis():
    """Gradients whose coordinates are uncorrelated have these moments in any other basis."""
    state = state_of(spd(2, groups=1), spd(3, groups=1))
    moment = torch.rand(1, 2, 3, **DOUBLE)
    state["moment"], before = moment, torch.kron(state["output_basis"], state["input_basis"])
    refresh_eigenbasis(state, 3 * spd(2, 1, 1), spd(3, 1, 1), 0.75, 0.1)
    after = torch.kron(state["output_basis"], state["input_basis"])
    covariance = before[0] @ moment.flatten().diag() @ before[0].T
    expected = (after[0].T @ covariance @ after[0]).diagonal()
    torch.testing.assert_close(state["moment"].flatten(), expected, rtol=1e-12, atol=0)


def test_the_remaining_power_is_that_of_the_factors():
    outputs, inputs = spd(2, groups=1), spd(3, groups=1)
    state = state_of(outputs, inputs)
    values = [
        (state[name].mT @ factor @ state[name])[0].diagonal()
        for name, factor in (("output_basis", outputs), ("input_basis", inputs))
    ]
    products = torch.outer(*values)
    expected = (products + 0.1 * products.mean()) ** -0.5
    torch.testing.assert_close(state["scale"][0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_of_zero_gives_a_direction_of_zero(dtype):
    state = state_of(torch.zeros(1, 2, 2, dtype=dtype), spd(3, groups=1).to(dtype))
    gradient = torch.ones(1, 2, 3, dtype=dtype)
    steps = eigenbasis_steps([state], [[gradient, gradient]], 0.9, [1e-8])
    assert not steps.directions[0].any() and float(steps.norms[0]) == 0.0


def test_tiny_factors_in_float32_keep_their_power():
    ordinary = state_of(*[spd(size, groups=1).float() for size in (2, 3)])
    tiny = state_of(*[2.0**-84 * spd(size, groups=1).float() for size in (2, 3)])
    torch.testing.assert_close(tiny["output_basis"], ordinary["output_basis"])
    torch.testing.assert_close(tiny["scale"], 2.0**84 * ordinary["scale"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coordinates_that_are_zero_but_for_rounding_stay(dtype):
    """In exact numbers the gradient has no part along the weak directions of the inputs."""
    torch.manual_seed(0)
    rows = torch.randn(1, 4, 2, dtype=dtype) @ torch.randn(1, 2, 6, dtype=dtype)
    state = state_of(torch.eye(3, dtype=dtype)[None], rows.mT @ rows)
    gradient = 1e3 * torch.randn(1, 3, 4, dtype=dtype) @ rows
    steps = eigenbasis_steps([state], [[gradient, gradient]], 0.9, [0.0])
    _, values, right = torch.linalg.svd(rows[0].double())
    outside = steps.directions[0].double() @ right[2:].T
    # Rounding of the gradient over the least root of moments, which is 1e-6 of their norm.
    bound = 64 * torch.finfo(dtype).eps / 1e-6
    assert float(outside.norm()) < bound**0.5 * float(steps.norms[0])
    assert float(values[1]) > 0.1


def test_a_first_step_is_no_jump_for_a_mean_with_a_history():
    """The mean of many gradients may be far above the one that begins the second moments."""
    state = state_of(torch.eye(2, **DOUBLE)[None], torch.eye(3, **DOUBLE)[None]) | {"step": 40}
    gradient, mean = torch.full((1, 2, 3), 1e-9, **DOUBLE), torch.ones(1, 2, 3, **DOUBLE)
    steps = eigenbasis_steps([state], [[gradient, mean]], 0.9, [1e-8])
    assert float(steps.adam_norms[0]) == pytest.approx(6**0.5, rel=1e-4)
