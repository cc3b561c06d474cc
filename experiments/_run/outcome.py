"""Outcome of a run: results, weights and a summary."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments._provenance import machine
from experiments._run.checkpoint import Checkpoints
from experiments._run.options import Options
from experiments._run.progress import Progress
from experiments._run.training import Training
from experiments._run.weights import Pretraining, save
from problems import Problem, Settings

# Options that leave the results as they are.
_HIDDEN = ("quiet", "summary", "tensorboard", "resume", "checkpoint_every")


def save_weights(training: Training, path: Path, names: dict[str, object]) -> dict[str, str]:
    """Write the weights of the last evaluation, if wanted and finite; returns the file name."""
    wanted = training.options.save_weights and training.processes.rank == 0
    if not wanted or not training.latest.usable:
        return {}
    return {"weights_file": save(path, training.latest, names, training.earlier).name}


def outcome(training: Training) -> dict[str, object]:
    """Collect all results of a run."""
    return {
        **training.recorder.results(),
        **(training.jacobian_recorder.results() if training.method.jacobian else {}),
        **_pretraining(training.earlier),
        **({"faults": faults} if (faults := training.faults.events) else {}),
        **({"resumed_at": np.asarray(resumed)} if (resumed := training.resumed_at) else {}),
        **circumstances(training),
        **_example(training),
    }


def circumstances(training: Training) -> dict[str, dict[str, object]]:
    """Settings and machine of a run, known before its first step."""
    options = training.options
    return {
        "sim_par": sim_par(training.problem, training.settings, options),
        "machine": {**machine(options.device), "processes": training.processes.size},
    }


def sim_par(problem: Problem, settings: Settings, options: Options) -> dict[str, object]:
    """Every setting of a run, in plain Python."""
    chosen = {key: value for key, value in asdict(settings).items() if value is not None}
    run_options = {key: value for key, value in asdict(options).items() if key not in _HIDDEN}
    paths = {"out": str(options.out), "init_from": options.init_from and str(options.init_from)}
    return {**asdict(problem), **chosen, **run_options, **paths}


def _pretraining(earlier: Pretraining | None) -> dict[str, object]:
    return {"pretraining": earlier.label, "pretraining_time": earlier.seconds} if earlier else {}


def _example(training: Training) -> dict[str, object]:
    """Example of the problem on the first test samples; left out if it has none."""
    count = training.problem.examples
    batch = {key: value[:count] for key, value in training.test.items()}
    training.latest.put_into(training.network)
    training.network.eval()
    example = training.problem.example(training.network, batch)
    return {"example": example} if example else {}


def summarise(
    training: Training,
    progress: Progress,
    results: dict[str, object],
    path: Path,
    checkpoints: Checkpoints,
) -> None:
    """Print how a run ended, its last and its best losses, and its files."""
    if training.options.quiet and not training.options.summary:
        return
    train, test = results["train_loss"], results["test_loss"]
    best = int(np.argmin(np.nan_to_num(test, nan=np.inf)))
    weights = ""
    if training.options.save_weights:
        weights = f", {results.get('weights_file', 'no weights: they are not finite')}"
    kinds = Counter(event["kind"] for event in results.get("faults", ()))
    faults = "".join(f"\n  faults {count} {kind}" for kind, count in kinds.items())
    board = f"\n  events {training.board.folder}" if training.board else ""
    left = f"\n  left   {kept}: --resume continues from it" if (kept := checkpoints.kept) else ""
    progress.warn(
        f"{results['label']} stopped: {results['stopped']}\n"
        f"  last   train {train[-1]:.4e}   test {test[-1]:.4e}   "
        f"(epoch {results['epochs'][-1]:.4g}, {results['simulation_time']:.4g} s of training)\n"
        f"  best   train {train[best]:.4e}   test {test[best]:.4e}   "
        f"(epoch {results['epochs'][best]:.4g})\n"
        f"  files  {path}, {path.with_suffix('.txt').name}{weights}"
        f"{board}{faults}{left}"
    )
