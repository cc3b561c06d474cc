"""Results page of a kept study, every number from its files.

Numbers are medians over the seeds, in brackets the lowest and the highest.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

import hig
from experiments._methods import METHODS
from experiments._robustness.case import Record
from experiments._robustness.summary import LOST
from experiments._robustness.summary import table as seeds_table
from experiments._saved import markdown
from experiments._saved.folders import make_place
from experiments._saved.result_files import ERRORS, ResultFileError, fail
from experiments._saved.runs import Run
from experiments._study.ablations import ablation
from experiments._study.grid_table import grid_table
from experiments._study.keep import COMPARISON, ROBUSTNESS, value_text
from experiments._study.kept import Kept, read_kept
from experiments._study.published import PUBLISHED
from experiments._study.repetitions import repetitions
from experiments._study.seeds import Seeds, experiments, target_of
from experiments._study.summary import BEGIN, filled, summary
from experiments._study.table import PRESETS
from experiments._study.titles import title

_OURS = "hig"
_RELAY, _FIRST_HALF = "relay", "relay_first"


def report(kept: Kept, images: Mapping[str, str]) -> str:
    """Write the page as Markdown; the same files give the same bytes.

    ``images`` has the paths of figures, relative to the page, by name: ``<problem>_<figure>``,
    ``ablation_<part>`` and ``robustness``.
    """
    parts = dict(kept.parts)
    every = [run for part in parts.values() for runs in part.values() for run in runs]
    compared = {folder: experiments(runs) for folder, runs in parts.pop(COMPARISON).items()}
    relayed = parts.pop(_RELAY, {})
    begun = parts.pop(_FIRST_HALF, {})
    texts = [
        f"# Results of the study: {kept.name}",
        _circumstances(every, repetitions(kept.parts)),
        *_missing(kept.name, {COMPARISON: compared, _RELAY: relayed, **parts}),
        *(_problem(folder, found, images) for folder, found in compared.items()),
        "## Problems on which HIG does not win",
        _lost(compared),
        *(["## One after the other", _relays(relayed, begun, compared)] if relayed else []),
        *(text for folder in relayed for text in _shown(_prefix(folder, _RELAY), images, folder)),
        *_every_seed(kept.seeds, images),
        *(["## One setting at a time"] if parts else []),
        *(text for part, runs in parts.items() for text in _varied(part, runs, images)),
        "## The grid",
        grid_table(kept.grid),
    ]
    return "\n\n".join(texts) + "\n"


# -- missing runs --------------------------------------------------------------------------------


def _missing(name: str, found: Mapping[str, Mapping[str, object]]) -> list[str]:
    """List the runs of the preset of this name that are missing."""
    if name not in PRESETS:
        return []
    preset = PRESETS[name]
    wanted: dict[str, list[str]] = {}
    for comparison in preset.comparisons:
        wanted.setdefault(COMPARISON, []).append(comparison.folder)
    for relay in preset.relays:
        wanted.setdefault(_RELAY, []).append(relay.folder)
    for varied in preset.ablations:
        wanted.setdefault(varied.name, []).append(varied.folder)
    texts = []
    for part, folders in wanted.items():
        left = [f for f in dict.fromkeys(folders) if f not in found.get(part, {})]
        if left:
            texts.append(f"{part.replace('_', ' ')} ({', '.join(map(title, left))})")
    return [f"**Not run yet:** {'; '.join(texts)}."] if texts else []


# -- its sections --------------------------------------------------------------------------------


def _circumstances(runs: Sequence[Run], repeated: Sequence[float]) -> str:
    def all_of(group: str, key: str) -> str:
        found = Counter(str(run.fact(group, key)) for run in runs)
        del found["None"]
        if len(found) < 2:
            return ", ".join(found) or "not recorded"
        return ", ".join(
            f"{value} ({count} of {len(runs)})" for value, count in found.most_common()
        )

    seeds = sorted({int(run.results["seed"]) for run in runs})
    facts = [
        ("processor", "machine"), ("cores", "machine"), ("threads", "machine"),
        ("device", "machine"), ("python", "machine"), ("torch", "machine"), ("hig", "machine"),
        ("revision", "origin"),
    ]  # fmt: skip
    lines = [["fact", "value"], ["seeds", ", ".join(map(str, seeds))]]
    lines += [[key, all_of(where, key)] for key, where in facts]
    lines.append(["clock of the training time", all_of("sim_par", "clock")])
    hours = sum(run.duration for run in runs) / 3600
    lines.append(["runs reported here", f"{len(runs)}, {hours:.3g} h of training"])
    text = (
        "This page is made from result files (in the repository by `make figures`); no number on "
        "it has been typed. Methods are compared at equal training time, at the settings that have "
        "won [the grid](#the-grid) on a seed that nothing else sees; those without a grid at their "
        "own. Numbers are the median over the seeds, in brackets the lowest and the highest; times "
        "to a loss are those of the runs that got there, with their number. A run that diverges "
        "ends at no finite loss. Figures of solutions, and the errors in them, are of some places "
        "of the test grid. If ranges overlap, so few seeds do not decide which method is lower."
    )
    if repeated:
        text += (
            f" Runs in several parts that differ in nothing ({len(repeated)} sets) end up to "
            f"{max(repeated):.2g} times apart, since none takes the same number of steps in its "
            "time: smaller differences mean nothing."
        )
    return f"{text}\n\n{markdown.table(lines)}"


def _problem(folder: str, found: Sequence[Seeds], images: Mapping[str, str]) -> str:
    target, meaning = target_of(found)
    published = PUBLISHED.get(folder)
    until = f"s to {target:.3g}" if meaning else "s to a target"
    header = ["method", "final test loss", "best", until, "training s", "steps"]
    header += ["epochs", "diverged", *(["elsewhere"] if published else []), "settings"]
    lines = [header]
    for seeds in found:
        elsewhere = [published.losses.get(seeds.method, "–")] if published else []
        cells = [
            seeds.losses,
            markdown.median_and_range([run.best for run in seeds.runs], markdown.loss),
            markdown.to_target([run.seconds_to(target) for run in seeds.runs]),
            *(
                markdown.amount(float(np.median([getattr(run, name) for run in seeds.runs])))
                for name in ("duration", "steps", "epochs")
            ),
            f"{seeds.diverged} of {len(seeds.runs)}",
            *elsewhere,
            seeds.settings,
        ]
        lines.append([seeds.name(found), *cells])
    tested_by = sorted(
        {str(seeds.runs[0].results.get("tested_by") or "") for seeds in found} - {""}
    )
    texts = [
        f"## {title(folder)}",
        *(f"The test loss is the {name}." for name in tested_by),
        markdown.table(lines),
        f"The seconds are those to a test loss of {target:.3g}, {meaning}." if meaning else "",
        f"Elsewhere: {published.circumstances}." if published else "",
        *_shown(_prefix(folder), images, folder, but=_prefix(folder, _RELAY)),
    ]
    return "\n\n".join(text for text in texts if text)


def _prefix(folder: str, figure: str = "") -> str:
    return f"{folder.replace('/', '_')}_{figure}"


def _shown(prefix: str, images: Mapping[str, str], folder: str, but: str = "none") -> list[str]:
    """Link the figures whose names begin with a prefix, except one."""
    about = title(folder)
    return [
        f"![{about}: {name.removeprefix(_prefix(folder)).replace('_', ' ')}]({place})"
        for name, place in sorted(images.items())
        if name.startswith(prefix) and name != but
    ]


def _lost(compared: Mapping[str, Sequence[Seeds]]) -> str:
    """Tabulate the methods that are lower or sooner than HIG, problem by problem."""
    lines = [["problem", "a lower loss at the end", "sooner at the target"]]
    without = []
    for folder, found in compared.items():
        ours = [seeds for seeds in found if seeds.method == _OURS][:1]
        if not ours:
            without.append(title(folder))
            continue
        target, _ = target_of(found)
        lower = _ahead(ours[0], found, lambda seeds: seeds.final)
        sooner = _ahead(ours[0], found, lambda seeds, target=target: seeds.seconds_to(target))
        if lower or sooner:
            lines.append([title(folder), lower or "none", sooner or "none"])
    text = (
        "Problems on which another method ends at a lower median test loss than HIG, or is sooner "
        "at the target, and by which factor; alone means that it gets to a target, or to a finite "
        "loss, and HIG in the median does not."
    )
    end = f"HIG is not compared on: {', '.join(without)}." if without else ""
    table = markdown.table(lines) if len(lines) > 1 else "There are none in this study."
    return "\n\n".join(filter(None, [text, table, end]))


def _ahead(ours: Seeds, found: Sequence[Seeds], of: Callable[[Seeds], float]) -> str:
    """List the methods with a smaller number, the smallest first."""
    mine = of(ours)
    others = sorted(
        ((of(seeds), seeds.name(found)) for seeds in found if seeds.method != _OURS),
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
    """Tabulate methods that continue from the weights of another, next to each alone."""
    lines = [["problem", "methods", "final test loss", "settings"]]
    for folder, runs in relayed.items():
        problem, found = title(folder), experiments(runs)
        methods = {seeds.method for seeds in (*found, *experiments(begun.get(folder, ())))}
        alone = [seeds for seeds in compared.get(folder, ()) if seeds.method in methods]
        for seeds in found:
            first = str(seeds.runs[0].results["pretraining"]).partition(" (")[0]
            name = f"{first}, then {seeds.name()}"
            lines.append([problem, name, seeds.losses, seeds.settings])
        for seeds in alone:
            lines.append([problem, f"{seeds.name()} alone", seeds.losses, seeds.settings])
    return f"Each for half of the time that one alone has.\n\n{markdown.table(lines)}"


def _every_seed(records: Sequence[Record], images: Mapping[str, str]) -> list[str]:
    """Section of the runs of many seeds, with their figure."""
    if not records:
        return []
    text = (
        "New weights and new data for each seed, processor time of one thread, steps alone. "
        f"{LOST} The worst is that of all runs, the median that of the others."
    )
    shown = [f"![Every seed]({images[ROBUSTNESS]})"] if ROBUSTNESS in images else []
    return ["## Every seed", text, seeds_table(records), *shown]


def _varied(part: str, runs: Mapping[str, list[Run]], images: Mapping[str, str]) -> list[str]:
    """Section of an ablation, with its figure."""
    name, image = part.replace("_", " "), images.get(f"ablation_{part}")
    shown = [f"![Ablation: {name}]({image})"] if image else []
    return [f"### {name}", _held(runs), *ablation(runs), *shown]


def _held(runs: Mapping[str, Iterable[Run]]) -> str:
    """Describe the common settings of the runs of an ablation; those of the grid are left out."""

    def all_of(key: str) -> set[str]:
        values = (run.fact("sim_par", key) for found in runs.values() for run in found)
        return {value_text(value) for value in values} - {"None"}

    methods = {str(run.results["method"]) for found in runs.values() for run in found}
    labels = sorted(METHODS[method].label for method in methods)
    rules = all_of("step_rule")
    rule = f" with the step rule {min(rules)}" if len(rules) == 1 else ""
    seconds = " or ".join(sorted(all_of("time_budget")))
    time = f" of {seconds} s of training" if seconds else ""
    return (
        f"Medians of the final test losses of {', '.join(labels)}{rule} at the end{time}; all "
        "other settings as have won the grid."
    )


# -- the command ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="output of `keep`")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PAGE", help="such as results.md"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="PNG figures, in a folder next to or below PAGE"
    )
    parser.add_argument(
        "--into",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help=f"pages that get the comparison in one table, after the mark {BEGIN}",
    )
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Write the page; returns the exit status, 2 after an error whose text went to stderr."""
    make_place(options.out, "--out")
    try:
        images = _images(options.images, options.out) if options.images else {}
        if options.out.resolve() in {page.resolve() for page in options.into}:
            raise ResultFileError(
                f"the page {options.out} would replace the page that its table goes into; give "
                "another --out or --into"
            )
        kept = read_kept(options.study)
        texts = {page: filled(page, summary(kept)) for page in options.into}
        texts[options.out] = report(kept, images)
    except ERRORS as error:
        return fail(error)
    for page, text in texts.items():
        hig.files.write_atomically(page, text.encode())
    print(f"report written to {', '.join(map(str, (options.out, *options.into)))}")
    return 0


def _images(folder: Path, page: Path) -> dict[str, str]:
    """Find the figures; returns their paths relative to the page, by name."""
    whole, above = folder.resolve(), page.resolve().parent
    found = sorted(whole.glob("*.png"))
    if not found or not whole.is_relative_to(above):
        fault = "is not below the folder of the page" if found else "has no figures (*.png)"
        raise ResultFileError(
            f"--images {folder} {fault}, {page}; give such as "
            f"{page.parent / 'images'}, which python -m plots.study fills"
        )
    return {path.stem: path.relative_to(above).as_posix() for path in found}
