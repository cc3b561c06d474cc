"""The results page of a kept study: what there is to tell of it, every number from its files.

Numbers are medians over the seeds, in brackets the lowest and the highest.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import hig
from experiments._methods import METHODS
from experiments._saved import markdown
from experiments._saved.folders import make_place
from experiments._saved.result_files import ERRORS
from experiments._saved.runs import Run
from experiments._study.ablations import ablation
from experiments._study.keep import COMPARISON, value_text
from experiments._study.kept import Kept, read_kept
from experiments._study.published import PUBLISHED
from experiments._study.seeds import Seeds, experiments, target_of
from experiments._study.summary import BEGIN, filled, summary
from experiments._study.table import PRESETS
from experiments._study.titles import place, title

_OURS = "hig"
_RELAY, _FIRST_HALF = "relay", "relay_first"


def report(kept: Kept, images: Mapping[str, str]) -> str:
    """The page as Markdown; the same files give the same bytes.

    Args:
        kept: The study.
        images: Where each figure is, as seen from the page, by its name without the suffix;
            ``<problem>_<figure>`` and ``ablation_<part>``.
    """
    parts = dict(kept.parts)
    every = [run for part in parts.values() for runs in part.values() for run in runs]
    compared = {folder: experiments(runs) for folder, runs in parts.pop(COMPARISON).items()}
    relayed = parts.pop(_RELAY, {})
    begun = parts.pop(_FIRST_HALF, {})
    texts = [
        f"# Results of the study: {kept.name}",
        _circumstances(every),
        *_missing(kept.name, {COMPARISON: compared, _RELAY: relayed, **parts}),
        *(_problem(folder, found, images) for folder, found in compared.items()),
        "## Where HIG does not win",
        _lost(compared),
        *(["## One after the other", _relays(relayed, begun, compared)] if relayed else []),
        *(text for folder in relayed for text in _shown(_prefix(folder, _RELAY), images, folder)),
        *(["## One setting at a time"] if parts else []),
        *(text for part, runs in parts.items() for text in _varied(part, runs, images)),
        "## The grid",
        _grid(kept.grid),
    ]
    return "\n\n".join(texts) + "\n"


# -- what there is -------------------------------------------------------------------------------


def _missing(name: str, found: Mapping[str, Mapping[str, object]]) -> list[str]:
    """What a preset of this name would run, and has not yet."""
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


def _circumstances(runs: Sequence[Run]) -> str:
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
    hours = sum(run.duration for run in runs) / 3600
    lines.append(["runs told of here", f"{len(runs)}, {hours:.3g} h of training"])
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
    target, meaning = target_of(found)
    published = PUBLISHED.get(folder)
    until = f"s to {target:.3g}" if meaning else "s to a target"
    header = ["method", "final test loss", "best", until, "training s", "steps"]
    header += ["epochs", "diverged", *(["elsewhere"] if published else []), "settings"]
    lines = [header]
    for seeds in found:
        beside = [published.losses.get(seeds.method, "–")] if published else []
        cells = [
            seeds.losses,
            markdown.median_and_range([run.best for run in seeds.runs], markdown.loss),
            markdown.to_target([run.seconds_to(target) for run in seeds.runs]),
            *(
                markdown.amount(float(np.median([getattr(run, name) for run in seeds.runs])))
                for name in ("duration", "steps", "epochs")
            ),
            f"{seeds.diverged} of {len(seeds.runs)}",
            *beside,
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
    """Links to the figures whose names begin like that, but for one."""
    about = title(folder)
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
    """One method goes on with the weights of another, beside each alone for the same time."""
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
            told = [f"{seeds.name()} alone", seeds.losses, seeds.settings]
            lines.append([problem, *told])
    return f"Each for half of the time that one alone has.\n\n{markdown.table(lines)}"


def _varied(part: str, runs: Mapping[str, list[Run]], images: Mapping[str, str]) -> list[str]:
    """An ablation, with its figure."""
    name, image = part.replace("_", " "), images.get(f"ablation_{part}")
    shown = [f"![Ablation: {name}]({image})"] if image else []
    return [f"### {name}", *ablation(runs), *shown]


def _grid(entries: Sequence[Mapping[str, object]]) -> str:
    """What was tried, the best of it in longer runs after an arrow, and in bold what has won."""
    lines = [["problem", "method", "final test loss on the seed of the grid"]]
    for entry in sorted(entries, key=lambda entry: place(str(entry["problem"]))[0]):
        texts, longer = [], dict(map(_tried, entry.get("finals", ())))
        for tried in entry["tried"]:
            point, loss = _tried(tried)
            text = f"{', '.join(f'{name} {value_text(value)}' for name, value in point)}: {loss}"
            text += f" → {longer[point]}" if point in longer else ""
            texts.append(f"**{text}**" if dict(point) == entry["won"] else text)
        folder = str(entry["problem"])
        cells = [title(folder), METHODS[str(entry["method"])].label]
        lines.append([*cells, "; ".join(texts)])
    return markdown.table(lines) if len(lines) > 1 else "Nothing was tuned."


def _tried(entry: Mapping[str, object]) -> tuple[tuple[tuple[str, object], ...], str]:
    """Settings, and the loss as it is told."""
    loss = np.inf if entry["loss"] is None else float(str(entry["loss"]))
    return tuple(item for item in entry.items() if item[0] != "loss"), markdown.loss(loss)


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
    parser.add_argument(
        "--into",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help=f"pages that shall have the comparison in one table, where they say {BEGIN}",
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
        kept = read_kept(options.study)
        texts = {page: filled(page, summary(kept)) for page in options.into}
        texts[options.out] = report(kept, images)
    except (*ERRORS, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for page, text in texts.items():
        hig.files.write_atomically(page, text.encode())
    print(f"report written to {', '.join(map(str, (options.out, *options.into)))}")
    return 0
