"""What the study runs: problems, methods, budgets, grids and ablations, as one table.

Nothing is computed here: `jobs.py` makes command lines of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

# Tuning sees a seed of its own, hence other weights, training and test samples than what is told.
TUNING_SEED = 1000

# Step sizes that are tried, over the one that a method has by default.
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)

_FIRST_ORDER = ("adam", "soap", "muon")


@dataclass(frozen=True)
class Comparison:
    """Methods on one problem at equal training time.

    Attributes:
        folder: That of the submit scripts.
        methods: Names of methods.
        tuned: Those whose step size is tuned first, on the grid.
        options: Further command line for each method, such as a step rule.
        common: Further command line for all.
    """

    folder: str
    methods: tuple[str, ...]
    tuned: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    common: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """One method on one problem with one option at several values.

    Attributes:
        name: What is varied.
        folder: That of the submit scripts.
        method: Name of the method.
        flag: The option, such as ``"--kappa"``.
        values: Its values, as on a command line.
        common: Further command line.
    """

    name: str
    folder: str
    method: str
    flag: str
    values: tuple[str, ...]
    common: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A study of one size.

    Attributes:
        name: Its name on the command line.
        seconds: Training time of a run that is told, by folder.
        tuning_seconds: Training time of a run of the grid over that.
        seeds: Seeds of the runs that are told.
        factors: Step sizes of the grid.
        comparisons: What is compared.
        ablations: What is varied.
        ablation_seconds: Training time of a run of an ablation over that of a comparison.
        device: torch device.
    """

    name: str
    seconds: Mapping[str, float]
    seeds: tuple[int, ...]
    comparisons: tuple[Comparison, ...]
    ablations: tuple[Ablation, ...] = ()
    factors: tuple[float, ...] = FACTORS
    tuning_seconds: float = 1.0
    ablation_seconds: float = 0.5
    device: str = "cpu"


_TRUST = ("--step-rule", "trust")
_RESIDUALS = ("--dtype", "float64", "--resampling", "residual")
_POINTS = ("--batch-size", "2000")

_SIMULATORS = tuple(
    Comparison(
        folder,
        ("hig", "gn", "lm", "khig", *_FIRST_ORDER),
        tuned=("hig", "gn", "khig", *_FIRST_ORDER),
        options={"hig": _TRUST, "gn": _TRUST},
    )
    for folder in ("nonlinear_oscillators", "quantum_dipole", "poisson")
)
_TOY = Comparison("conditioning_toy", ("hig", "gn", "adam"), tuned=("hig", "gn", "adam"))
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


def _ablations(folder: str) -> tuple[Ablation, ...]:
    kappas = ("-1", "-0.75", "-0.5", "-0.25", "0", "0.5", "1")
    rconds = ("1e-10", "1e-8", "1e-6", "1e-4", "1e-2", "1e-1", "auto")
    return (
        Ablation("kappa", folder, "hig", "--kappa", kappas, _TRUST),
        Ablation("rcond", folder, "hig", "--rcond", rconds, _TRUST),
        Ablation("rcond_gn", folder, "gn", "--rcond", rconds, _TRUST),
        Ablation("dtype", folder, "hig", "--dtype", ("float32", "float64"), _TRUST),
        Ablation("batch", folder, "hig", "--batch-size", ("16", "32", "64", "128"), _TRUST),
        Ablation("step_rule", folder, "hig", "--step-rule", ("fixed", "trust", "line_search")),
    )


_DESK = ("nonlinear_oscillators", "quantum_dipole")

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
                Ablation("kappa", "conditioning_toy", "hig", "--kappa", ("-1", "-0.5", "1")),
            ),
            factors=(0.3, 1.0),
        ),
        "desk": Preset(
            "desk",
            {
                **dict.fromkeys(("nonlinear_oscillators", "quantum_dipole"), 60.0),
                "poisson": 60.0,
                "conditioning_toy": 20.0,
                **{f"pinn/{name}": 60.0 for name in ("burgers", "kovasznay")},
            },
            seeds=(0, 1, 2),
            comparisons=(
                *_SIMULATORS,
                _TOY,
                *(
                    found
                    for found in _EQUATIONS
                    if found.folder in ("pinn/burgers", "pinn/kovasznay")
                ),
            ),
            ablations=tuple(ablation for folder in _DESK for ablation in _ablations(folder)),
            factors=(0.3, 1.0, 3.0),
            tuning_seconds=0.5,
            ablation_seconds=0.5,
        ),
        "paper": Preset(
            "paper",
            {
                "nonlinear_oscillators": 3600.0,
                "quantum_dipole": 5400.0,
                "poisson": 3600.0,
                "conditioning_toy": 600.0,
                **{found.folder: 3600.0 for found in _EQUATIONS},
            },
            seeds=(0, 1, 2, 3, 4),
            comparisons=(*_SIMULATORS, _TOY, *_EQUATIONS),
            ablations=tuple(ablation for folder in _DESK for ablation in _ablations(folder)),
            device="cuda",
        ),
    }
)


def known_folders(preset: Preset) -> Sequence[str]:
    """The folders that a preset runs anything in, each once."""
    parts = (*preset.comparisons, *preset.ablations)
    return tuple(dict.fromkeys(part.folder for part in parts))
