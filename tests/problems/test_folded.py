from contextlib import contextmanager

import pytest
import torch

from problems._folded import folded, unit_samples


class Refusing(torch.autograd.Function):
    """x -> (x³, sum of x²), differentiable once and one cotangent at a time."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.cat([x**3, x.square().sum(1, keepdim=True)], 1)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        if torch._C._functorch.is_legacy_batchedtensor(cotangent):
            raise RuntimeError("no batch of cotangents here")
        return 3 * x**2 * cotangent[:, :-1] + 2 * x * cotangent[:, -1:]


class Counted:
    """A simulation that refuses batches and counts the samples of its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x):
        self.calls.append(len(x))
        return Refusing.apply(x)


def case(samples=4, passes=5):
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, 3, generator=generator, dtype=torch.float64).requires_grad_()
    return x, torch.randn(passes, samples, 4, generator=generator, dtype=torch.float64)


def batched(y, x, cotangents):
    return torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)[0]


def one_by_one(y, x, cotangents):
    return torch.stack([torch.autograd.grad(y, x, c, retain_graph=True)[0] for c in cotangents])


def test_the_example_refuses_batches():
    x, cotangents = case()
    with pytest.raises(RuntimeError, match="batch"):
        batched(Refusing.apply(x), x, cotangents)


@pytest.mark.parametrize(("samples", "passes"), [(4, 5), (1, 3), (6, 1)])
@pytest.mark.parametrize("together", [True, False])
def test_same_values_and_gradients(samples, passes, together):
    x, cotangents = case(samples, passes)
    expected = Refusing.apply(x)
    y = folded(Counted(), together=together)(x)
    assert torch.equal(y, expected)
    gradients = one_by_one(expected, x, cotangents)
    torch.testing.assert_close(batched(y, x, cotangents), gradients)
    torch.testing.assert_close(one_by_one(y, x, cotangents), gradients)


def test_a_batch_of_passes_is_one_more_simulation_and_a_single_pass_none():
    x, cotangents = case(4, 5)
    together, single = Counted(), Counted()
    y = folded(together)(x)
    one_by_one(y, x, cotangents)
    assert together.calls == [4]
    batched(y, x, cotangents)
    assert together.calls == [4, 20]
    batched(folded(single, together=False)(x), x, cotangents)
    assert single.calls == [4]


def test_cotangents_batched_along_another_axis():
    x, cotangents = case()
    y = folded(Counted())(x)

    def pull(cotangent):
        return torch.autograd.grad(y, x, cotangent, retain_graph=True)[0]

    found = torch.func.vmap(pull, in_dims=2)(cotangents.movedim(0, 2))
    torch.testing.assert_close(found, one_by_one(y, x, cotangents))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_graph_continues_to_both_sides(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, generator=generator).to(dtype).requires_grad_()
    x = torch.randn(4, 2, generator=generator).to(dtype)

    def gradient(simulate):
        loss = simulate(x @ weight.T).square().sum()
        return torch.autograd.grad(loss, weight)[0]

    found = gradient(folded(Refusing.apply))
    assert found.dtype == dtype
    torch.testing.assert_close(found, gradient(Refusing.apply))


def test_forward_and_backward_run_in_the_scope():
    inside, seen = [], []

    @contextmanager
    def scope(values):
        inside.append(values.shape)
        yield
        inside.pop()

    class Watched(Refusing):
        @staticmethod
        def backward(ctx, cotangent):
            seen.append(("backward", bool(inside)))
            return Refusing.backward(ctx, cotangent)

    def simulate(x):
        seen.append(("forward", bool(inside)))
        return Watched.apply(x)

    x, cotangents = case()
    y = folded(simulate, scope)(x)
    one_by_one(y, x, cotangents[:1])
    batched(y, x, cotangents)
    order = ["forward", "backward", "forward", "backward"]
    assert seen == [(name, True) for name in order]
    assert not inside


def test_cotangents_reach_the_simulation_with_length_one_whatever_their_scale():
    lengths = []

    class Watched(Refusing):
        @staticmethod
        def backward(ctx, cotangent):
            lengths.extend(cotangent.norm(dim=1).tolist())
            return Refusing.backward(ctx, cotangent)

    x, cotangents = case(4, 2)
    scales = torch.tensor([1e-100, 1.0, 0.0, 1e12], dtype=torch.float64)
    scaled = cotangents * scales[:, None]
    found = batched(folded(Watched.apply)(x), x, scaled)
    torch.testing.assert_close(found, one_by_one(Refusing.apply(x), x, scaled), rtol=1e-12, atol=0)
    assert lengths == pytest.approx([1, 1, 0, 1] * 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cotangent_that_is_not_finite_spoils_its_own_sample_alone(bad):
    x, cotangents = case(4, 2)
    cotangents[1, 2, 0] = bad
    found = batched(folded(Refusing.apply)(x), x, cotangents)
    assert found[1, 2].isnan().all()
    assert found.isnan().sum() == 3


def test_second_derivatives_are_refused():
    x, _ = case()
    y = folded(Refusing.apply)(x)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_the_batch_axis_must_stay():
    with pytest.raises(ValueError, match=r"keep the batch axis, it turned shape \(4, 3\) into \(3"):
        folded(lambda x: x.sum(0))(case()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_samples(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 2, 3, generator=generator).to(dtype)
    values[1] *= 1e-30
    values[2] = 0
    values[3] *= 1e30
    values[4, 0, 0] = float("inf")
    unit, length = unit_samples(values)
    assert unit.dtype == length.dtype == dtype
    assert length.shape == (5, 1, 1)
    expected = unit.new_tensor([1, 1, 0, 1, 0])
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), expected)
    assert length[2] == 1
    torch.testing.assert_close((unit * length)[:4], values[:4])
    assert (unit * length)[4].isnan().all()


def test_unit_samples_keep_the_gradient_of_a_linear_operation():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[1.0, 2.0], [0.0, 5.0]], dtype=torch.float64)
    unit, length = unit_samples(x)
    assert not length.requires_grad
    cotangent = torch.tensor([[1.0, -1.0], [2.0, 0.5]], dtype=torch.float64)
    (found,) = torch.autograd.grad(unit @ matrix.T * length, x, cotangent)
    torch.testing.assert_close(found, cotangent @ matrix)
