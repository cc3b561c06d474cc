"""``hig.rollout`` against the loop that one would write down, for sampled sizes.

Both are the same sums in another order, over a chain of contractions: exact to some hundred
roundings of the largest of their numbers.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st

import hig

TOLERANCE = 300 * torch.finfo(torch.float64).eps


@st.composite
def simulations(draw):
    """A random contraction, nonlinear or linear, with its states, controls and cotangents."""
    batch, times, size, width = (draw(st.integers(1, most)) for most in (4, 6, 5, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    by_state, by_control = 0.5 * normal(size, size) / size**0.5, normal(width, size)
    if draw(st.booleans()):

        def step(state, control):
            return (state @ by_state + control @ by_control).tanh()

    else:
        turns = 0.3 * normal(width, size, size)
        step = hig.LinearStep(
            lambda control: by_state + torch.einsum("...c,cij->...ij", control.tanh(), turns)
        )
    state = normal(batch, size).requires_grad_()
    controls = normal(batch, times, width).requires_grad_()
    return step, state, controls, (normal(batch, size), normal(batch, times + 1, size))


def loop(step, state, controls):
    states = [state]
    for time in range(controls.shape[1]):
        states.append(step(states[-1], controls[:, time]))
    return states[-1], torch.stack(states, 1)


@given(simulations(), st.sampled_from(["auto", "jacobians", "loop"]), st.booleans())
def test_states_and_gradients(simulation, method, trajectory):
    step, state, controls, (of_final, of_states) = simulation
    expected = loop(step, state, controls)
    if trajectory:
        found = hig.rollout(step, state, controls, trajectory=True, method=method)
    else:
        found = (hig.rollout(step, state, controls, method=method),)
    losses = [
        sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
        for outputs, weights in (
            (found, (of_final, of_states)[: len(found)]),
            (expected[: len(found)], (of_final, of_states)[: len(found)]),
        )
    ]
    gradients = [torch.autograd.grad(loss, (state, controls)) for loss in losses]
    for a, b in [*zip(found, expected, strict=False), *zip(*gradients, strict=True)]:
        a, b = a.detach(), b.detach()
        assert float((a - b).abs().max()) <= TOLERANCE * (1 + float(b.abs().max()))
