"""Result files of a study, cut down until they are small enough to be committed.

Of a comparison the run of the first seed keeps spectra, ranks and step sizes of some steps, and one
example; all other runs keep their curves, settings and machine. Those of the grid are left out: its
losses are in winners.json.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

import hig
from experiments._saved.result_files import ERRORS, SUFFIX, ResultFileError, fail, read
from experiments._saved.runs import run_of
from experiments._study.execution import result_of
from experiments._study.winners import WINNERS, load_winners

COMPARISON, TUNING, ROBUSTNESS = "comparison", "tuning", "robustness"

# Recorded among the settings, but not a difference between runs of one part of a study.
_NO_SETTINGS = ("seed", "out", "published", "init_from", "save_weights", "threads", "time_budget")
_OF_STEPS = ("step_time", "rank", "step_size")
_MOST_STEPS = 500
_MOST_PLACES = (64, 64, 3)  # of a grid along its coordinates; the last number is for all others


def differing(runs: Iterable[Mapping[str, object]]) -> list[str]:
    """Names of the settings in which runs of one method differ, in the order of the settings."""
    settings = [run["sim_par"] for run in runs]
    names = dict.fromkeys(name for found in settings for name in found)
    return [
        name
        for name in names
        if name not in _NO_SETTINGS and len({repr(found.get(name)) for found in settings}) > 1
    ]


def value_text(value: object) -> str:
    """Write the value of a setting as on a command line."""
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def keep(study: Path, out: Path) -> list[Path]:
    """Write the kept part of a study, a folder that ``experiments.study`` filled for one preset.

    Returns:
        The new files: ``<part>/<problem>/<method>[_<value>...]_seed<k>.pickle``, and
        ``robustness.pickle`` if there are runs of many seeds.

    Raises:
        ResultFileError: There are no runs, they are not those of the settings that have won, or
            files of another study are in the way.
        OSError: A file cannot be read or written.
        CorruptResultError: A file is not a result file.
        UnsafeResultError: It asks for more than plain Python and numpy.
    """
    where, there = out.resolve(), study.resolve()
    if where.is_relative_to(there) or there.is_relative_to(where):
        raise ResultFileError(
            f"the kept files cannot be written to {out}, in one folder with the study {study}; "
            "give another --out, such as study/desk"
        )
    found, written = _runs(study), []
    _require_winners(load_winners(study / WINNERS), found)
    for (part, folder), runs in found.items():
        names: dict[Path, str] = {}
        for place, run in runs.items():
            alike = [other for other in runs.values() if other["method"] == run["method"]]
            path = out / part / folder / f"{_name(run, differing(alike))}{SUFFIX}"
            if path in names:
                raise ResultFileError(
                    f"{place} and {names[path]} in {study} have the same settings, hence the same "
                    f"name {path}; remove the one that is not of this study"
                )
            names[path] = place
            first = run["seed"] == min(other["seed"] for other in alike)
            hig.save_results(path, cut(_placed(run, place), first and part == COMPARISON))
            path.with_suffix(".txt").unlink()  # its contents are in the result file
        written += names
    if (seeds := study / f"{ROBUSTNESS}{SUFFIX}").exists():  # small, and without paths
        written.append(out / seeds.name)
        hig.save_results(written[-1], read(seeds))
        written[-1].with_suffix(".txt").unlink()
    others = sorted(set(out.rglob(f"*{SUFFIX}")) - set(written))
    if others:
        raise ResultFileError(
            f"{out} has files of runs that {study} has not, such as {others[0]}; remove them"
        )
    hig.files.write_atomically(out / WINNERS, (study / WINNERS).read_bytes())
    return written


def cut(results: Mapping[str, object], whole: bool) -> dict[str, object]:
    """Cut a run to the entries that are kept; if ``whole``, with spectra, steps and an example."""
    kept = {}
    for key, value in results.items():
        steps = key in _OF_STEPS
        wide = isinstance(value, np.ndarray) and value.ndim > 1  # a number for each neuron
        if whole or not (steps or wide or key in ("spectrum", "example")):
            kept[key] = value[_chosen_steps(len(value))] if steps else value
    if "step_time" in kept:
        steps = np.arange(1, 1 + len(results["step_time"]))
        kept["step"] = steps[_chosen_steps(len(steps))]
    for key, of in (("spectrum", dict), ("example", _one_example)):
        if key in kept:
            kept[key] = {name: _single(value) for name, value in of(kept[key]).items()}
    return kept


def _chosen_steps(count: int) -> slice:
    stride = -(-count // _MOST_STEPS)
    return slice(stride - 1, None, stride) if stride > 1 else slice(None)


def _one_example(example: Mapping[str, object]) -> dict[str, object]:
    """Keep the first example; of solutions on a grid fewer places."""
    if "points" in example:
        rows = _coarse(np.asarray(example["points"]))
        return {k: v[rows] if isinstance(v, np.ndarray) else v for k, v in example.items()}
    if "x" in example:  # functions and landscapes, over places that are no examples
        return dict(example)
    # Arrays of one dimension are the places and times that all examples share.
    several = {k for k, v in example.items() if isinstance(v, np.ndarray) and v.ndim > 1}
    return {key: value[:1] if key in several else value for key, value in example.items()}


def _coarse(points: np.ndarray) -> np.ndarray:
    """Select the rows of the points (N, D) of a grid that make a coarser grid."""
    rows = np.full(len(points), True)
    for index, column in enumerate(points.T):
        places = np.unique(column)
        most = _MOST_PLACES[min(index, len(_MOST_PLACES) - 1)]
        shown = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
        rows &= np.isin(column, places[shown])
    return rows


def _single(value: object) -> object:
    is_double = isinstance(value, np.ndarray) and value.dtype == np.float64
    return value.astype(np.float32) if is_double else value


def _runs(study: Path) -> dict[tuple[str, str], dict[str, dict[str, object]]]:
    """Load results by part and folder of the submit scripts, and by the place of each run."""
    found: dict[tuple[str, str], dict[str, dict[str, object]]] = {}
    for place in sorted({path.parent for path in study.rglob(f"*{SUFFIX}")}):
        part, *folder = place.relative_to(study).parts or ("",)
        path = result_of(place)
        if path is None or not folder or part == TUNING:
            continue
        results = run_of(path, read(path), "test").results
        if str(results["sim_par"].get("out", "")).startswith(f"{part}/"):
            raise ResultFileError(
                f"{study} is a study that has been kept already; give the folder of the study "
                "itself, such as results/study/desk"
            )
        runs = found.setdefault((part, "/".join(folder[:-1])), {})
        runs[place.relative_to(study).as_posix()] = results
    if not found or not (study / WINNERS).exists():
        raise ResultFileError(
            f"{study} is not the folder of a study: it has no {WINNERS} or no finished runs; give "
            "such as results/study/desk"
        )
    return found


def _require_winners(
    grid: Sequence[Mapping[str, object]],
    found: Mapping[tuple[str, str], Mapping[str, Mapping[str, object]]],
) -> None:
    """Refuse runs of a comparison at settings that won an earlier grid."""
    won = {(entry["problem"], entry["method"]): entry["won"] for entry in grid}
    for (part, folder), runs in found.items():
        for place, run in runs.items() if part == COMPARISON else ():
            for name, value in won.get((folder, run["method"]), {}).items():
                # On a command line it is a text, and its name has hyphens.
                own = value_text(run["sim_par"].get(name.replace("-", "_")))
                if own != value_text(value):
                    raise ResultFileError(
                        f"{place} has {name} {own}, and {value_text(value)} has won the grid; "
                        "remove that folder"
                    )


def _name(run: Mapping[str, object], settings: Sequence[str]) -> str:
    values = [value_text(run["sim_par"].get(name)) for name in settings]
    if "pretraining" in run:
        values.append(f"after_{str(run['pretraining']).partition(' (')[0].lower()}")
    words = [re.sub(r"[^\w.+-]", "", word) for word in (run["method"], *values)]
    return f"{'_'.join(words)}_seed{run['seed']}"


def _placed(run: Mapping[str, object], place: str) -> dict[str, object]:
    """Remove the folder of the study, which means nothing elsewhere."""
    out = str(run["sim_par"].get("out", ""))
    root = out.removesuffix(place) if out.endswith(place) else out

    def without(value: object) -> object:
        if isinstance(value, str) and root:
            return value.replace(root, "")
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items()}
        return value

    return {key: without(value) if isinstance(value, dict) else value for key, value in run.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="such as results/study/desk")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the small files"
    )
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Write the files; returns the exit status, 2 after an error whose text went to stderr."""
    try:
        written = keep(options.study, options.out)
    except ERRORS as error:
        return fail(error)
    size = sum(path.stat().st_size for path in written)
    print(f"{len(written)} files, {size / 1e6:.1f} MB, in {options.out}")
    return 0
