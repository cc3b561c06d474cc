"""Plan of many runs: seeds x problems x batch sizes x methods."""

from dataclasses import dataclass

from experiments._problems import make
from experiments._robustness.case import Case
from experiments._robustness.variants import Variant


@dataclass(frozen=True)
class Plan:
    """Runs of several methods on several problems, all combinations.

    Attributes:
        problems: Folders of the submit scripts.
        variants: Methods with their rules.
        batches: Batch sizes over that of the settings of the problem for the method.
        seeds: Number of seeds, from 0 on.
        seconds: Processor time of the training of each run.
        dtype: ``"float32"`` or ``"float64"``.
    """

    problems: tuple[str, ...] = (
        *("nonlinear_oscillators", "quantum_dipole", "conditioning_toy", "pinn/burgers"),
        "cart_pole",
    )
    variants: tuple[Variant, ...] = (Variant("hig"), Variant("gn"), Variant("lm"))
    batches: tuple[float, ...] = (1.0, 0.5)
    seeds: int = 20
    seconds: float = 15.0
    dtype: str = "float32"

    def cases(self, label: str) -> list[Case]:
        """List all cases, seed by seed, so that an interrupted command leaves whole tables.

        Raises:
            ValueError: A problem has no settings for a method.
            ImportError: A package that a problem needs is not installed.
        """
        sizes = {
            (folder, variant, factor): max(1, round(factor * size))
            for folder in self.problems
            for variant, size in _published_sizes(folder, self.variants).items()
            for factor in self.batches
        }
        cases = [
            Case(
                *(label, folder, variant.method, variant.rule, variant.rcond),
                *(sizes[folder, variant, factor], self.seconds, self.dtype, seed, variant.lr),
            )
            for seed in range(self.seeds)
            for folder in self.problems
            for factor in self.batches
            for variant in self.variants
        ]
        return list(dict.fromkeys(cases))


def _published_sizes(folder: str, variants: tuple[Variant, ...]) -> dict[Variant, int]:
    settings = make(folder).settings
    if unknown := [variant.method for variant in variants if variant.method not in settings]:
        raise ValueError(
            f"{folder} has no settings for {', '.join(unknown)}, it has them for "
            f"{', '.join(settings)}; give other --methods or --problems"
        )
    return {variant: settings[variant.method].batch_size for variant in variants}
