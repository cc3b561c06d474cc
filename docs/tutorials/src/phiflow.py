# %% [markdown]
# # PhiFlow as simulator: Poisson's equation
#
# A network learns to invert PhiFlow's Laplacian, trained through PhiFlow. It is the counterexample among these notebooks: its spectrum is nearly flat, Adam beats exact half-inverse gradients (HIG) by far, and it is their Kronecker form that keeps up, at the price of Adam.
#
# It needs a clone of the repository with PhiFlow (`pip install -e '.[problems]' matplotlib`) and takes about half a minute on one core.

# %%
seconds = 6  # of processor time for each training

# %%
import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from phi import field
from phi import math as phimath
from phi.field import CenteredGrid
from phi.math import batch, extrapolation, spatial

import hig
from problems import NonlinearOscillators, Poisson

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
plt.rcParams.update({"axes.titlesize": 9, "legend.fontsize": 8})
colours = {"HIG": "#0072B2", "Adam": "#E69F00", "Kronecker HIG": "#661100"}


# %% [markdown]
# ## A simulation of PhiFlow as a function of tensors
#
# Steps need a function from tensors (batch, …) to a tensor (batch, …). PhiFlow works on torch tensors as they are: wrap them with names for their axes, and unwrap the result. PhiFlow has a precision of its own, which has to be that of the tensor.


# %%
def laplace(values):  # (batch, x, y) -> (batch, x, y)
    with phimath.precision(torch.finfo(values.dtype).bits):
        named = phimath.wrap(values, batch("samples"), spatial("x,y"))
        grid = CenteredGrid(named, extrapolation.ZERO)
        return field.laplace(grid).values.native("samples,x,y")


torch.manual_seed(0)
phiflow_report = hig.testing.check_simulator(laplace, torch.randn(3, 8, 8))
print(phiflow_report)

# %% [markdown]
# Ready as it is. The problem of the repository, `problems.Poisson`, has the same physics; samples and network come from there. The network sees `y = laplace(x)` for smooth random fields x and returns an x; the loss is half the squared difference of `laplace(x)` and y, summed.

# %%
problem = Poisson()
data = problem.data(torch.Generator().manual_seed(0))
known, unseen = ({key: value.float() for key, value in part.items()} for part in data)
print("equal:", torch.equal(laplace(unseen["truth"]), problem.physics(unseen["truth"])))


def new_network():
    torch.manual_seed(0)
    return problem.network()


def closure_for(network, samples):
    """What a step calls: the loss, and the outputs of the simulator that it comes from."""
    target = samples["target"]

    def closure():
        prediction = laplace(network(target.flatten(1)).view_as(target))
        return 0.5 * (prediction - target).square().sum(), prediction

    return closure


# %% [markdown]
# ## First look at the spectrum
#
# The half-inverse step exists for directions that the physics makes weak: the gradient moves them in proportion to the square of their singular value. Are there any? For comparison stands the problem of the [oscillators](oscillators.ipynb), where HIG is the method to take.

# %%
network = new_network()
first = {key: value[:8] for key, value in known.items()}
poisson = hig.diagnose(network.parameters(), closure_for(network, first), rcond=1e-5)

chain = NonlinearOscillators()
start = torch.rand(128, 4)
chain_batch = {"start": start, "target": start}
torch.manual_seed(0)
chain_network = chain.network()


def chain_closure():
    prediction = chain.predict(chain_network, chain_batch)
    return chain.loss(prediction, chain_batch), prediction


oscillators = hig.diagnose(chain_network.parameters(), chain_closure)

figure, axes = plt.subplots(figsize=(5, 3))
for found, name, colour in (
    (poisson, "Poisson", "black"),
    (oscillators, "oscillators", "#999999"),
):
    values = found.singular_values / found.singular_values[0]
    axes.semilogy(values, color=colour, label=name)
    print(f"{name:<12} median singular value {np.median(values):.1e} of the largest")
axes.set(xlabel="index", ylabel="singular value / largest", ylim=(1e-6, 2))
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# Most directions of Poisson's problem are within two orders of magnitude, and there is little that Adam cannot see. Besides, a sample has 64 outputs here: an exact step on 64 samples decomposes a matrix of 4,096 rows, which takes as long as thousands of steps of Adam. And every batch is new: a step that fits a small one exactly spends itself on what the next does not share.
#
# ## Training
#
# At equal processor time: HIG on batches of 8, the best that exact steps do here; Adam on batches of 64 with a rate that falls along a cosine from 2e-3, the best of [a scan](../poisson.md); and `hig.KroneckerHIG` with batches and schedule like Adam's. That one approximates the half-inverse direction by two small factors per layer and takes the length of Adam's step, so that rates are in Adam's units.

# %%
tested = {key: value[:512] for key, value in unseen.items()}


@torch.no_grad()
def test_loss(network):
    return float(closure_for(network, tested)()[0]) / len(tested["target"])


def train(network, optimizer, take_step, size, cosine):
    """Take steps for `seconds` of processor time; test losses on the way, (evaluations, 2)."""
    fresh = problem.batches(known, size, torch.Generator().manual_seed(1))
    highest = optimizer.param_groups[0]["lr"]
    spent, history = 0.0, [(0.0, test_loss(network))]
    while spent < seconds:
        if cosine:  # down to a tenth
            share = 0.55 + 0.45 * math.cos(math.pi * spent / seconds)
            optimizer.param_groups[0]["lr"] = share * highest
        closure = closure_for(network, next(fresh))
        begin = time.process_time()
        take_step(closure)
        spent += time.process_time() - begin
        if spent > 1.15 * history[-1][0] or spent >= seconds:
            history.append((spent, test_loss(network)))
    return np.array(history)


networks = {name: new_network() for name in colours}
exact = hig.HIG(networks["HIG"].parameters(), lr=0.01, rcond=1e-5)
kronecker = hig.KroneckerHIG(networks["Kronecker HIG"].parameters(), lr=3e-3)
adam = torch.optim.Adam(networks["Adam"].parameters(), lr=2e-3)


def adam_step(closure):
    adam.zero_grad()
    closure()[0].backward()
    adam.step()


histories = {
    "HIG": train(networks["HIG"], exact, exact.step, 8, cosine=False),
    "Adam": train(networks["Adam"], adam, adam_step, 64, cosine=True),
    "Kronecker HIG": train(networks["Kronecker HIG"], kronecker, kronecker.step, 64, cosine=True),
}
for name, history in histories.items():
    error = float(problem.metrics(networks[name], tested)["l1_distance"])
    print(f"{name:<13} test loss {history[-1, 1]:.2g}, mean error of x {error:.2g}")
print(exact.report)

# %%
figure, axes = plt.subplots(figsize=(5, 3))
for name, history in histories.items():
    axes.loglog(*history[1:].T, color=colours[name], label=name)
axes.set(xlabel="processor time (s)", ylabel="test loss per sample")
axes.legend()
plt.show()

# %% [markdown]
# So: look at the spectrum first. Where it is flat, or rows are many thousands, take Adam or `hig.KroneckerHIG`. In these seconds the two end close together; after a minute the Kronecker form is at a third of Adam's loss, on three seeds, in [the measurements](../poisson.md). They also have `method="lanczos"`, which lies between Adam and exact HIG.
#
# ## What the networks return
#
# An unseen sample, and the error of each answer on a scale of its own. The Laplacian hides smooth errors and shows rough ones: what an optimiser leaves of the weak directions is a smooth error of x, which the loss hardly sees.

# %%
sample = {key: value[5:6] for key, value in unseen.items()}
truth = sample["truth"][0]
limit = float(truth.abs().max())
figure, axes = plt.subplots(1, 4, figsize=(8.5, 2.3))
image = axes[0].imshow(truth.T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
axes[0].set_title("x, the truth")
errors = {}
for name in colours:
    with torch.no_grad():
        answer = networks[name](sample["target"].flatten(1)).view_as(truth)
    errors[name] = answer - truth
for axis, (name, error) in zip(axes[1:], errors.items(), strict=True):
    largest = float(error.abs().max())
    axis.imshow(error.T, origin="lower", cmap="RdBu_r", vmin=-largest, vmax=largest)
    axis.set_title(f"{name}: error ± {largest:.2g}")
for axis in axes:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
figure.colorbar(image, ax=axes[0], shrink=0.8)
plt.show()

# %% [markdown]
# Implicit solvers of PhiFlow work too: `experiments/poisson_source` trains through `solve_linear`. Next: [physics-informed networks](pinn.ipynb).
