# %% [markdown]
# # Your own simulator, from scratch
#
# A simulator is written in a dozen lines of torch, checked, looked at, and trained through with half-inverse gradients (HIG) and with Adam, at equal processor time. In the end the same physics comes from SciPy, which torch cannot differentiate.
#
# It needs `hig`, `matplotlib` and `scipy`, and takes about half a minute on one core.

# %%
seconds = 4  # of processor time for each training

# %%
import copy
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.linalg import expm
from torch.nn.functional import interpolate, pad

import hig

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
plt.rcParams.update({"axes.titlesize": 9, "legend.fontsize": 8})
colours = {"HIG": "#0072B2", "HIG, momentum": "#CC79A7", "Adam": "#E69F00"}

# %% [markdown]
# ## The physics: a rod with one heater
#
# A cold rod is heated, or cooled, at its left end. Heat spreads along it and is given off in proportion to the cube of the temperature, which is that above the surroundings. Which heating brings the *whole* rod to a wanted temperature profile after a given time?
#
# The simulator is a function of tensors with the samples first, one time step for all of them. `hig.rollout` does what a loop over the steps does, and differentiates it faster; a plain loop works as well.

# %%
cells, steps, dt = 10, 60, 0.004
width, gain = 1 / cells, 5.0


def step(temperature, heating):  # (batch, cells), (batch,) -> (batch, cells)
    conducted = pad(temperature.diff(), (1, 1)).diff() / width**2
    heated = pad(gain / width * heating.unsqueeze(1), (0, cells - 1))
    return temperature + dt * (conducted - temperature**3 + heated)


def simulate(heating):  # (batch, steps) -> (batch, cells)
    cold = torch.zeros(len(heating), cells).to(heating)
    return hig.rollout(step, cold, heating)


# %% [markdown]
# Is that all a half-inverse step needs? One call with a small batch tells; where it does not, it says what to change.

# %%
torch.manual_seed(0)
print(hig.testing.check_simulator(simulate, torch.randn(4, steps)))


# %% [markdown]
# Wanted profiles are those that some heating has made: random signals, 2,048 to train with and 512 to test with. The network sees a profile and returns the heating.

# %%
def random_heating(count):
    return interpolate(torch.randn(count, 1, 6), size=steps, mode="linear").squeeze(1)


known, unseen = simulate(random_heating(2048)), simulate(random_heating(512))
shown = random_heating(1)
_, rod = hig.rollout(step, torch.zeros(1, cells), shown, trajectory=True)

figure, (above, below) = plt.subplots(2, 1, figsize=(6, 3.2), sharex=True, height_ratios=[1, 2])
times = dt * np.arange(steps + 1)
above.step(times[:-1], shown[0], where="post", color="#D55E00")
above.set(ylabel="heating")
image = below.pcolormesh(times, (np.arange(cells) + 0.5) * width, rod[0].T, cmap="inferno")
below.set(xlabel="time", ylabel="place")
figure.colorbar(image, ax=below, label="temperature")
plt.show()

# %% [markdown]
# ## Why it is hard: a look at one batch
#
# What a small change of the network's parameters does to all profiles of a batch is the joint Jacobian `J = U S Vᵀ`. The far end of the rod hardly feels the heater, and fine details of the profile vanish as heat spreads: the singular values in `S` fall over many orders of magnitude.
#
# | step | moves the profiles by | |
# |---|---|---|
# | gradient, `Jᵀ g` | `U S² Uᵀ g` | a direction a thousand times weaker is learned a million times more slowly |
# | Gauss–Newton, `V S⁻¹ Uᵀ g` | `U Uᵀ g` | all alike, and parameters jump far for what is weakest |
# | half-inverse, `V S^(-1/2) Uᵀ g` | `U S^(1/2) Uᵀ g` | weak directions are learned too, and the jump stays bounded |
#
# `hig.diagnose` decomposes the Jacobian of a batch, tries each of the three directions at many step sizes, and leaves the parameters as they were. Here before any training, and after twenty steps of HIG:


# %%
def new_network():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(cells, 32),
        torch.nn.Tanh(),
        torch.nn.Linear(32, 32),
        torch.nn.Tanh(),
        torch.nn.Linear(32, steps),
    )


def closure_for(network, wanted, simulate=simulate):
    """What a step calls: the loss, and the outputs of the simulator that it comes from."""

    def closure():
        reached = simulate(network(wanted))
        return (reached - wanted).square().sum(1).mean(), reached

    return closure


network, batch = new_network(), known[:64]
before = hig.diagnose(network.parameters(), closure_for(network, batch))
optimizer = hig.HIG(network.parameters(), step_rule="trust")
for k in range(20):
    optimizer.step(closure_for(network, known[64 * k : 64 * (k + 1)]))
after = hig.diagnose(network.parameters(), closure_for(network, batch))
print(after)

# %%
figure, (left, *others) = plt.subplots(1, 3, figsize=(8.5, 2.8))
values = before.singular_values
left.semilogy(np.where(values > 0, values, np.nan), color="black")
left.axhspan(1e-1 * before.noise, before.noise, color="#dddddd", lw=0)
left.axhline(1e-6 * values[0], color="grey", ls="--", lw=1)
left.set(xlabel="index", ylabel="singular value", title="spectrum, before training")
left.set_ylim(bottom=1e-1 * before.noise)
looks = ("#0072B2", "#D55E00", "black")
diagnoses = {"before training": before, "later": after}
for axes, (when, diagnosis) in zip(others, diagnoses.items(), strict=True):
    for direction, colour in zip(diagnosis.directions, looks, strict=True):
        size = direction.step_sizes / direction.cauchy
        after_step = 1 + direction.achieved / diagnosis.loss
        axes.semilogx(size, after_step, color=colour, label=direction.name)
        model = 1 + direction.predicted / diagnosis.loss
        axes.semilogx(size, model, color=colour, ls=":", lw=1)
    axes.set(ylim=(-0.05, 1.5), xlabel="step size / Cauchy step", title=f"loss, {when}")
    axes.axhline(1, color="grey", lw=0.7)
others[0].set_ylabel("loss after / before")
others[0].legend(loc="lower left")
plt.show()

# %% [markdown]
# Left: the singular values, the cut-off of the step (dashed) and what may be rounding (grey). The others: the loss after one step along each direction (lines) and what the quadratic model promises (dots).
#
# In the first step the gradient is as good as anything: what is wrong then is wrong in the strong directions. Later these are settled: the gradient can be followed still, but gains little. Gauss–Newton promises a loss of zero and leaves the region where its promise holds at a small fraction of its step. The half-inverse direction follows its model up to the step that the trust rule takes, `step_rule="trust"`.
#
# ## Training
#
# The same network, batches and processor time for each. `step_rule="trust"` finds the step size; Adam's rate of 1e-2 was the best of 1e-3, 3e-3 and 1e-2.


# %%
@torch.no_grad()
def test_loss(network, simulate):
    return float(closure_for(network, unseen, simulate)()[0])


def train(network, take_step, simulate=simulate):
    """Take steps for `seconds` of processor time; test losses on the way, (evaluations, 2)."""
    draw = torch.Generator().manual_seed(2)
    spent, history = 0.0, [(0.0, test_loss(network, simulate))]
    while spent < seconds:
        wanted = known[torch.randint(len(known), (64,), generator=draw)]
        begin = time.process_time()
        take_step(closure_for(network, wanted, simulate))
        spent += time.process_time() - begin
        if spent > 1.15 * history[-1][0] or spent >= seconds:
            history.append((spent, test_loss(network, simulate)))
    return np.array(history)


networks = {name: new_network() for name in colours}
histories = {}

optimizer = hig.HIG(networks["HIG"].parameters(), step_rule="trust")
histories["HIG"] = train(networks["HIG"], optimizer.step)
print(optimizer.report)

# %%
adam = torch.optim.Adam(networks["Adam"].parameters(), lr=1e-2)


def adam_step(closure):
    adam.zero_grad()
    closure()[0].backward()
    adam.step()


histories["Adam"] = train(networks["Adam"], adam_step)

# %% [markdown]
# To keep an optimiser, scheduler or clipping of your own, let the half-inverse direction appear in `.grad`: `hig.record` watches the forward pass, and what follows is plain torch. Here stochastic gradient descent with momentum, its rate a fraction of the Cauchy step that the diagnosis printed:

# %%
parameters = list(networks["HIG, momentum"].parameters())
sgd = torch.optim.SGD(parameters, lr=0.3 * after.directions[0].cauchy, momentum=0.5)


def recorded_step(closure):
    sgd.zero_grad()
    with hig.record(parameters) as record:
        loss, reached = closure()
    record.backward(loss, reached, filter=hig.HalfInverse(rcond=1e-6))
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    sgd.step()


histories["HIG, momentum"] = train(networks["HIG, momentum"], recorded_step)

# %% [markdown]
# What is left to learn shows best in the directions of the rod itself: the left singular vectors of the simulator's Jacobian, from what the heater does easily to what it hardly can.

# %%
(at_rest,) = torch.autograd.functional.jacobian(simulate, torch.zeros(1, steps)).unbind(2)
directions = torch.linalg.svd(at_rest[0].double()).U


def along_directions(profiles):
    return (profiles.detach().double() @ directions).square().mean(0).sqrt()


figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
right.semilogy(range(1, cells + 1), along_directions(unseen), "k.-", label="wanted profiles")
for name, history in histories.items():
    left.loglog(*history[1:].T, color=colours[name], label=name)
    missed = simulate(networks[name](unseen)) - unseen
    right.semilogy(range(1, cells + 1), along_directions(missed), ".-", color=colours[name])
    print(f"{name:<14} test loss {history[-1, 1]:.1e} after {history[-1, 0]:.1f} s")
left.set(xlabel="processor time (s)", ylabel="test loss")
left.legend()
right.set(xlabel="direction of the rod, easy to hard", ylabel="root mean square")
right.set_title("what is wanted (black), what is missed")
plt.show()

# %% [markdown]
# Right: Adam has learned the directions that the heater commands easily, and of the hard ones nothing yet; the half-inverse step has lowered the error in all but the last.
#
# When would Adam be as good? Left, at the start: a step of Adam is several times cheaper, and while the strong directions are what is missing, cheap steps are good steps. Where the spectrum is flat it stays so, as the [Poisson notebook](phiflow.ipynb) shows, and if an error of some percent will do, Adam is there as soon.
#
# ## A simulator outside torch
#
# Let a colleague's rod be written in NumPy and SciPy: each step heats, conducts exactly by a matrix exponential and radiates exactly. Torch cannot look inside. What it needs is the *pullback*, from a gradient with respect to the final profile to one with respect to the heating: the chain rule backwards in time, what an adjoint solver does. `hig.black_box` makes the pair of them a function of tensors.

# %%
laplacian = np.diff(np.pad(np.eye(cells), ((0, 0), (1, 1)), mode="edge"), n=2, axis=1)
conduct = expm(dt / width**2 * laplacian)
heater = gain / width * np.eye(cells)[0]


def linearise(heating):  # (batch, steps) -> (batch, cells), and the pullback
    temperature, brightness = np.zeros((len(heating), cells)), []
    for power in heating.T:
        warm = (temperature + dt * power[:, None] * heater) @ conduct
        brightness.append(1 + 2 * dt * warm**2)
        temperature = warm / np.sqrt(brightness[-1])

    def pullback(cotangent):
        gradient = np.empty_like(heating)
        for k in reversed(range(steps)):
            cotangent = (cotangent * brightness[k] ** -1.5) @ conduct.T
            gradient[:, k] = dt * cotangent @ heater
        return gradient

    return temperature, pullback


scipy_rod = hig.black_box(linearise)
black_box_report = hig.testing.check_simulator(scipy_rod, torch.randn(4, steps))
print(black_box_report)

# %% [markdown]
# The check has compared the adjoint with finite differences, and notes what costs speed: backward passes go one by one. Training is as before. Here a network that has learned on the torch rod goes on with SciPy's, which is a slightly different rod.

# %%
network = copy.deepcopy(networks["HIG"])
optimizer = hig.HIG(network.parameters(), step_rule="trust")
transferred = train(network, optimizer.step, scipy_rod)
print(f"test loss on SciPy's rod {transferred[0, 1]:.1e}, trained on {transferred[-1, 1]:.1e}")
print(optimizer.report)

# %% [markdown]
# Next: [all checks, and simulators in JAX](../own_simulator.md), and [which settings](../settings.md).
