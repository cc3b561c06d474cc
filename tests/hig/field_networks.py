"""Small networks of the kinds that the field uses: name -> a function that makes one.

Each returns the network and a function that takes it, in any precision, to a prediction (B, ...).
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

BATCH = 6


def data(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def on(inputs, arrange=lambda y: y):
    return lambda network, dtype: arrange(network(inputs.to(dtype)))


def with_norm(norm):
    layers = nn.Conv1d(1, 4, 3, padding=1), norm, nn.Tanh(), nn.Conv1d(4, 1, 3, padding=1)
    return nn.Sequential(*layers), on(data(BATCH, 1, 7), lambda y: y.flatten(1))


def of_features(*layers):
    return nn.Sequential(nn.Linear(5, 6), *layers, nn.Tanh(), nn.Linear(6, 3)), on(data(BATCH, 5))


class Cell(nn.Module):
    """A recurrent cell that controls a simulation."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.out = kind(3, 5), nn.Linear(5, 3)

    def forward(self, x):
        state, found = None, []
        for _ in range(3):
            state = self.cell(x, state)
            hidden = state[0] if isinstance(state, tuple) else state
            x = x + 0.3 * self.out(hidden)
            found.append(x)
        return torch.stack(found, 1)


class DeepONet(nn.Module):
    """The trunk is called once for all samples."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4))
        self.trunk = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 4))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        points = torch.linspace(0, 1, 5, dtype=x.dtype)[:, None]
        return torch.einsum("bi,ni->bn", self.branch(x), self.trunk(points)) + self.bias


class Fourier(nn.Module):
    """A layer of a Fourier neural operator; complex weights, or their real view."""

    def __init__(self, real=False):
        super().__init__()
        weight = torch.randn(2, 3, 4, 2) / 2
        self.weight = nn.Parameter(weight if real else torch.view_as_complex(weight))
        self.lift, self.lower = nn.Linear(1, 2), nn.Linear(3, 1)

    def forward(self, x):
        modes = torch.fft.rfft(self.lift(x[..., None]).mT)
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        low = torch.einsum("bix,iox->box", modes[..., :4], weight)
        fields = torch.fft.irfft(F.pad(low, (0, modes.shape[-1] - 4)), n=x.shape[-1])
        return self.lower(fields.mT.tanh())[..., 0]


class Scaled(nn.Module):
    """Scales, shifts and quotients of several shapes, and a sum of constants and parameters."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.gain, self.one = nn.Parameter(torch.randn(4)), nn.Parameter(torch.tensor(0.7))
        self.shift, self.divisor = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.rand(4) + 1)

    def forward(self, x):
        hidden = self.layer(x)
        scaled = hidden * self.gain * 2 + (1 - self.one) * hidden.sin() - 3 * self.shift
        return (scaled + self.shift[:, :1]) / self.divisor


class Positive(nn.Module):
    """Parameters that are positive by a function of them, and one of unit length."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.rate, self.axis = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        axis = self.axis / self.axis.norm()
        decay = torch.exp(-F.softplus(self.rate))
        return self.layer(x).tanh() * decay + (x * axis).sum(1, keepdim=True) * axis


class Graphs(nn.Module):
    """Messages between the nodes of graphs, which share one axis; graphs differ in size."""

    SIZES = (3, 4, 5, 3, 4, 6)

    def __init__(self):
        super().__init__()
        self.edge, self.node = nn.Linear(4, 5), nn.Linear(5, 1)

    def forward(self, x):
        sizes = torch.tensor(self.SIZES)
        first = (sizes.cumsum(0) - sizes).tolist()
        after = torch.cat([torch.arange(n).roll(1) + s for n, s in zip(sizes, first, strict=True)])
        messages = self.edge(torch.cat([x, x[after]], 1)).tanh()
        received = torch.zeros_like(messages).index_add(0, after, messages)
        graph = torch.repeat_interleave(torch.arange(BATCH), sizes)
        return x.new_zeros(BATCH, 1).index_add(0, graph, self.node(received))


class Gated(nn.Module):
    """A state space model: a depthwise convolution, and a diagonal matrix by an exponential."""

    def __init__(self):
        super().__init__()
        self.rates, self.skip = nn.Parameter(torch.rand(4, 3)), nn.Parameter(torch.ones(4))
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)
        self.mix = nn.Conv1d(4, 4, 3, padding=2, groups=4)

    def forward(self, x):
        inputs = self.mix(self.first(x).mT)[..., : x.shape[1]].mT.sigmoid()
        state, found = x.new_zeros(len(x), 4, 3), []
        for value in inputs.unbind(1):
            state = torch.exp(-0.1 * self.rates.exp()) * state + value[..., None]
            found.append(state.sum(-1) + self.skip * value)
        return self.last(torch.stack(found, 1))[..., 0]


class Pruned(nn.Module):
    """A weight under a mask, one that is a slice of another, and one that is flipped."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        mask = (torch.arange(12).view(4, 3) % 2).to(x)
        hidden = F.linear(x, self.weight * mask, self.bias).tanh()
        return hidden[:, :2] @ self.weight[1:3].flip(0) + self.bias[::2].sum()


def tied():
    return nn.Linear(4, 4), lambda n, dtype: torch.tanh(n(data(BATCH, 4).to(dtype))) @ n.weight


def recomputed():
    network = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))
    return network, lambda n, dtype: checkpoint(n, data(BATCH, 5).to(dtype), use_reentrant=False)


def sample_by_sample():
    def predict(network, dtype):
        return torch.stack([network.weight.mv(x).tanh() for x in data(BATCH, 3).to(dtype)])

    return nn.Linear(3, 4, bias=False), predict


def attention(**options):
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, **options)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def transposed():
    layers = (
        nn.Conv1d(1, 4, 3, stride=2, padding=1), nn.Tanh(),
        nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2), nn.Tanh(),
        nn.Conv1d(2, 1, 1),
    )  # fmt: skip
    return nn.Sequential(*layers), on(data(BATCH, 1, 6), lambda y: y.flatten(1))


def embedded():
    network = nn.Sequential(nn.Embedding(7, 3, padding_idx=2), nn.Flatten(), nn.Linear(6, 3))
    numbers = torch.arange(2 * BATCH).view(BATCH, 2) % 7
    return network, lambda n, dtype: n(numbers)


def bilinear():
    first, second = data(BATCH, 3), data(BATCH, 4)
    return nn.Bilinear(3, 4, 2), lambda n, dtype: n(first.to(dtype), second.to(dtype))


NETWORKS = {
    "group norm": lambda: with_norm(nn.GroupNorm(2, 4)),
    "instance norm": lambda: with_norm(nn.InstanceNorm1d(4, affine=True)),
    "batch norm in use": lambda: with_norm(nn.BatchNorm1d(4).eval()),
    "layer norm": lambda: of_features(nn.LayerNorm(6)),
    "root mean square norm": lambda: of_features(nn.RMSNorm(6)),
    "weight norm": lambda: of_features(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))),
    "parametric rectifier": lambda: of_features(nn.PReLU(6)),
    "gated recurrent cell": lambda: (Cell(nn.GRUCell), on(data(BATCH, 3))),
    "long memory cell": lambda: (Cell(nn.LSTMCell), on(data(BATCH, 3))),
    "recurrent, time first": lambda: (
        nn.GRU(3, 4, num_layers=2), on(data(4, BATCH, 3), lambda y: y[0].transpose(0, 1)),
    ),
    "recurrent": lambda: (nn.RNN(3, 4, batch_first=True), on(data(BATCH, 4, 3), lambda y: y[0])),
    "time first": lambda: (
        nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
        on(data(4, BATCH, 3), lambda y: y.mean(0)),
    ),
    "operator network": lambda: (DeepONet(), on(data(BATCH, 7))),
    "attention": lambda: (attention(batch_first=True), on(data(BATCH, 3, 4))),
    "attention, time first": lambda: (
        attention(), on(data(3, BATCH, 4), lambda y: y.transpose(0, 1)),
    ),
    "Fourier layer": lambda: (Fourier(), on(data(BATCH, 10))),
    "Fourier layer, real": lambda: (Fourier(real=True), on(data(BATCH, 10))),
    "transposed convolution": transposed,
    "embedding": embedded,
    "bilinear": bilinear,
    "scales": lambda: (Scaled(), on(data(BATCH, 3))),
    "positive parameters": lambda: (Positive(), on(data(BATCH, 3))),
    "graphs": lambda: (Graphs(), on(data(sum(Graphs.SIZES), 2))),
    "state space model": lambda: (Gated(), on(data(BATCH, 4, 2))),
    "masks and slices": lambda: (Pruned(), on(data(BATCH, 3))),
    "tied": tied,
    "recomputed": recomputed,
    "sample by sample": sample_by_sample,
}  # fmt: skip


def cast(network, dtype):
    """Cast parameters and buffers, complex ones to the complex type of the same precision."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.data = tensor.data.to(dtype.to_complex() if tensor.is_complex() else dtype)
    return network


def build(name):
    """Return the network in float64, and its prediction as a function of network and dtype."""
    torch.manual_seed(0)
    network, predict = NETWORKS[name]()
    return cast(network, torch.float64), predict
