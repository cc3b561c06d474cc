"""Small networks of every kind the engines meet: name -> (build, input shape per sample)."""

import torch
from torch import nn

BATCH = 5


class Feedback(nn.Module):
    """A controller called at every time step of a small nonlinear system."""

    def __init__(self):
        super().__init__()
        self.controller = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, state):
        for _ in range(6):
            position, velocity = state.split(1, 1)
            force = self.controller(state)
            state = torch.cat([position + 0.2 * velocity, velocity - 0.2 * position**3 + force], 1)
        return state


class WithViscosity(nn.Module):
    """A bare physical parameter next to a network."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.viscosity = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        u = torch.tanh(self.inner(x))
        return u + self.viscosity * (u.roll(1, 1) - 2 * u + u.roll(-1, 1))


class TiedTransposed(nn.Module):
    """An autoencoder whose decoder is the transposed encoder: a use that no layer call shows."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 3)

    def forward(self, x):
        return torch.tanh(self.encoder(x)) @ self.encoder.weight


class InPlace(nn.Module):
    """Activations that overwrite the layer's output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(torch.tanh_(self.first(x)))


class Embedded(nn.Module):
    """An embedding of a class next to the input."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(3, 2), nn.Linear(6, 3)

    def forward(self, x):
        kind = torch.arange(len(x), device=x.device) % 3
        return self.out(torch.cat([x, self.embedding(kind)], 1).tanh())


class Recurrent(nn.Module):
    """A fused kernel, invisible to the capture."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


class TimeMajor(nn.Module):
    """A layer whose leading axis is time, with as many times as samples."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.layer(x.transpose(0, 1))).transpose(0, 1).sum(1))


class FlattenedTokens(nn.Module):
    """A layer applied to (batch * tokens, in)."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        tokens = torch.tanh(self.layer(x.flatten(0, 1)))
        return self.out(tokens.view(len(x), -1, 3).sum(1))


class SharedWithTwoBiases(nn.Module):
    """One weight with two biases, and one bias in two layers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4) / 2)
        self.biases = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(2)])
        self.other = nn.Parameter(torch.randn(4, 4) / 2)

    def forward(self, x):
        linear = nn.functional.linear
        x = torch.tanh(linear(x, self.weight, self.biases[0]))
        x = torch.tanh(linear(x, self.weight, self.biases[1]))
        return linear(x, self.other, self.biases[0])


class FewControls(nn.Module):
    """Two controls before a nonlinear simulator with seven outputs."""

    def __init__(self):
        super().__init__()
        self.controller = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x):
        controls = self.controller(x)
        times = torch.linspace(0.5, 2, 7, dtype=x.dtype, device=x.device)
        return torch.sin(controls[:, :1] * times) + controls[:, 1:] * times.square()


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def narrow():
    return nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))


def conv1d():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, bias=False), nn.Tanh(), nn.Conv1d(4, 2, 3, stride=2)
    )


def conv2d():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(4, 4, (3, 2), groups=2, dilation=(1, 2), padding="same"),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def conv3d():
    return nn.Sequential(nn.Conv3d(1, 2, 2, padding=1), nn.Tanh(), nn.Conv3d(2, 1, 3))


def depthwise():
    return nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))


def normalised():
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def group_normalised():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv1d(4, 1, 2))


def batch_normalised():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def tokens():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))


def attention():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Linear(4, 1))


# All parameters in linear and convolution layers, called where the capture sees them.
LAYERED = {
    "mlp": (mlp, (4,)),
    "narrow": (narrow, (4,)),
    "conv1d": (conv1d, (2, 7)),
    "conv2d": (conv2d, (2, 4, 4)),
    "conv3d": (conv3d, (1, 3, 3, 3)),
    "depthwise": (depthwise, (4, 6)),
    "tokens": (tokens, (6, 2)),
    "feedback": (Feedback, (2,)),
    "in place": (InPlace, (4,)),
    "flattened tokens": (FlattenedTokens, (3, 2)),
    "shared": (SharedWithTwoBiases, (4,)),
    "few controls": (FewControls, (4,)),
}
# Some samples influence one another.
MIXED = {"batch norm": (batch_normalised, (4,))}
# Layers of other kinds, which the graph shows.
BY_GRAPH = {
    "layer norm": (normalised, (4,)),
    "group norm": (group_normalised, (2, 8)),
    "viscosity": (WithViscosity, (4,)),
    "tied": (TiedTransposed, (4,)),
    "embedding": (Embedded, (4,)),
    "recurrent": (Recurrent, (4, 2)),
    "attention": (attention, (3, 4)),
    "time major": (TimeMajor, (BATCH, 2)),
}
ALL = LAYERED | BY_GRAPH | MIXED


def build(name, dtype=torch.float64, seed=0):
    """A network and a batch of inputs for it."""
    torch.manual_seed(seed)
    make, shape = ALL[name]
    network = make().to(dtype)
    return network, torch.randn(BATCH, *shape, dtype=dtype)


def least_squares(network, inputs, scale=1.0):
    """A closure with a loss that is not a plain square, so that g is not the residual."""

    def closure():
        prediction = scale * network(inputs)
        residual = prediction / scale - 0.3
        return (residual.square() + 0.1 * residual.pow(4)).sum() / len(inputs), prediction

    return closure
