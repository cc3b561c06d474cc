import pytest
import torch

from experiments._measure.derivative_cases import operations
from experiments._measure.derivatives import TOLERANCE, WAYS, examine

X = torch.tensor([[0.3, -0.7], [1.1, 0.4]], dtype=torch.float64)


class Cube(torch.autograd.Function):
    """Its factors of the derivatives can be made wrong, way by way."""

    generate_vmap_rule = True
    backward_factor = forward_factor = 1.0

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return Cube.backward_factor * gradient * 3 * ctx.saved_tensors[0] ** 2

    @staticmethod
    def jvp(ctx, tangent):
        return Cube.forward_factor * tangent * 3 * ctx.saved_tensors[0] ** 2


class Once(Cube):
    """Has no second derivative."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3 * ctx.saved_tensors[0].detach() ** 2


def wrong(function, *inputs):
    found = examine(function, inputs)
    assert list(found) == list(WAYS)
    return {way for way, error in found.items() if isinstance(error, str) or error > TOLERANCE}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sin() * x.roll(1, 0),
        lambda x: torch.linalg.inv(x),
        lambda x: torch.fft.rfft(x),
        lambda x: (x.exp(), x.square().sum()),
        lambda x: torch.complex(x, x.sin()).exp().conj(),
        lambda x: 2 * x,
    ],
)
def test_what_is_right(function):
    assert wrong(function, X) == set()


def test_what_is_wrong_or_missing(monkeypatch):
    # Torch differentiates no jvp of a Function in turn, and does not say so.
    assert wrong(Cube.apply, X) == {"forward twice"}
    assert wrong(lambda x: torch.from_numpy(x.detach().numpy().copy()) * x[0, 0], X) >= {"backward"}
    assert wrong(Once.apply, X) == {"double", "forward twice"}
    monkeypatch.setattr(Cube, "forward_factor", 1.0001)
    assert wrong(Cube.apply, X) == {"forward", "forward twice"}
    monkeypatch.setattr(Cube, "backward_factor", 0.9999)
    assert "backward" in wrong(Cube.apply, X)


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        # Of torch 2.11 and 2.13: when one is right, the table of the docs is to be made again.
        ("cholesky_inverse", {"forward", "forward twice"}),
        ("layer_norm", {"forward twice"}),
        ("cdist", {"vmapped", "forward", "double", "forward twice"}),
        ("tanh", set()),
        ("linalg.solve", {"forward twice"}),
        ("rms_norm", set()),
    ],
)
def test_operations_of_torch(name, ways):
    function, inputs = operations()[name]
    assert wrong(function, *inputs) == ways
