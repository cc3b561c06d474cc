"""Check that calls of a simulator are independent of one another."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hig.testing._report import Check
from hig.testing._simulator import SimulationError, Simulator, nearby, same_random_numbers

__all__ = ["check_calls"]

_NAME = "call independence"
_DISTANCE = 0.1


@dataclass
class _Call:
    """Call with a graph: inputs and output, and copies of them for comparison."""

    leaves: list[Tensor]
    given: list[Tensor]
    output: Tensor
    cotangent: Tensor
    kept_inputs: list[Tensor]
    kept_output: Tensor

    @classmethod
    def of(cls, simulator: Simulator, inputs: list[Tensor], seed: int) -> "_Call":
        leaves = [inputs[position].clone().requires_grad_() for position in simulator.floating]
        arguments = [value.clone() for value in inputs]
        with torch.enable_grad(), same_random_numbers():
            for position, leaf in zip(simulator.floating, leaves, strict=True):
                arguments[position] = leaf.clone()  # not a leaf, which may not change in place
            output = simulator.simulate(*arguments)
        generator = torch.Generator("cpu").manual_seed(seed)
        cotangent = torch.randn(
            output.shape, generator=generator, dtype=torch.float64, device="cpu"
        ).to(output)
        return cls(leaves, arguments, output, cotangent, inputs, output.detach().clone())

    def gradients(self, simulator: Simulator) -> tuple[Tensor, ...]:
        """Compute the gradients of the leaves, not copied."""
        return simulator.pulled_back(self.output, self.leaves, self.cotangent.clone())


def check_calls(simulator: Simulator) -> Check:
    """Check that two calls keep outputs, inputs and derivatives separate, in any order."""
    inputs = [nearby(simulator.inputs, seed, _DISTANCE) for seed in (1, 2)]
    try:
        alone = _one_by_one(simulator, inputs)
    except SimulationError:  # farther from the inputs than the simulator may support
        inputs = [nearby(simulator.inputs, seed) for seed in (1, 2)]
        alone = _one_by_one(simulator, inputs)
    wrong = (
        _in_order(simulator, inputs, alone, (0, 1))
        or _in_order(simulator, inputs, alone, (1, 0))
        or _after_a_trial(simulator, inputs, alone)
    )
    if wrong:
        return Check(_NAME, "fail", *wrong)
    return Check(_NAME, "ok", "a later call changes no output and no derivative")


def _one_by_one(simulator: Simulator, inputs: list[list[Tensor]]) -> list[list[Tensor]]:
    """Gradients of each call, its backward pass before the next call."""
    calls = (_Call.of(simulator, x, seed) for seed, x in enumerate(inputs))
    return [[gradient.clone() for gradient in call.gradients(simulator)] for call in calls]


def _in_order(
    simulator: Simulator,
    inputs: list[list[Tensor]],
    alone: list[list[Tensor]],
    order: tuple[int, int],
) -> tuple[str, str] | None:
    """Make two calls, then their backward passes in an order; return a fault and its remedy."""
    calls = [_Call.of(simulator, x, seed) for seed, x in enumerate(inputs)]
    if not _close(calls[0].output, calls[0].kept_output):
        return "a second call overwrites the output of the first", _COPY
    gradients: dict[int, tuple[Tensor, ...]] = {}
    for place in order:
        try:
            gradients[place] = calls[place].gradients(simulator)
        except SimulationError as raised:
            return f"the backward pass of one of two calls fails: {raised}", _STATE
        which = ("first", "second")[place]
        error = _difference(gradients[place], alone[place])
        if error > 0:
            return f"the derivative of the {which} of two calls is {error:.0%} off", _STATE
    for place, call in enumerate(calls):
        if not _close(call.output, call.kept_output):
            return "a backward pass overwrites an output", _COPY
        if _difference(gradients[place], alone[place]) > 0:
            return "a second backward pass overwrites the gradient of the first", _COPY_GRADIENT
        kept = zip(call.given, call.kept_inputs, strict=True)
        changed = [i for i, (now, before) in enumerate(kept) if not torch.equal(now, before)]
        if changed:
            return f"inputs {changed} change in place, with gradients or by later calls", _IN_PLACE
    return None


def _after_a_trial(
    simulator: Simulator, inputs: list[list[Tensor]], alone: list[list[Tensor]]
) -> tuple[str, str] | None:
    """Make a call, one without gradients as by step rules, and the backward pass of the first."""
    call = _Call.of(simulator, inputs[0], 0)
    simulator(*inputs[1])
    try:
        error = _difference(call.gradients(simulator), alone[0])
    except SimulationError as raised:
        return f"the backward pass fails after a call without gradients: {raised}", _STATE
    if error > 0:
        return f"after a call without gradients the derivative is {error:.0%} off", _STATE
    return None


def _close(now: Tensor, before: Tensor) -> bool:
    return _difference([now.detach()], [before]) == 0


def _difference(actual: "tuple[Tensor, ...] | list[Tensor]", expected: list[Tensor]) -> float:
    """Relative difference of two lists of tensors; zero if it may be rounding."""
    worst = 0.0
    for one, other in zip(actual, expected, strict=True):
        distance = float((one.double() - other.double()).norm())
        relative = distance / max(float(other.double().norm()), 1e-300)
        if not relative <= torch.finfo(one.dtype).eps ** 0.5:
            worst = max(worst, relative if relative == relative else float("inf"))
    return worst


_COPY = "return a copy: the output shares memory with a buffer of the simulator"
_COPY_GRADIENT = "return copies from the backward pass: it returns a buffer of the simulator"
_IN_PLACE = "copy inputs that are kept or written into: state = state + ..., not state += ..."
_STATE = (
    "state of the solver's last run is used: copy in every call what its backward pass needs, or "
    "run the solver again there; until then only one call of it in a closure is right"
)
