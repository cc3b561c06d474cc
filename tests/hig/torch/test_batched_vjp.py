"""Many backward passes: batched or one by one, in chunks of any size, always the same rows."""

import pytest
import torch
from torch import nn

from hig._torch import batched_vjp as batched_vjp_module
from hig._torch.batched_vjp import BatchedVJP, note, one_hot_cotangents, output_cotangents
from hig._torch.pass_memory import measure_pass
from tests.textbook import relative_error, textbook_jacobian


def passing(backward):
    """An identity whose backward is ``backward(cotangent)``."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            return backward(cotangent)

    return Function.apply


REFUSING = {
    "item": lambda c: c * c.sum().item() ** 0,
    "numpy": lambda c: torch.from_numpy(c.numpy().copy()),
    "branch": lambda c: c if (c == c).all() else -c,
    "in place": lambda c: torch.zeros(c.shape, dtype=c.dtype).copy_(c),
}


def problem(wrap=lambda x: x, seed=0):
    """A prediction (4, 3), the parameters behind it and their Jacobian."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    parameters = list(network.parameters())
    inputs = torch.randn(4, 2, dtype=torch.float64)
    return wrap(network(inputs)), parameters, textbook_jacobian(network(inputs), parameters)


def rows_of(backward, prediction, parameters, bytes_per_pass=8):
    """All rows of the Jacobian, and the chunks they came in."""
    rows, chunks = [], []
    for chosen, gradients in backward.gradients(
        prediction,
        parameters,
        prediction.numel(),
        one_hot_cotangents(prediction),
        bytes_per_pass,
    ):
        chunks.append((chosen.start, chosen.stop))
        rows.append(torch.cat([gradient.flatten(1) for gradient in gradients], dim=1))
    return torch.cat(rows), chunks


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 5, 12, 100])
def test_rows_do_not_depend_on_the_way_they_are_computed(batched, chunk):
    prediction, parameters, expected = problem()
    backward = BatchedVJP(chunk, batched)
    found, chunks = rows_of(backward, prediction, parameters)
    assert relative_error(found, expected) < 1e-14
    size = min(chunk or 12, 12)
    assert chunks == [(first, min(first + size, 12)) for first in range(0, 12, size)]
    assert backward.notes == []
    assert (backward.chunk, backward.batched) == (chunk, batched)


@pytest.mark.parametrize(
    ("room", "size", "expected"),
    [
        (100, 30, 1),  # a single pass holds more than that
        (1000, 30, 3),  # what lies between is more than what is asked for
        (1000, 450, 2),  # what is asked for decides
        (10**6, 30, 12),
        (10**6, 0, 12),
        (1000, 10**9, 1),
    ],
)
def test_the_chunk_is_chosen_by_memory(monkeypatch, room, size, expected):
    monkeypatch.setattr(batched_vjp_module, "PASS_BYTES", room)
    monkeypatch.setattr(batched_vjp_module, "CACHED_BYTES", 0)
    prediction, parameters, jacobian = problem()
    assert 250 < measure_pass(prediction, parameters).peak <= 333
    found, chunks = rows_of(BatchedVJP(), prediction, parameters, bytes_per_pass=size)
    assert chunks[0] == (0, expected)
    assert relative_error(found, jacobian) < 1e-14


def test_batches_are_one_pass_through_the_graph():
    calls = []
    prediction, parameters, _ = problem(passing(lambda c: (calls.append(tuple(c.shape)), c)[1]))
    rows_of(BatchedVJP(), prediction, parameters)
    assert len(calls) == 1
    rows_of(BatchedVJP(chunk=5), prediction, parameters)
    assert len(calls) == 1 + 3
    rows_of(BatchedVJP(batched=False), prediction, parameters)
    assert len(calls) == 1 + 3 + 12


def test_the_graph_survives():
    prediction, parameters, expected = problem()
    for _ in range(2):
        assert relative_error(rows_of(BatchedVJP(), prediction, parameters)[0], expected) < 1e-14


@pytest.mark.parametrize("batched", [True, False])
def test_unused_inputs_have_no_gradient(batched):
    prediction, parameters, _ = problem()
    spare = torch.ones(2, dtype=torch.float64, requires_grad=True)
    passes = BatchedVJP(batched=batched).gradients(
        prediction, [spare, parameters[0]], 12, one_hot_cotangents(prediction), 8
    )
    for _, (unused, used) in passes:
        assert unused is None
        assert used.shape == (12, *parameters[0].shape)


@pytest.mark.parametrize("batched", [True, False])
def test_gradients_of_graph_edges(batched):
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True) * 2
    edge = torch.autograd.graph.get_gradient_edge(hidden)
    prediction = hidden**2
    ((_, (found,)),) = BatchedVJP(batched=batched).gradients(
        prediction, [edge], 12, one_hot_cotangents(prediction), 8
    )
    expected = torch.diag(2 * hidden.detach().flatten())
    assert torch.equal(found.flatten(1), expected)


# -- graphs that refuse batches -----------------------------------------------------------------


@pytest.mark.parametrize("kind", REFUSING)
@pytest.mark.parametrize("chunk", [None, 5])
def test_a_graph_that_refuses_batches_is_run_one_by_one(kind, chunk):
    prediction, parameters, expected = problem(passing(REFUSING[kind]))
    backward = BatchedVJP(chunk)
    found, _ = rows_of(backward, prediction, parameters)
    assert relative_error(found, expected) < 1e-14
    assert not backward.batched
    (note,) = backward.notes  # once, not once per chunk
    assert note.startswith("backward passes one by one, the graph refuses batches: ")
    assert len(note.splitlines()) == 1 and len(note.split("batches: ")[1]) > 5


def test_a_refusal_is_remembered():
    calls = []

    def refuse(cotangent):
        calls.append(cotangent)
        return REFUSING["item"](cotangent)

    prediction, parameters, expected = problem(passing(refuse))
    backward = BatchedVJP(chunk=5)
    rows_of(backward, prediction, parameters)
    assert len(calls) == 1 + 12
    backward.notes.clear()  # as between steps
    found, _ = rows_of(backward, prediction, parameters)
    assert len(calls) == 1 + 12 + 12
    assert backward.notes == []
    assert relative_error(found, expected) < 1e-14


@pytest.mark.parametrize("batched", [True, False])
def test_a_genuine_error_is_raised_and_teaches_nothing(batched):
    def broken(cotangent):
        raise RuntimeError("the solver diverged")

    prediction, parameters, _ = problem(passing(broken))
    backward = BatchedVJP(batched=batched)
    with pytest.raises(RuntimeError, match="the solver diverged"):
        rows_of(backward, prediction, parameters)
    assert backward.batched == batched
    assert backward.notes == []


def test_errors_that_no_refusal_raises_are_not_retried():
    calls = []

    def broken(cotangent):
        calls.append(1)
        raise KeyError("density")

    prediction, parameters, _ = problem(passing(broken))
    with pytest.raises(KeyError, match="density"):
        rows_of(BatchedVJP(), prediction, parameters)
    assert len(calls) == 1


def test_a_freed_graph_is_a_genuine_error():
    prediction, parameters, _ = problem()
    torch.autograd.grad(prediction.sum(), parameters)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        rows_of(BatchedVJP(), prediction, parameters)


# -- out of memory ------------------------------------------------------------------------------


def limited(monkeypatch, most, error):
    """Let batches of more than ``most`` passes run out of memory; return their sizes."""
    original, sizes = batched_vjp_module._grad, []

    def grad(output, inputs, cotangents, **options):
        passes = len(cotangents) if options.get("is_grads_batched") else 1
        sizes.append(passes)
        if passes > most:
            raise error
        return original(output, inputs, cotangents, **options)

    monkeypatch.setattr(batched_vjp_module, "_grad", grad)
    return sizes


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: out of memory, nothing to allocate"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["device", "cpu", "driver"])
@pytest.mark.parametrize(
    ("most", "sizes", "chunk"),
    [(6, [12, 6, 6], 6), (3, [12, 6, 3, 3, 3, 3], 3), (1, [12, 6, 3] + [1] * 12, 1)],
)
def test_the_chunk_is_halved_until_it_fits(monkeypatch, error, most, sizes, chunk):
    prediction, parameters, expected = problem()
    seen = limited(monkeypatch, most, error)
    backward = BatchedVJP()
    found, _ = rows_of(backward, prediction, parameters)
    assert seen == sizes
    assert relative_error(found, expected) < 1e-14
    assert backward.chunk == chunk
    assert backward.batched  # memory is no refusal
    assert backward.notes[-1] == f"out of memory: backward passes in chunks of {chunk}"
    # The next step starts with what was learnt.
    seen.clear()
    backward.notes.clear()
    rows_of(backward, prediction, parameters)
    assert max(seen) == chunk
    assert backward.notes == []


def test_memory_that_runs_out_half_way_loses_no_row(monkeypatch):
    prediction, parameters, expected = problem()
    original, calls = batched_vjp_module._grad, []

    def grad(output, inputs, cotangents, **options):
        calls.append(len(cotangents))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(output, inputs, cotangents, **options)

    monkeypatch.setattr(batched_vjp_module, "_grad", grad)
    found, chunks = rows_of(BatchedVJP(chunk=5), prediction, parameters)
    assert chunks == [(0, 5), (5, 7), (7, 9), (9, 11), (11, 12)]
    assert relative_error(found, expected) < 1e-14


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["device", "cpu", "driver"])
def test_a_single_pass_that_does_not_fit_is_an_error(monkeypatch, error):
    prediction, parameters, _ = problem()
    seen = limited(monkeypatch, 0, error)
    with pytest.raises(type(error), match="allocate"):
        rows_of(BatchedVJP(), prediction, parameters)
    assert seen[-1] == 1


def test_cotangents_that_do_not_fit_halve_the_chunk_too():
    prediction, parameters, expected = problem()
    one_hot = one_hot_cotangents(prediction)

    def cotangents(start, stop):
        if stop - start > 4:
            raise torch.OutOfMemoryError("out of memory")
        return one_hot(start, stop)

    backward = BatchedVJP()
    rows = [
        torch.cat([g.flatten(1) for g in gradients], dim=1)
        for _, gradients in backward.gradients(prediction, parameters, 12, cotangents, 8)
    ]
    assert relative_error(torch.cat(rows), expected) < 1e-14
    assert backward.chunk == 3


# -- cotangents ---------------------------------------------------------------------------------

SHAPES = [(4, 3), (4,), (1, 5), (3, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot_cotangents_are_the_rows_of_the_identity(shape, dtype):
    prediction = torch.zeros(shape, dtype=dtype)
    n = prediction.numel()
    every = one_hot_cotangents(prediction)(0, n)
    assert every.shape == (n, *shape) and every.dtype == dtype
    assert torch.equal(every.flatten(1), torch.eye(n, dtype=dtype))
    assert torch.equal(one_hot_cotangents(prediction)(1, n - 1), every[1 : n - 1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_cotangents_select_one_output_of_all_samples(shape, dtype):
    prediction = torch.zeros(shape, dtype=dtype)
    outputs = prediction[0].numel()
    every = output_cotangents(prediction)(0, outputs)
    assert every.shape == (outputs, *shape) and every.dtype == dtype
    expected = torch.eye(outputs, dtype=dtype)[:, None].expand(-1, shape[0], -1)
    assert torch.equal(every.reshape(outputs, shape[0], outputs), expected)
    assert torch.equal(output_cotangents(prediction)(0, 1), every[:1])


def test_notes_of_the_graph_come_once_and_only_from_passes():
    def noting(cotangent):
        note("taken another way")
        return cotangent

    inputs = torch.randn(4, 3, requires_grad=True)
    backward = BatchedVJP()
    output = passing(noting)(inputs)
    for _ in range(2):
        list(backward.gradients(output, [inputs], 12, one_hot_cotangents(output), 48))
    note("outside of a step")
    assert backward.notes == ["taken another way"]
