"""Many vector-Jacobian products with one graph: batched if it allows, else one by one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hig._torch.autograd_graph import Node, bytes_taken
from hig._torch.memory import check_room
from hig._torch.pass_memory import Inputs, PassMemory, measure_pass
from hig.errors import out_of_memory

__all__ = ["BatchedVJP", "PassSizes", "dense", "note", "one_hot_cotangents", "output_cotangents"]

Gradients = tuple[Tensor | None, ...]

# Bytes of gradients that one batch of passes holds at one time. On a CPU larger batches are slower:
# what one operation writes has left the cache before the next one reads it. On other devices, and
# for as long as what each operation writes stays in the cache, starting an operation costs more.
PASS_BYTES = 16 * 2**20
CACHED_BYTES = 2 * 2**20
MOST_PASS_BYTES = 256 * 2**20
# On a CPU passes whose gradients are larger than this gain nothing from one another.
ALONE_BYTES = 256 * 2**10
# Graphs remembered per kind of pass, and the number of last nodes by which kinds are distinguished.
KNOWN, LOOKED_AT = 16, 16


@dataclass
class BatchedVJP:
    """Runs backward passes and remembers from step to step whether the graph allows batches.

    Attributes:
        chunk: passes in one batch; None chooses by memory. Halved when memory runs out.
        batched: whether passes are vectorised; turned off by a graph that refuses.
        notes: deviations in this step, for its report.
        sizes: memory of the passes of earlier steps.
    """

    chunk: int | None = None
    batched: bool = True
    notes: list[str] = field(default_factory=list)
    sizes: "PassSizes" = field(default_factory=lambda: PassSizes())

    def gradients(
        self,
        output: Tensor,
        inputs: Inputs,
        passes: int,
        cotangents: Callable[[int, int], Tensor],
        bytes_per_pass: int,
        together: bool = True,
    ) -> Iterator[tuple[slice, Gradients]]:
        """Yield gradients of the inputs, a chunk of passes at a time.

        Args:
            output: the tensor to differentiate.
            inputs: tensors or graph edges to differentiate with respect to.
            passes: number of backward passes.
            cotangents: ``cotangents(start, stop)`` gives (stop - start, *output.shape).
            bytes_per_pass: size of the gradients of one pass.
            together: whether the caller gains from passes that come in batches.

        Yields:
            The passes and their gradients, each (passes, *input.shape), None if unused.

        Raises:
            InsufficientMemoryError: if a ``chunk`` set by the user cannot fit, on a CPU.
            torch.OutOfMemoryError: if not even a single pass fits.
        """
        start = 0
        chunk = self.chunk or self._chunk(output, inputs, passes, bytes_per_pass, together)
        if self.chunk and self.batched and min(passes, chunk) > 1:
            _check_room(output, inputs, min(passes, chunk), self.sizes)
        while start < passes:
            stop = min(start + chunk, passes)
            try:
                grads = self._run(output, inputs, cotangents(start, stop))
            except RuntimeError as error:
                if not out_of_memory(error) or stop - start == 1:
                    raise
                self.chunk = chunk = (stop - start) // 2
                self.notes.append(f"out of memory: backward passes in chunks of {chunk}")
                continue
            yield slice(start, stop), grads
            start = stop

    def _chunk(
        self, output: Tensor, inputs: Inputs, passes: int, bytes_per_pass: int, together: bool
    ) -> int:
        """Return the number of passes in a batch, if the user has not set it."""
        most = min(passes, max(1, MOST_PASS_BYTES // max(1, bytes_per_pass)))
        if most == 1 or not self.batched:
            # One by one, passes share no memory but the gradients asked for.
            return most if self.batched else min(most, _pieces_in(bytes_per_pass, PASS_BYTES))
        held = self.sizes.of(output, inputs)
        size = max(bytes_per_pass, held.peak)
        most = min(most, _pieces_in(size, MOST_PASS_BYTES))
        if output.device.type != "cpu":
            return most
        if not together and held.largest > ALONE_BYTES:
            return 1
        return min(most, max(_pieces_in(size, PASS_BYTES), _pieces_in(held.largest, CACHED_BYTES)))

    def _run(self, output: Tensor, inputs: Inputs, cotangents: Tensor) -> Gradients:
        with _taking_notes(self.notes):
            return self._passes(output, inputs, cotangents)

    def _passes(self, output: Tensor, inputs: Inputs, cotangents: Tensor) -> Gradients:
        refusal = None
        if self.batched and len(cotangents) > 1:
            try:
                return _grad(output, inputs, cotangents, is_grads_batched=True)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                refusal = (str(error).strip() or type(error).__name__).splitlines()[0]
        singles = [_grad(output, inputs, cotangent) for cotangent in cotangents]
        if refusal is not None:
            # Only after the sequential passes succeeded: a broken graph fails either way.
            self.batched = False
            self.notes.append(f"backward passes one by one, the graph refuses batches: {refusal}")
        return tuple(
            None if per_input[0] is None else torch.stack(per_input)
            for per_input in zip(*singles, strict=True)
        )


class PassSizes:
    """Remembers the memory of passes, so that only new graphs are measured.

    Autograd numbers the nodes of a thread in the order in which they are made. Between tensors of
    the same shapes, with the same last operations, a graph that ends as many nodes behind the one
    before it as another did is taken to be that other one.
    """

    def __init__(self) -> None:
        self._known: dict[object, _Known] = {}

    def of(self, output: Tensor, inputs: Inputs) -> PassMemory:
        """Return the memory of one pass from an output to inputs.

        Args:
            output: the tensor to differentiate, with a graph.
            inputs: tensors or graph edges to differentiate with respect to.
        """
        assert output.grad_fn is not None
        number = output.grad_fn._sequence_nr()
        key = (output.device, *map(_shape_or_place, inputs), *_last_operations(output))
        known = self._known.setdefault(key, _Known(number))
        distance = number - known.number
        known.number = number
        if distance not in known.sizes:
            if len(known.sizes) == KNOWN:
                known.sizes.clear()
            known.sizes[distance] = measure_pass(output, inputs)
        known.sizes[0] = known.sizes[distance]  # no distance: the same graph again
        return known.sizes[0]


@dataclass
class _Known:
    """Number of the last graph of a key, and the memory of passes by the distance to it."""

    number: int
    sizes: dict[int, PassMemory] = field(default_factory=dict)


def _shape_or_place(wanted: Tensor | GradientEdge) -> object:
    return wanted.shape if isinstance(wanted, Tensor) else wanted.output_nr


def _last_operations(output: Tensor) -> Iterator[object]:
    """Yield names and sizes of the last nodes, along the first edge of each."""
    node: Node | None = output.grad_fn
    for _ in range(LOOKED_AT):
        if node is None:
            return
        yield node.name(), *bytes_taken(node)
        node = node.next_functions[0][0] if node.next_functions else None


# Of the process, not of a thread: autograd runs backward passes on a GPU in a thread of its own.
_taken: list[list[str]] = []


@contextmanager
def _taking_notes(notes: list[str]) -> Iterator[None]:
    _taken.append(notes)
    try:
        yield
    finally:
        _taken.pop()


def note(text: str) -> None:
    """Add a line to the report of the step whose backward passes run; no effect outside of one.

    Args:
        text: what a part of the graph did differently.
    """
    if _taken and text not in _taken[-1]:
        _taken[-1].append(text)


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor; ``nn.Embedding(sparse=True)`` gives sparse ones."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def output_cotangents(prediction: Tensor) -> Callable[[int, int], Tensor]:
    """Return cotangents (k, B, ...) by output range, each selecting one output of *all* samples."""
    samples = len(prediction)
    outputs = prediction[0].numel()

    def cotangents(start: int, stop: int) -> Tensor:
        select = prediction.new_zeros((stop - start, outputs))
        select[:, start:stop].fill_diagonal_(1)  # indices would be sent to the device
        return select.view(-1, 1, *prediction.shape[1:]).expand(-1, samples, *prediction.shape[1:])

    return cotangents


def one_hot_cotangents(prediction: Tensor) -> Callable[[int, int], Tensor]:
    """Return cotangents (k, B, ...) by row range, each selecting one output of one sample."""

    def cotangents(start: int, stop: int) -> Tensor:
        select = prediction.new_zeros((stop - start, prediction.numel()))
        select[:, start:stop].fill_diagonal_(1)
        return select.view(-1, *prediction.shape)

    return cotangents


def _pieces_in(size: int, room: int) -> int:
    """Return how many pieces of a size fit into a room, at least one."""
    return max(1, room // max(1, size))


def _check_room(output: Tensor, inputs: Inputs, passes: int, sizes: PassSizes) -> None:
    """Raise if even the largest gradient of as many passes at once does not fit into memory."""
    check_room(
        passes * sizes.of(output, inputs).largest,
        output,
        f"the largest gradient in {passes} backward passes at once, for a batch of {len(output)} "
        "samples,",
        "take a smaller chunk (chunk=None chooses by memory, chunk=1 takes pass by pass), a "
        "smaller batch, or method='lanczos', which does without such passes",
    )


def _grad(output: Tensor, inputs: Inputs, cotangents: Tensor, **options: bool) -> Gradients:
    gradients = torch.autograd.grad(
        output, inputs, cotangents, retain_graph=True, allow_unused=True, **options
    )
    return tuple(None if gradient is None else dense(gradient) for gradient in gradients)
