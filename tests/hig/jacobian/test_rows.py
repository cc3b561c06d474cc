"""The rows engine: held or streamed, cut anywhere, coupled samples included."""

import pytest
import torch
from torch import nn

from hig._jacobian import rows as rows_module
from hig._jacobian.blocks import DenseBlock
from hig._jacobian.rows import StreamedBlock, _pieces, rows_block
from hig._torch.batched_vjp import BatchedVJP
from tests.hig.networks import build
from tests.textbook import relative_error, textbook_jacobian


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem(name="batch norm"):
    network, inputs = build(name)
    parameters = list(network.parameters())
    prediction = network(inputs)
    return prediction, parameters, textbook_jacobian(prediction, parameters)


# -- cutting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 7, 100])
@pytest.mark.parametrize("sizes", [[6], [1, 1, 1], [3, 4, 5], [10, 1, 2], [0, 4, 0, 2, 0], []])
def test_pieces_cover_every_column_once_and_in_order(sizes, width):
    runs = list(_pieces(sizes, width))
    columns = [
        (index, column)
        for run in runs
        for index, first, last in run
        for column in range(first, last)
    ]
    assert columns == [
        (index, column) for index, size in enumerate(sizes) for column in range(size)
    ]
    lengths = [sum(last - first for _, first, last in run) for run in runs]
    assert all(length == width for length in lengths[:-1])
    assert all(0 < length <= width for length in lengths)
    for run in runs:  # a parameter occurs once per run, and no piece is empty
        assert len({index for index, _, _ in run}) == len(run)
        assert all(first < last for _, first, last in run)


def test_pieces_of_a_known_case():
    assert list(_pieces([3, 4], 5)) == [[(0, 0, 3), (1, 0, 2)], [(1, 2, 4)]]


# -- blocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "batch norm", "viscosity", "recurrent", "embedding"])
def test_a_small_jacobian_is_held(name):
    prediction, parameters, expected = problem(name)
    block = rows_block(prediction, parameters, BatchedVJP())
    assert isinstance(block, DenseBlock)
    assert relative_error(block.rows(slice(0, len(prediction))), expected) < 1e-13
    outputs = prediction[0].numel()
    one = block.rows(slice(2, 3))
    assert relative_error(one, expected[2 * outputs : 3 * outputs]) < 1e-13


def test_the_limit_of_what_is_held():
    prediction, parameters, expected = problem()
    size = expected.numel() * 8
    assert isinstance(rows_block(prediction, parameters, BatchedVJP(), size), DenseBlock)
    assert isinstance(rows_block(prediction, parameters, BatchedVJP(), size - 1), StreamedBlock)
    assert rows_module.HELD_BYTES == 2**30


@pytest.mark.parametrize("name", ["batch norm", "viscosity", "recurrent"])
@pytest.mark.parametrize("held_columns", [1, 2, 7, 1000])
@pytest.mark.parametrize("chunk", [None, 4])
def test_streamed_products(name, held_columns, chunk):
    prediction, parameters, expected = problem(name)
    n, columns = expected.shape
    block = StreamedBlock(prediction, parameters, BatchedVJP(chunk), held_columns * n * 8)
    assert block.columns == columns
    weights, direction = randn(n), randn(columns, seed=1)
    gram = torch.ones(n, n, dtype=torch.float64)
    block.add_gram(gram)
    assert relative_error(gram - 1, expected @ expected.T) < 1e-12
    assert relative_error(block.vjp(weights), expected.T @ weights) < 1e-12
    assert relative_error(block.jvp(direction), expected @ direction) < 1e-12
    assert relative_error(block.rows(slice(1, 3)), expected[n // 5 : 3 * n // 5]) < 1e-12


@pytest.mark.parametrize("held_columns", [1, 3, 10])
def test_no_more_columns_are_held_than_allowed(monkeypatch, held_columns):
    prediction, parameters, expected = problem("mlp")
    n = len(expected)
    widths = []
    original = DenseBlock.add_gram
    monkeypatch.setattr(
        DenseBlock,
        "add_gram",
        lambda self, gram: (widths.append(self.columns), original(self, gram))[1],
    )
    block = StreamedBlock(prediction, parameters, BatchedVJP(), held_columns * n * 8)
    block.add_gram(torch.zeros(n, n, dtype=torch.float64))
    assert max(widths) == held_columns
    assert sum(widths) == expected.shape[1]


@pytest.mark.parametrize(("start", "stop"), [(0, 15), (3, 8), (14, 15)])
def test_any_rectangle_of_the_jacobian(start, stop):
    prediction, parameters, expected = problem("mlp")  # weights (8, 4), biases 8, ...
    pieces = [(0, 5, 20), (1, 0, 8), (4, 23, 24)]
    block = StreamedBlock(prediction, parameters, BatchedVJP())
    found = block.columns_of(pieces, start, stop)
    offsets = [0, 32, 40, 104, 112]
    chosen = [range(offsets[i] + first, offsets[i] + last) for i, first, last in pieces]
    columns = [column for piece in chosen for column in piece]
    assert relative_error(found, expected[start:stop][:, columns]) < 1e-13


@pytest.mark.parametrize("held_bytes", [1, 2**30])
def test_parameters_without_influence_have_zero_columns(held_bytes):
    prediction, parameters, expected = problem("mlp")
    spare = torch.ones(3, dtype=torch.float64, requires_grad=True)
    block = rows_block(prediction, [parameters[0], spare, parameters[1]], BatchedVJP(), held_bytes)
    weights = randn(len(expected))
    found = block.vjp(weights).split([32, 3, 8])
    assert torch.equal(found[1], torch.zeros(3, dtype=torch.float64))
    assert relative_error(found[0], expected[:, :32].T @ weights) < 1e-13
    assert relative_error(found[2], expected[:, 32:40].T @ weights) < 1e-13
    assert not block.rows(slice(0, len(prediction)))[:, 32:35].any()


def test_scalar_and_empty_parameters():
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    x = randn(4, 2)
    prediction = scale * x + empty.sum()
    block = rows_block(prediction, [empty, scale], BatchedVJP())
    assert torch.equal(block.rows(slice(0, 4)), x.flatten()[:, None])


def test_a_graph_that_refuses_batches_is_streamed_too():
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * cotangent.sum().item() ** 0

    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    plain = layer(randn(4, 3)).tanh()
    prediction, parameters = Refuses.apply(plain), list(layer.parameters())
    expected = textbook_jacobian(plain, parameters)
    for held_bytes in [1, 2**30]:
        backward = BatchedVJP()
        block = rows_block(prediction, parameters, backward, held_bytes)
        gram = torch.zeros(8, 8, dtype=torch.float64)
        block.add_gram(gram)
        assert relative_error(gram, expected @ expected.T) < 1e-13
        assert len(backward.notes) == 1
