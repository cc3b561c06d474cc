"""Every figure of the results page, from the small result files of a study."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from plots import (
    _files,
    _settings,
    _style,
    ablation,
    density,
    fields,
    flow,
    loss,
    populations,
    rank,
    robustness,
    saturation,
    smoke,
    solution,
    spectrum,
    target,
    trajectory,
)

_EPILOG = """\
STUDY is the output of `python -m experiments keep`: <part>/<problem>/<run>.pickle. Each problem
of the comparison has its curves, its target, the spectra and ranks of the methods that have them,
and an example of HIG and of the best other method, if it has examples. Figures
are PNG files, <problem>_<figure>.png, ablation_<setting>.png and robustness.png of many seeds, none
larger than 150 kB.

example:
  python -m plots.study study/desk --out docs/images/study
"""

_MOST_BYTES = 150_000
_RESOLUTIONS = (160, 130, 110, 90, 70, 50)  # the first with which a figure is small enough
_ROBUSTNESS = "robustness"
_TUNING, _COMPARISON, _RELAYS = "tuning", "comparison", ("relay_first", "relay")
_OURS = "hig"
_MOST_RISE = 10.0  # of a loss over that at the start
# Figures of an example that has these parts; of several the first.
_EXAMPLES = (
    ("trajectory", trajectory, {"state", "target", "control"}),
    ("density", density, {"density", "target_density"}),
    ("flow", flow, {"velocity", "force"}),
    ("flow", flow, {"phase", "force"}),
    ("smoke", smoke, {"start", "uncontrolled", "prediction", "truth"}),
    ("fields", fields, {"prediction", "truth"}),
    ("solution", solution, {"points", "prediction", "solution"}),
)


def figures(study):
    """Functions that draw the figures of a study, by names without a suffix.

    Raises a PlotError if the folder has no comparison, or a file is not a result file.
    """
    parts, seeds = {}, Path(study) / f"{_ROBUSTNESS}.pickle"
    for path in sorted({*Path(study).rglob("*.pickle")} - {seeds}):
        part, *folder = path.parent.relative_to(study).parts or ("",)
        parts.setdefault(part, {}).setdefault("_".join(folder), []).append(_files.load(path))
    if _TUNING in parts:
        raise _files.PlotError(
            f"{study} is the folder of a study, not of its kept files; first "
            f"python -m experiments keep {study} --out DIR, and then give DIR"
        )
    if _COMPARISON not in parts:
        raise _files.PlotError(
            f"{study} has no result files in {_COMPARISON}/; give the output of python -m "
            "experiments keep"
        )
    found = {}
    for problem, files in parts.pop(_COMPARISON).items():
        files = _short(files)
        found |= {f"{problem}_{name}": call for name, call in _of_problem(files).items()}
    relays = [parts.pop(part, {}) for part in _RELAYS]
    for problem, files in relays[1].items():
        both = [_relayed(file) for file in (*relays[0].get(problem, ()), *files)]
        found[f"{problem}_relay"] = lambda both=both: _loss(both, ("time",))
    for part, problems in parts.items():
        files = [file for of in problems.values() for file in of]
        if 1 <= len(_settings.varied(files)) <= 2:
            found[f"ablation_{part}"] = lambda files=files: ablation.draw(files)
    if seeds.exists():
        found[_ROBUSTNESS] = lambda: robustness.draw([_files.load(seeds)])
    return found


def _short(files):
    """Labels the files of one problem by the method alone, if that is unique."""
    labels = {}
    for file in files:
        labels.setdefault(file.method, set()).add(file.label)
    return [
        _labelled(file, _settings.name(file)) if len(labels[file.method]) == 1 else file
        for file in files
    ]


def _relayed(file):
    """A file of one of two methods that take turns, labelled by who came before."""
    name, before = _settings.name(file), str(file.results.get("pretraining") or "")
    return _labelled(file, f"{before.partition(' (')[0]}, then {name}" if before else name)


def _labelled(file, label):
    return replace(file, results=file.results | {"label": label})


def _loss(files, x):
    """Curves as a page needs them, on which methods differ by orders of magnitude.

    Runs that diverge leave at the top, as no other curve would be legible next to 1e30. Steps
    have a logarithmic axis, as those of Adam are many and those of HIG few.
    """
    try:
        figure = loss.draw(files, x=x, log_x=("steps",))
    except _files.PlotError:  # runs that ended before they were evaluated have no place there
        figure = loss.draw(files, x=x)
    starts = [np.asarray(file.results["test_loss"])[0] for file in files]
    for axes in figure.axes:
        if axes.get_ylim()[1] > _MOST_RISE * max(starts):
            axes.set_ylim(top=_MOST_RISE * max(starts))
        if axes.get_xscale() == "log":
            _style.few_ticks(axes.xaxis)
    return figure


def _of_problem(files):
    """Figures of the files of one problem, by name."""
    found = {
        "loss": lambda: _loss(files, ("time", "steps")),
        "target": lambda: target.draw(files),
    }
    spectra = [
        file for file in files if "spectrum" in file.results and file.method in ("hig", "gn")
    ]
    ranked = [file for file in files if "rank" in file.results]
    neurons = [file for file in files if "test_activation_mean" in file.results]
    if spectra:
        found["spectrum"] = lambda: spectrum.draw(_ordered(spectra))
    if ranked:
        found["rank"] = lambda: rank.draw(ranked, x="steps")
    if neurons:
        found["saturation"] = lambda: saturation.draw(_ordered(neurons), log_x=True)
    shown = _with_examples(files)
    if shown:
        parts = set(shown[0].results["example"])
        for name, figure, needed in _EXAMPLES:
            if needed <= parts:
                found[name] = lambda figure=figure: figure.draw(shown)
                break
        if {"populations", "target_populations"} <= parts:
            found["populations"] = lambda: populations.draw(shown)
    return found


def _ordered(files):
    order = _style.in_order((file.method, file.label) for file in files)
    return sorted(files, key=lambda file: order.index((file.method, file.label)))


def _with_examples(files):
    """HIG and the best of all others: more would be too small on a page."""
    having = [file for file in files if "example" in file.results]
    best = sorted(having, key=lambda file: _settings.final(file, "test"))
    ours = [file for file in best if file.method == _OURS]
    others = [file for file in best if file.method != _OURS]
    return [*ours[:1], *others[:1]]


def draw(study, out):
    """Draw and write all figures of a study, with a note on each that cannot be drawn.

    Returns:
        List of the paths written.

    Raises:
        PlotError: As for `figures`.
        OSError: A figure cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, call in figures(study).items():
        path = out / f"{name}.png"
        with _style.look():
            try:
                figure = call()
            except _files.PlotError as error:  # of a run that has diverged at once, say
                _files.note(f"{path} is left out: {error}")
                continue
            for resolution in _RESOLUTIONS:
                figure.savefig(path, dpi=resolution)
                if path.stat().st_size <= _MOST_BYTES:
                    break
        written.append(path)
    return written


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m plots.study",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of small result files")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the figures"
    )
    options = parser.parse_args(arguments)
    try:
        written = draw(options.study, options.out)
    except _files.PlotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: --out must be a folder that can be written to, got {options.out}: "
            f"{error.strerror or error}; give another place",
            file=sys.stderr,
        )
        return 2
    print(f"{len(written)} figures written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
