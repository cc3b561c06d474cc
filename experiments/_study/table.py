"""Table of the study: problems, methods, budgets, grids and ablations.

Nothing is computed here: `jobs.py` makes command lines of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from experiments._robustness.plan import Plan
from experiments._robustness.variants import Variant

# Tuning has a seed of its own, hence other weights and samples than the reported runs.
TUNING_SEED = 1000

# The grid of methods that cut singular values off: step sizes over the default one, cut-offs.
TRUNCATED = ("hig", "gn")
FACTORS = (0.3, 1.0, 3.0)
CUTOFFS = (1e-6, 1e-5, 1e-4, 1e-3)

# The grid of all others, whose published step sizes are often far too small for a short run.
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Comparison:
    """Methods on one problem at equal training time.

    Attributes:
        folder: That of the submit scripts.
        methods: Names of methods.
        tuned: Those that are tuned first, on the grid.
        options: Further command line for each method, such as a step rule.
        common: Further command line for all.
        grids: Values of each option of a method, in place of the grid of the preset; all
            combinations are tried.
    """

    folder: str
    methods: tuple[str, ...]
    tuned: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    common: tuple[str, ...] = ()
    grids: Mapping[str, Mapping[str, tuple[float | str, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """One method on one problem with options at several values.

    Attributes:
        name: Name of the varied option.
        folder: That of the submit scripts.
        method: Name of the method.
        values: Values of each option, as on a command line, such as ``{"--kappa": ("-1", "0")}``;
            of two options all pairs are run.
        common: Further command line.
    """

    name: str
    folder: str
    method: str
    values: Mapping[str, tuple[str, ...]]
    common: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relay:
    """Relay: one method continues from the weights of another, each for half the time.

    Attributes:
        folder: That of the submit scripts.
        first: Name of the method that begins.
        then: Name of the method that continues from its weights.
        options: Further command line for each method.
    """

    folder: str
    first: str
    then: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """A study of one size.

    Attributes:
        name: Its name on the command line.
        seconds: Training time of a reported run, by folder.
        seeds: Seeds of the reported runs.
        comparisons: Comparisons of methods.
        ablations: Variations of options.
        relays: Relays of two methods.
        factors: Step sizes of the grid over the default, of methods with a cut-off.
        cutoffs: Cut-offs of that grid.
        rates: Step sizes of the grid of all others, each under every schedule.
        tuning_seconds: Training time of a run of the grid over that of a comparison.
        finalists: Number of the best of the grid that are tried for as long as a comparison, since
            the best in a short run need not be the best in a long one, and one with a smaller step
            size if there are schedules; 1 takes the best as it is.
        ablation_seconds: Training time of a run of an ablation over that of a comparison.
        robustness: Runs of many seeds, on the CPU; None for none.
        device: torch device.
    """

    name: str
    seconds: Mapping[str, float]
    seeds: tuple[int, ...]
    comparisons: tuple[Comparison, ...]
    ablations: tuple[Ablation, ...] = ()
    relays: tuple[Relay, ...] = ()
    factors: tuple[float, ...] = FACTORS
    cutoffs: tuple[float, ...] = CUTOFFS
    rates: tuple[float, ...] = RATES
    tuning_seconds: float = 1.0
    finalists: int = 1
    ablation_seconds: float = 0.5
    robustness: Plan | None = None
    device: str = "cpu"


_TRUST = ("--step-rule", "trust")
_RESIDUALS = ("--dtype", "float64", "--resampling", "residual")
_POINTS = ("--batch-size", "2000")

_PUBLISHED = ("nonlinear_oscillators", "poisson", "quantum_dipole")
_CONTROL = ("cart_pole", "burgers_control", "smoke_control")


def _simulator(
    folder: str,
    batch_size: int | None = None,
    jacobian: tuple[str, ...] = _TRUST,
    further: tuple[str, ...] = (),
) -> Comparison:
    """Compare HIG, Gauss-Newton and further methods with first-order methods.

    ``batch_size`` is that of the first-order methods, ``jacobian`` the command line of HIG and
    Gauss-Newton; the ``further`` methods see the Jacobian, at their own settings.
    """
    first_order = ("khig", "adam", "soap")
    batch = () if batch_size is None else ("--batch-size", str(batch_size))
    return Comparison(
        folder,
        ("hig", "gn", *further, *first_order),
        tuned=("hig", "gn", *first_order),
        options=dict.fromkeys(("hig", "gn"), jacobian) | dict.fromkeys(first_order, batch),
    )


_SIMULATORS = (
    # Adam reaches a lower loss with the small batches of HIG than with its published ones.
    _simulator("nonlinear_oscillators", 128, further=("lm",)),
    # A step on the published batch of 64 would take a sixth of a minute.
    _simulator("poisson", jacobian=("--batch-size", "8")),
    _simulator("quantum_dipole", 16, further=("lm",)),
    _simulator("cart_pole", further=("lm",)),
    *(_simulator(folder) for folder in _CONTROL[1:]),
)
_TOY = Comparison("conditioning_toy", ("hig", "gn", "lm", "adam"), tuned=("hig", "gn", "adam"))
_EQUATIONS = tuple(
    Comparison(
        f"pinn/{name}",
        ("lm", "hig", "multihig", "mconfig", "config", "adam"),
        tuned=("mconfig", "config", "adam"),
        options={
            **dict.fromkeys(("lm", "hig", "multihig"), _RESIDUALS),
            **dict.fromkeys(("mconfig", "config", "adam"), _POINTS),
        },
    )
    for name in ("burgers", "schroedinger", "kovasznay", "beltrami")
)


# Exact steps of few outputs and sketched ones of many, against the best methods of first order.
_CUTS = {"rcond": (1e-6, 1e-5, 1e-4, 1e-3, "auto"), "schedule": SCHEDULES}
_SKETCHES = {"sketch": ("1", "2", "4", "8", "auto"), "schedule": SCHEDULES}
_LBFGS = {"lr": (0.3, 1.0), "batch-size": ("64", "128", "256", "512", "1024")}
_OTHERS = ("khig", "soap", "adam", "muon", "lbfgs")


def _outputs(
    folder: str, batch_size: int, first_order: int, grid: Mapping[str, tuple[float | str, ...]]
) -> Comparison:
    """Compare HIG, on ``batch_size`` samples, with methods of first order on others."""
    batch = ("--batch-size", str(first_order))
    return Comparison(
        folder,
        ("hig", *_OTHERS),
        tuned=("hig", *_OTHERS),
        options={"hig": (*_TRUST, "--batch-size", str(batch_size), "--rcond", "auto")}
        | dict.fromkeys(_OTHERS[:-1], batch),
        grids={"hig": grid, "lbfgs": _LBFGS},
    )


_MANY_OUTPUTS = (
    _outputs("nonlinear_oscillators", 128, 128, _CUTS),
    _outputs("quantum_dipole", 16, 16, _CUTS),
    _outputs("conditioning_toy", 128, 128, _CUTS),
    _outputs("poisson", 64, 64, _SKETCHES),
    _outputs("burgers_control", 64, 16, _SKETCHES),
    _outputs("smoke_control", 64, 16, _SKETCHES),
    _outputs("cart_pole", 64, 16, _SKETCHES),
)

# One choice of sketches at a time, besides those of `experiments.directions`.
_SKETCH = ("--step-rule", "trust", "--batch-size", "64", "--rcond", "auto")
_OF_SKETCHES = tuple(
    Ablation(name, "burgers_control", "hig", values, common)
    for name, values, common in (
        (
            "sketch_batch",
            {"--sketch": ("1", "2", "4", "8"), "--batch-size": ("32", "64", "128", "256")},
            (*_TRUST, "--rcond", "auto"),
        ),
        (
            "sketch_momentum",
            {"--momentum": ("0.5", "0.9", "0.97"), "--momentum-kind": ("plain", "projected")},
            _SKETCH,
        ),
        ("sketch_no_momentum", {"--momentum": ("0",)}, _SKETCH),
        ("sketch_rcond", {"--rcond": ("1e-5", "1e-4", "1e-3", "1e-2")}, _SKETCH),
        ("sketch_schedule", {"--schedule": SCHEDULES}, _SKETCH),
        ("sketch_average", {"--average": ("0.9", "0.99")}, _SKETCH),
    )
)


_KAPPAS = ("-1", "-0.75", "-0.5", "-0.25", "0", "0.5", "1")
_RCONDS = ("1e-10", "1e-8", "1e-6", "1e-4", "1e-2", "1e-1")


def _ablations(
    folder: str, kappas: tuple[str, ...] = _KAPPAS, rconds: tuple[str, ...] = _RCONDS
) -> tuple[Ablation, ...]:
    batches = ("16", "32", "64", "128")
    memories = {"--momentum": ("0.5", "0.9"), "--momentum-kind": ("plain", "projected")}
    return (
        Ablation("kappa_rcond", folder, "hig", {"--kappa": kappas, "--rcond": rconds}, _TRUST),
        Ablation("rcond_auto", folder, "hig", {"--rcond": ("auto",)}, _TRUST),
        Ablation("lr", folder, "hig", {"--lr": ("0.1", "0.3", "1", "3", "10")}),
        Ablation("dtype", folder, "hig", {"--dtype": ("float32", "float64")}, _TRUST),
        Ablation("batch", folder, "hig", {"--batch-size": batches}, _TRUST),
        Ablation("step_rule", folder, "hig", {"--step-rule": ("fixed", "trust", "line_search")}),
        Ablation("momentum", folder, "hig", memories, _TRUST),
    )


_ABLATED = ("nonlinear_oscillators", "quantum_dipole")
_RELAYS = tuple(
    Relay(found.folder, *order, options=found.options)
    for found in _SIMULATORS
    if found.folder in _PUBLISHED
    for order in (("adam", "hig"), ("hig", "adam"))
)
_TOLD_EQUATIONS = ("pinn/burgers",)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "smoke": Preset(
            "smoke",
            {"nonlinear_oscillators": 0.5, "conditioning_toy": 0.2},
            seeds=(0, 1),
            comparisons=(
                Comparison(
                    "nonlinear_oscillators",
                    ("hig", "adam"),
                    tuned=("adam",),
                    common=("--train-size", "256", "--test-size", "64", "--batch-size", "64"),
                ),
                _TOY,
            ),
            ablations=(
                Ablation("kappa", "conditioning_toy", "hig", {"--kappa": ("-1", "-0.5", "1")}),
            ),
            relays=(Relay("conditioning_toy", "adam", "hig"),),
            factors=(0.3, 1.0),
            cutoffs=(1e-6,),
            rates=(3e-3,),
            robustness=Plan(("conditioning_toy",), (Variant("hig"),), (1.0,), seeds=2, seconds=1.0),
        ),
        "desk": Preset(
            "desk",
            {
                **dict.fromkeys((*_PUBLISHED, *_CONTROL, *_TOLD_EQUATIONS), 60.0),
                "conditioning_toy": 20.0,
            },
            seeds=(0, 1, 2),
            comparisons=(
                *_SIMULATORS,
                _TOY,
                *(found for found in _EQUATIONS if found.folder in _TOLD_EQUATIONS),
            ),
            ablations=tuple(
                ablation
                for folder in _ABLATED
                for ablation in _ablations(
                    folder,
                    ("-1", "-0.75", "-0.5", "0", "1"),
                    ("1e-10", "1e-7", "1e-4", "1e-1"),
                )
            ),
            relays=_RELAYS,
            cutoffs=(1e-6, 1e-4, 1e-3),
            rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            tuning_seconds=0.1,
            finalists=2,
            ablation_seconds=0.15,
            robustness=Plan(),
        ),
        "outputs": Preset(
            "outputs",
            {comparison.folder: 60.0 for comparison in _MANY_OUTPUTS},
            seeds=(0, 1, 2),
            comparisons=_MANY_OUTPUTS,
            ablations=_OF_SKETCHES,
            rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            tuning_seconds=0.2,
            ablation_seconds=1 / 3,
        ),
        "paper": Preset(
            "paper",
            {
                "nonlinear_oscillators": 3600.0,
                "quantum_dipole": 5400.0,
                "poisson": 3600.0,
                **dict.fromkeys(_CONTROL, 3600.0),
                "conditioning_toy": 600.0,
                **{found.folder: 3600.0 for found in _EQUATIONS},
            },
            seeds=(0, 1, 2, 3, 4),
            comparisons=(*_SIMULATORS, _TOY, *_EQUATIONS),
            ablations=tuple(ablation for folder in _ABLATED for ablation in _ablations(folder)),
            relays=_RELAYS,
            device="cuda",
        ),
    }
)


def known_folders(preset: Preset) -> Sequence[str]:
    """List the folders of a preset, each once."""
    parts = (*preset.comparisons, *preset.ablations, *preset.relays)
    seeds = preset.robustness.problems if preset.robustness else ()
    return tuple(dict.fromkeys((*(part.folder for part in parts), *seeds)))
