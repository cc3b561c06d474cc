# %% [markdown]
# # A physics-informed network: Burgers' equation
#
# A network is trained to satisfy Burgers' equation with its boundary and initial conditions: three losses that are in one another's way. Conflict-free gradients (ConFIG) make their peace, and a Levenberg–Marquardt step on the residuals themselves goes orders of magnitude further.
#
# It needs a clone of the repository (`pip install -e . matplotlib`) and takes about half a minute on one core.

# %%
seconds = 6  # of processor time for each training

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import torch

import hig
from hig.conflictfree import (
    AlternatingBackward,
    ConFIG_update,
    ConFIGOperator,
    backward,
    loss_gradients,
)
from problems.pinn import Burgers

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
plt.rcParams.update({"axes.titlesize": 9, "legend.fontsize": 8})
colours = {"Adam": "#E69F00", "ConFIG": "#E0218A", "M-ConFIG": "#8E1257"}
colours["Levenberg–Marquardt"] = "#009E73"

# %% [markdown]
# ## The problem
#
# `u_t + u u_x = ν u_xx` on an interval, zero at its ends and a sine at the start, which steepens into a shock. The network maps x and t to u. A step draws fresh points inside, at the ends and at the start; the mean squared residual of each group is a loss. What is tested is another thing: the distance to the known solution.
#
# All methods train the same small network in float64.

# %%
problem = Burgers(width=16, depth=4)
known, unseen = problem.data(torch.Generator().manual_seed(0))
size = 600  # interior points of a step; the other groups in proportion


def new_network():
    torch.manual_seed(0)
    return problem.network().double()


with torch.no_grad():
    losses = problem.losses(new_network(), known)
for name, loss in zip(problem.loss_names, losses, strict=True):
    print(f"{name:<8} {loss:.2g}")

# %% [markdown]
# ## Training
#
# Four kinds of step, each a function of the points.
#
# **Adam** takes the gradient of the sum of the losses.
#
# **ConFIG** takes the direction with the same positive cosine to the gradient of every loss: to first order it raises none of them. `backward` puts it into `.grad`, and Adam goes on from there.
#
# **M-ConFIG** does so with running means of the gradients of which a step renews one: a backward pass through *one* loss per step.


# %%
def adam_stepper(network):
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step(points):
        optimizer.zero_grad()
        sum(problem.losses(network, points)).backward()
        optimizer.step()

    return step


def config_stepper(network):
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    operator = ConFIGOperator()

    def step(points):
        optimizer.zero_grad()
        backward(problem.losses(network, points), network.parameters(), operator)
        optimizer.step()

    return step


def mconfig_stepper(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    alternating = AlternatingBackward(network.parameters(), num_losses=3)

    def step(points):
        optimizer.zero_grad()
        alternating.backward(problem.single_loss(network, points, alternating.next_loss))
        optimizer.step()

    return step


# %% [markdown]
# **Levenberg–Marquardt** needs no weighing of losses against one another: it sees every residual as a row of the Jacobian `J = U S Vᵀ` and takes `V S / (S² + λ) Uᵀ r`, the full Gauss–Newton step where singular values are large and a short gradient step where they are small. λ follows from how well the last step kept its promise. `problem.predict` returns the residuals scaled so that the loss is *half* their sum of squares, which this step wants.
#
# The residuals of a shock are large in few places. `resampling="residual"` draws points in proportion to the squared residual; it decides for this step and makes little difference to the others.

# %%
sharp = Burgers(width=16, depth=4, resampling="residual")


def damped_stepper(network):
    optimizer = hig.LevenbergMarquardt(network.parameters())
    optimizers.append(optimizer)

    def step(points):
        chosen = sharp.focus(network, points)

        def closure():
            residuals = sharp.predict(network, chosen)
            return sharp.loss(residuals, chosen), residuals

        optimizer.step(closure)

    return step


def test_loss(network):
    return problem.data_loss(network, unseen, chunk=30000)


def train(problem, network, step, watch=None):
    """Take steps for `seconds` of processor time; test losses on the way, (evaluations, 2)."""
    fresh = problem.batches(known, size, torch.Generator().manual_seed(1))
    spent, history = 0.0, [(0.0, test_loss(network))]
    while spent < seconds:
        points = next(fresh)
        begin = time.process_time()
        step(points)
        spent += time.process_time() - begin
        if spent > 1.15 * history[-1][0] or spent >= seconds:
            history.append((spent, test_loss(network)))
            if watch is not None:
                watch(spent, network, points)
    return np.array(history)


# %% [markdown]
# While Adam trains, we watch what it does to each loss: the cosines between the gradient of each and their sum, and those with the direction that ConFIG would have taken in its place.


# %%
watched = []


def watch(spent, network, points):
    gradients = loss_gradients(problem.losses(network, points), network.parameters())
    directions = torch.stack([gradients.sum(0), ConFIG_update(gradients)])
    lengths = gradients.norm(dim=1) * directions.norm(dim=1, keepdim=True)
    watched.append((spent, directions @ gradients.T / lengths))


networks = {name: new_network() for name in colours}
optimizers = []
steppers = [adam_stepper, config_stepper, mconfig_stepper, damped_stepper]
histories = {}
for (name, network), stepper in zip(networks.items(), steppers, strict=True):
    drawing = sharp if stepper is damped_stepper else problem
    watcher = watch if stepper is adam_stepper else None
    histories[name] = train(drawing, network, stepper(network), watcher)
    print(f"{name:<19} mean squared error {histories[name][-1, 1]:.1e}")
print(optimizers[0].report)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
times = [spent for spent, _ in watched]
cosines = torch.stack([both for _, both in watched])
for i, (name, colour) in enumerate(
    zip(problem.loss_names, ("#0072B2", "#E69F00", "#D55E00"), strict=True)
):
    left.semilogx(times, cosines[:, 0, i], color=colour)
    right.semilogx(times, cosines[:, 1, i], color=colour, lw=3 - i, label=name)
for axes, title in ((left, "gradient of the sum"), (right, "ConFIG, from the same gradients")):
    axes.axhline(0, color="grey", lw=0.7)
    axes.set(xlabel="processor time of Adam (s)", ylim=(-1, 1), title=title)
left.set_ylabel("cosine with each gradient")
right.legend(loc="lower left")
plt.show()

# %% [markdown]
# Below zero a step along the direction *raises* that loss. The sum is for the loss whose gradient is longest; ConFIG agrees equally with all three.

# %%
figure, axes = plt.subplots(figsize=(5.5, 3))
for name, history in histories.items():
    axes.loglog(*history[1:].T, color=colours[name], label=name)
axes.set(xlabel="processor time (s)", ylabel="mean squared error")
axes.legend(loc="lower left")
plt.show()

# %%
shape, extent = (256, 101), (0, 1, -1, 1)
truth = unseen["solution"].view(shape)
figure, grid = plt.subplots(2, 3, figsize=(8.5, 4), sharex=True, sharey=True)
shown = {"exact": truth}
for name in ("ConFIG", "Levenberg–Marquardt"):
    shown[name] = networks[name](unseen["points"]).detach().view(shape)
for (above, below), (name, solution) in zip(grid.T, shown.items(), strict=True):
    options = {"extent": extent, "origin": "lower", "aspect": "auto"}
    image = above.imshow(solution, cmap="RdBu_r", vmin=-1, vmax=1, **options)
    above.set_title(name)
    if name == "exact":
        below.axis("off")
        continue
    error = (solution - truth).abs().clamp_min(1e-7).log10()
    errors = below.imshow(error, cmap="magma", vmin=-7, vmax=0, **options)
    below.set(xlabel="t", title="log10 of the error")
grid[0, 0].set(ylabel="x")
figure.colorbar(image, ax=grid[0], label="u")
figure.colorbar(errors, ax=grid[1])
plt.show()

# %% [markdown]
# What is left is the shock. Where first-order methods stay the choice: a step on the residuals decomposes a matrix with as many rows as points, or as parameters if these are fewer, which ends at some thousands; it wants float64; and an error of a percent may come sooner by M-ConFIG, whose steps are far cheaper. Longer runs, other equations and all methods, MultiHIG among them, are in [the measurements](../physics_informed.md); your own equation takes [a dozen lines](../physics_informed.md#your-own-equation).
