"""The results page of a kept study: what there is to tell of it, every number from its files.

Numbers are medians over the seeds, in brackets the lowest and the highest.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

import hig
from experiments._methods import METHODS
from experiments._saved import markdown
from experiments._saved.folders import make_place
from experiments._saved.result_files import ERRORS, SUFFIX, ResultFileError, read
from experiments._saved.runs import Run, run_of
from experiments._study.keep import COMPARISON, WINNERS, differing, value_text
from experiments._study.published import PUBLISHED
from experiments._study.table import PRESETS

# As in the publication, then equations, then problems of our own; others after these.
_TITLES = {
    "nonlinear_oscillators": "Nonlinear oscillators",
    "poisson": "Poisson",
    "quantum_dipole": "Quantum dipole",
    "conditioning_toy": "Conditioning toy",
    "pinn/burgers": "Physics-informed network: Burgers",
    "pinn/schroedinger": "Physics-informed network: Schrödinger",
    "pinn/kovasznay": "Physics-informed network: Kovasznay",
    "pinn/beltrami": "Physics-informed network: Beltrami",
    "cart_pole": "Cart-pole",
    "burgers_control": "Control of Burgers' equation",
    "smoke_control": "Smoke control",
}
_USUAL = ("fixed", "schedule constant", "float32")  # settings that go without saying
_BASELINE, _OURS = "adam", "hig"
_RELAY, _FIRST_HALF = "relay", "relay_first"

# One method on one problem with settings of its own: the runs of all seeds.
Seeds = list[Run]


def report(study: Path, images: Mapping[str, str]) -> str:
    """The page as Markdown; the same files give the same bytes.

    Args:
        study: Folder that ``python -m experiments keep`` has filled.
        images: Where each figure is, as seen from the page, by its name without the suffix;
            ``<problem>_<figure>`` and ``ablation_<part>``.

    Raises:
        ResultFileError: There are no runs of a comparison, or a file is of no training run.
        OSError: A file cannot be read.
        CorruptResultError: It is no result file.
        UnsafeResultError: It asks for more than plain Python and numpy.
    """
    parts = _parts(study)
    compared = {folder: _experiments(runs) for folder, runs in parts.pop(COMPARISON).items()}
    relayed = parts.pop(_RELAY, {})
    begun = parts.pop(_FIRST_HALF, {})
    texts = [
        f"# Results of the study: {study.resolve().name}",
        _circumstances(compared),
        *_missing(study.resolve().name, {COMPARISON: compared, _RELAY: relayed, **parts}),
        *(_problem(folder, found, images) for folder, found in compared.items()),
        "## Where HIG does not win",
        _lost(compared),
        *(["## One after the other", _relays(relayed, begun, compared)] if relayed else []),
        *(text for folder in relayed for text in _shown(_prefix(folder, _RELAY), images, folder)),
        *(["## One setting at a time"] if parts else []),
        *(_ablation(part, runs, images) for part, runs in parts.items()),
        "## The grid",
        _grid(json.loads((study / WINNERS).read_text(encoding="utf-8"))),
    ]
    return "\n\n".join(texts) + "\n"


# -- what there is -------------------------------------------------------------------------------


def _parts(study: Path) -> dict[str, dict[str, list[Run]]]:
    """Runs by part and by folder of the submit scripts, in the order of the page."""
    found: dict[str, dict[str, list[Run]]] = {}
    for path in sorted(study.rglob(f"*{SUFFIX}")):
        part, *folder = path.parent.relative_to(study).parts or ("",)
        run = run_of(path, read(path), "test")
        found.setdefault(part, {}).setdefault("/".join(folder), []).append(run)
    if COMPARISON not in found:
        raise ResultFileError(
            f"{study} has no result files in {COMPARISON}/; give what python -m experiments keep "
            "has written"
        )
    order = list(_TITLES)
    place = {folder: i for i, folder in enumerate(order)}
    return {
        part: dict(sorted(runs.items(), key=lambda item: (place.get(item[0], len(order)), item[0])))
        for part, runs in found.items()
    }


def _missing(name: str, found: Mapping[str, Mapping[str, object]]) -> list[str]:
    """What a preset of this name would run, and has not yet."""
    if name not in PRESETS:
        return []
    preset = PRESETS[name]
    wanted = {
        "comparison": (COMPARISON, [part.folder for part in preset.comparisons]),
        "relays": (_RELAY, [part.folder for part in preset.relays]),
        **{part.name.replace("_", " "): (part.name, []) for part in preset.ablations},
    }
    for ablation in preset.ablations:
        wanted[ablation.name.replace("_", " ")][1].append(ablation.folder)
    texts = []
    for what, (part, folders) in wanted.items():
        left = [f for f in dict.fromkeys(folders) if f not in found.get(part, {})]
        if left:
            texts.append(f"{what} ({', '.join(_TITLES.get(folder, folder) for folder in left)})")
    return [f"**Not run yet:** {'; '.join(texts)}."] if texts else []


def _experiments(runs: Iterable[Run]) -> list[Seeds]:
    """Runs by method and label, the lowest median of the last loss first."""
    found: dict[tuple[str, ...], Seeds] = {}
    for run in sorted(runs, key=lambda run: (*run.experiment, int(run.results["seed"]))):
        found.setdefault(run.experiment, []).append(run)
    return sorted(found.values(), key=_final)


def _end(run: Run) -> float:
    """The last loss; what diverges has lost, whatever was last recorded."""
    return np.inf if run.stopped == "non-finite" else run.final


def _final(seeds: Seeds) -> float:
    return float(np.median([_end(run) for run in seeds]))


def _losses(seeds: Seeds) -> str:
    return markdown.median_and_range([_end(run) for run in seeds], markdown.loss)


def _seconds_to(seeds: Seeds, target: float) -> float:
    """Median of the seconds to a target, infinite where most seeds do not get there."""
    seconds = np.array([run.seconds_to(target) for run in seeds])
    return float(np.median(np.where(np.isnan(seconds), np.inf, seconds)))


def _method(seeds: Seeds) -> str:
    return str(seeds[0].results["method"])


def _name(seeds: Seeds, among: Iterable[Seeds] = ()) -> str:
    """The name of a method; the whole label where another experiment has that name too."""
    method = _method(seeds)
    alone = sum(_method(other) == method for other in among) < 2
    return METHODS[method].label if alone else seeds[0].experiment[-1].replace("|", r"\|")


def _target(found: Sequence[Seeds]) -> tuple[float, str]:
    """The loss whose time is told, and in words what it is."""
    finite = [seeds for seeds in found if np.isfinite(_final(seeds))]
    baseline = [seeds for seeds in finite if _method(seeds) == _BASELINE][:1]
    if not finite:
        return np.nan, ""
    chosen = (baseline if baseline and baseline[0] is not finite[0] else finite[1:2] or finite)[0]
    return _final(chosen), f"where {_name(chosen, found)} ends"


# -- its sections --------------------------------------------------------------------------------


def _circumstances(compared: Mapping[str, Sequence[Seeds]]) -> str:
    runs = [run for found in compared.values() for seeds in found for run in seeds]

    def all_of(group: str, key: str) -> str:
        found = {str(run.fact(group, key)) for run in runs}
        return ", ".join(sorted(found - {"None"})) or "not told"

    seeds = sorted({int(run.results["seed"]) for run in runs})
    facts = [
        ("processor", "machine"), ("cores", "machine"), ("threads", "machine"),
        ("device", "machine"), ("python", "machine"), ("torch", "machine"), ("hig", "machine"),
        ("revision", "origin"),
    ]  # fmt: skip
    lines = [["fact", "value"], ["seeds", ", ".join(map(str, seeds))]]
    lines += [[key, all_of(where, key)] for key, where in facts]
    lines.append(["clock of the training time", all_of("sim_par", "clock")])
    text = (
        "This page is made by `make figures` from the result files in the repository; no number on "
        "it has been typed. Methods are compared at equal training time, at the settings that have "
        "won [the grid](#the-grid) on a seed that nothing else sees; those without a grid at their "
        "own. Numbers are the median over the seeds, in brackets the lowest and the highest; times "
        "to a loss are those of the runs that got there, with their number. A run that diverges "
        "ends at no finite loss. Figures of solutions, and the errors in them, are of some places "
        "of the test grid."
    )
    return f"{text}\n\n{markdown.table(lines)}"


def _problem(folder: str, found: Sequence[Seeds], images: Mapping[str, str]) -> str:
    target, meaning = _target(found)
    published = PUBLISHED.get(folder)
    until = f"s to {target:.3g}" if meaning else "s to a target"
    header = ["method", "final test loss", "best", until, "training s", "steps"]
    header += ["epochs", "diverged", *(["elsewhere"] if published else []), "settings"]
    lines = [header]
    for seeds in found:
        diverged = sum(np.isinf(_end(run)) for run in seeds)
        beside = [published.losses.get(_method(seeds), "–")] if published else []
        cells = [
            _losses(seeds),
            markdown.median_and_range([run.best for run in seeds], markdown.loss),
            markdown.to_target([run.seconds_to(target) for run in seeds]),
            *(
                markdown.amount(float(np.median([getattr(run, name) for run in seeds])))
                for name in ("duration", "steps", "epochs")
            ),
            f"{diverged} of {len(seeds)}",
            *beside,
            _settings(seeds[0]),
        ]
        lines.append([_name(seeds, found), *cells])
    tested_by = sorted({str(seeds[0].results.get("tested_by") or "") for seeds in found} - {""})
    texts = [
        f"## {_TITLES.get(folder, folder)}",
        *(f"The test loss is the {name}." for name in tested_by),
        markdown.table(lines),
        f"The seconds are those to a test loss of {target:.3g}, {meaning}." if meaning else "",
        f"Elsewhere: {published.circumstances}." if published else "",
        *_shown(_prefix(folder), images, folder, but=_prefix(folder, _RELAY)),
    ]
    return "\n\n".join(text for text in texts if text)


def _settings(run: Run) -> str:
    given = run.results["sim_par"]
    names = {"lr": "lr", "rcond": "rcond", "schedule": "schedule", "batch_size": "batch"}
    texts = [f"{name} {value_text(given[key])}" for key, name in names.items() if key in given]
    texts += [value_text(given[key]) for key in ("step_rule", "dtype") if key in given]
    return ", ".join(text for text in texts if text not in _USUAL)


def _prefix(folder: str, figure: str = "") -> str:
    return f"{folder.replace('/', '_')}_{figure}"


def _shown(prefix: str, images: Mapping[str, str], folder: str, but: str = "none") -> list[str]:
    """Links to the figures whose names begin like that, but for one."""
    about = _TITLES.get(folder, folder)
    return [
        f"![{about}: {name.removeprefix(_prefix(folder)).replace('_', ' ')}]({place})"
        for name, place in sorted(images.items())
        if name.startswith(prefix) and name != but
    ]


def _lost(compared: Mapping[str, Sequence[Seeds]]) -> str:
    """Who is lower and who is sooner, problem by problem."""
    lines = [["problem", "a lower loss at the end", "sooner at the target"]]
    without = []
    for folder, found in compared.items():
        ours = [seeds for seeds in found if _method(seeds) == _OURS][:1]
        if not ours:
            without.append(_TITLES.get(folder, folder))
            continue
        target, _ = _target(found)
        lower = _ahead(ours[0], found, _final)
        sooner = _ahead(ours[0], found, lambda seeds, target=target: _seconds_to(seeds, target))
        if lower or sooner:
            lines.append([_TITLES.get(folder, folder), lower or "none", sooner or "none"])
    text = (
        "Problems on which another method ends at a lower median test loss than HIG, or is sooner "
        "at the target, and by what factor; alone is who gets to a target, or to a finite loss, "
        "where HIG in the median does not."
    )
    end = f"HIG is not compared on: {', '.join(without)}." if without else ""
    told = markdown.table(lines) if len(lines) > 1 else "There are none in this study."
    return "\n\n".join(filter(None, [text, told, end]))


def _ahead(ours: Seeds, found: Sequence[Seeds], of: Callable[[Seeds], float]) -> str:
    """The methods with a smaller number, the smallest first."""
    mine = of(ours)
    others = sorted(
        ((of(seeds), _name(seeds, found)) for seeds in found if _method(seeds) != _OURS),
        key=lambda pair: pair[0],
    )
    texts = []
    for number, name in others:
        if number < mine:
            factor = f"{mine / number:.3g} times" if np.isfinite(mine) and number > 0 else "alone"
            texts.append(f"{name} ({factor})")
    return ", ".join(texts)


def _relays(
    relayed: Mapping[str, list[Run]],
    begun: Mapping[str, list[Run]],
    compared: Mapping[str, Sequence[Seeds]],
) -> str:
    """One method goes on with the weights of another, beside each alone for the same time."""
    lines = [["problem", "methods", "final test loss", "settings"]]
    for folder, runs in relayed.items():
        title, found = _TITLES.get(folder, folder), _experiments(runs)
        methods = {_method(seeds) for seeds in (*found, *_experiments(begun.get(folder, ())))}
        alone = [seeds for seeds in compared.get(folder, ()) if _method(seeds) in methods]
        for seeds in found:
            first = str(seeds[0].results["pretraining"]).partition(" (")[0]
            name = f"{first}, then {_name(seeds)}"
            lines.append([title, name, _losses(seeds), _settings(seeds[0])])
        for seeds in alone:
            told = [f"{_name(seeds)} alone", _losses(seeds), _settings(seeds[0])]
            lines.append([title, *told])
    return f"Each for half of the training time.\n\n{markdown.table(lines)}"


def _ablation(part: str, runs: Mapping[str, list[Run]], images: Mapping[str, str]) -> str:
    names = list(dict.fromkeys(n for r in runs.values() for n in differing(x.results for x in r)))
    texts = [f"### {part.replace('_', ' ')}"]
    if len(names) == 2:
        for folder, found in runs.items():
            texts += [f"{_TITLES.get(folder, folder)}:", _pairs(found, *names)]
    else:
        texts.append(_values(runs, names))
    image = images.get(f"ablation_{part}")
    shown = [f"![Ablation: {part.replace('_', ' ')}]({image})"] if image else []
    return "\n\n".join([*texts, *shown])


def _values(runs: Mapping[str, list[Run]], names: Sequence[str]) -> str:
    """A row for each value, a column for each problem."""
    columns = {folder: _by_values(found, names) for folder, found in runs.items()}
    values = _in_order(value for column in columns.values() for value in column)
    header = [", ".join(name.replace("_", " ") for name in names) or "settings"]
    lines = [[*header, *(_TITLES.get(folder, folder) for folder in columns)]]
    for value in values:
        cells = [_cell(column.get(value), column) for column in columns.values()]
        lines.append([", ".join(map(value_text, value)) or "the same for all", *cells])
    return markdown.table(lines)


def _pairs(runs: Iterable[Run], down: str, across: str) -> str:
    """A row for each value of one setting, a column for each of the other."""
    found = _by_values(runs, [down, across])
    above, beside = (_in_order((pair[i],) for pair in found) for i in (1, 0))
    lines = [[f"{down} \\ {across}", *(value_text(value) for (value,) in above)]]
    for (value,) in beside:
        cells = [_cell(found.get((value, other)), found) for (other,) in above]
        lines.append([value_text(value), *cells])
    return markdown.table(lines)


def _by_values(runs: Iterable[Run], names: Sequence[str]) -> dict[tuple[object, ...], Seeds]:
    found: dict[tuple[object, ...], Seeds] = {}
    for run in runs:
        found.setdefault(tuple(run.fact("sim_par", name) for name in names), []).append(run)
    return found


def _in_order(values: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Each once; numbers by size, before texts."""

    def key(value: object) -> tuple[bool, float, str]:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (not number, float(value) if number else 0.0, str(value))

    return sorted(dict.fromkeys(values), key=lambda value: tuple(map(key, value)))


def _cell(seeds: Seeds | None, among: Mapping[object, Seeds]) -> str:
    """The median loss; the lowest in bold."""
    if seeds is None:
        return "–"
    text = markdown.loss(_final(seeds))
    best = min(_final(other) for other in among.values())
    return f"**{text}**" if len(among) > 1 and _final(seeds) == best < np.inf else text


def _grid(entries: Sequence[Mapping[str, object]]) -> str:
    """What was tried, and in bold what has won."""
    lines = [["problem", "method", "final test loss on the seed of the grid"]]
    for entry in sorted(entries, key=lambda e: [*_TITLES, e["problem"]].index(e["problem"])):
        texts = []
        for tried in entry["tried"]:
            point = {name: value for name, value in tried.items() if name != "loss"}
            settings = ", ".join(f"{name} {value_text(value)}" for name, value in point.items())
            loss = np.inf if tried["loss"] is None else float(tried["loss"])
            text = f"{settings}: {markdown.loss(loss)}"
            texts.append(f"**{text}**" if point == entry["won"] else text)
        folder = str(entry["problem"])
        cells = [_TITLES.get(folder, folder), METHODS[str(entry["method"])].label]
        lines.append([*cells, "; ".join(texts)])
    return markdown.table(lines) if len(lines) > 1 else "Nothing was tuned."


# -- the command ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="what `keep` has written")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PAGE", help="such as results.md"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="PNG figures, in a folder beside or below PAGE"
    )
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Write the page; returns the exit status, 2 after an error whose text went to stderr."""
    make_place(options.out, "--out")
    try:
        images = {}
        if options.images is not None:
            folder = options.out.resolve().parent
            for path in sorted(options.images.resolve().glob("*.png")):
                images[path.stem] = path.relative_to(folder).as_posix()
        text = report(options.study, images)
    except (*ERRORS, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    hig.files.write_atomically(options.out, text.encode())
    print(f"report written to {options.out}")
    return 0
