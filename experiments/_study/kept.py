"""Reader of the files that `python -m experiments keep` writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments._robustness.case import Record
from experiments._robustness.records import read_results
from experiments._saved.result_files import SUFFIX, ResultFileError, read
from experiments._saved.runs import Run, run_of
from experiments._study.keep import COMPARISON, ROBUSTNESS, TUNING
from experiments._study.titles import place
from experiments._study.winners import WINNERS, load_winners


@dataclass(frozen=True)
class Kept:
    """A kept study.

    Attributes:
        name: That of its folder.
        parts: Runs by part and by folder of the submit scripts, in the order of the results page.
        seeds: Runs of many seeds.
        grid: Settings tried and settings that have won, for each method on each problem.
    """

    name: str
    parts: Mapping[str, Mapping[str, list[Run]]]
    grid: Sequence[Mapping[str, object]]
    seeds: Sequence[Record] = ()

    @property
    def compared(self) -> Mapping[str, list[Run]]:
        """The runs of the comparison, by folder of the submit scripts."""
        return self.parts[COMPARISON]


def read_kept(study: Path) -> Kept:
    """Read a folder that ``python -m experiments keep`` has filled.

    Raises:
        ResultFileError: There are no runs of a comparison, or a file is not of a training run.
        OSError: A file cannot be read.
        CorruptResultError: It is not a result file.
        UnsafeResultError: It asks for more than plain Python and numpy.
    """
    if (study / TUNING).is_dir():
        raise ResultFileError(
            f"{study} is the folder of a study, not of its kept files; first "
            f"python -m experiments keep {study} --out DIR, and then give DIR"
        )
    found: dict[str, dict[str, list[Run]]] = {}
    many = study / f"{ROBUSTNESS}{SUFFIX}"
    for path in sorted(set(study.rglob(f"*{SUFFIX}")) - {many}):
        part, *folder = path.parent.relative_to(study).parts or ("",)
        run = run_of(path, read(path), "test")
        found.setdefault(part, {}).setdefault("/".join(folder), []).append(run)
    if COMPARISON not in found:
        raise ResultFileError(
            f"{study} has no result files in {COMPARISON}/; give the output of python -m "
            "experiments keep"
        )
    parts = {
        part: dict(sorted(runs.items(), key=lambda item: place(item[0])))
        for part, runs in found.items()
    }
    seeds = read_results(many) if many.exists() else []
    return Kept(study.resolve().name, parts, load_winners(study / WINNERS), seeds)
