"""Records of a run: evaluations and steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from experiments._run.notes import Notes
from hig import MultiStepReport, StepReport

# Spectra are large compared with the rest: they are kept after 1, 4, 16, … steps and at the end.
SPECTRUM_SPACING = 4


@dataclass
class Recorder:
    """Losses, metrics and training times at the evaluations."""

    epochs: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    metrics: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    smallest_cosine: list[float] = field(default_factory=list)

    def evaluation(
        self,
        epoch: float,
        seconds: float,
        train_loss: float,
        test_loss: float,
        metrics: Mapping[str, np.ndarray],
        smallest_cosine: float = math.nan,
    ) -> None:
        """Record mean losses and metrics after ``epoch`` passes and ``seconds`` of training.

        With them the smallest cosine between the last step and the direction of a loss of several;
        NaN if there is none.
        """
        if "loss" in metrics:
            raise ValueError("a metric is named 'loss', as the loss itself is; rename it")
        self.epochs.append(epoch)
        self.seconds.append(seconds)
        self.train_loss.append(train_loss)
        self.test_loss.append(test_loss)
        self.metrics.append(metrics)
        self.smallest_cosine.append(smallest_cosine)

    def results(self) -> dict[str, object]:
        """The published keys, and ``test_<name>`` (E, ...) per metric for E evaluations.

        With several losses also ``smallest_cosine`` (E,), NaN before the first step.

        Arrays are float64; ``time`` is cumulative, in seconds, and ``epoch_time`` the time from
        one evaluation to the next.
        """
        time = np.asarray(self.seconds, dtype=np.float64)
        cosines = np.asarray(self.smallest_cosine, dtype=np.float64)
        return {
            "epochs": np.asarray(self.epochs, dtype=np.float64),
            "train_loss": np.asarray(self.train_loss, dtype=np.float64),
            "test_loss": np.asarray(self.test_loss, dtype=np.float64),
            "time": time,
            "epoch_time": np.diff(time),
            "simulation_time": float(time[-1]),
            **({} if np.isnan(cosines).all() else {"smallest_cosine": cosines}),
            **{
                f"test_{name}": np.stack([m[name] for m in self.metrics])
                for name in self.metrics[0]
            },
        }

    def state_dict(self) -> dict[str, object]:
        """All of it, in tensors and plain Python."""
        metrics = [{n: torch.from_numpy(v) for n, v in found.items()} for found in self.metrics]
        return {**{name: list(getattr(self, name)) for name in _LISTS}, "metrics": metrics}

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Restore a state."""
        for name in _LISTS:
            setattr(self, name, list(state_dict[name]))
        self.metrics = [
            {name: value.numpy() for name, value in found.items()}
            for found in state_dict["metrics"]
        ]


_LISTS = ("epochs", "seconds", "train_loss", "test_loss", "smallest_cosine")


@dataclass
class JacobianRecorder:
    """The report of every step of a Jacobian method.

    Spectra are of whole batches only, so that they have one length: the shorter last batch of
    an epoch has fewer rows.
    """

    seconds: list[float] = field(default_factory=list)
    rank: list[int] = field(default_factory=list)
    step_size: list[float] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    shape: tuple[int, int] | None = None
    rcond: float | None = None
    spectra: dict[float, Tensor] = field(default_factory=dict)
    latest: tuple[float, StepReport | Tensor] | None = None  # a spectrum after an interruption
    due: int = 1

    def step(self, epoch: float, seconds: float, report: StepReport | MultiStepReport) -> list[str]:
        """Record one step; nothing of one for several losses that have a Jacobian each.

        ``epoch`` counts passes before the step, ``seconds`` training time after it.

        Returns:
            The notes of the report that are the first of their kind.
        """
        step_size, parts = report.step_size, getattr(report, "parts", [report])
        if len(parts) > 1:
            return []
        report = parts[0]
        rank = int(report.rank)  # first: its decomposition may fail
        self.seconds.append(seconds)
        self.rank.append(rank)
        self.step_size.append(float(step_size))
        if self.shape is None:
            self.shape = (report.rows, report.columns)
            self.rcond = report.rcond
        if self.shape == (report.rows, report.columns):
            self.latest = (epoch, report)
            if len(self.rank) >= self.due:
                self.spectra[epoch] = report.singular_values
                self.due *= SPECTRUM_SPACING
        return self.notes.add(len(self.rank), report.notes)

    def results(self) -> dict[str, object]:
        """Arrays per step, the shape (rows, columns) of a whole batch, and the spectra."""
        if self.shape is None:
            return {}
        latest = self._latest_spectrum()
        spectra = {**self.spectra, **({latest[0]: latest[1]} if latest else {})}
        values = [s.detach().double().cpu().numpy() for s in spectra.values()]
        return {
            "step_time": np.asarray(self.seconds, dtype=np.float64),
            "rank": np.asarray(self.rank, dtype=np.int64),
            "step_size": np.asarray(self.step_size, dtype=np.float64),
            "rows": int(self.shape[0]),
            "columns": int(self.shape[1]),
            "spectrum": {
                "epochs": np.asarray(list(spectra), dtype=np.float64),
                "singular_values": np.stack(values),
                "rcond": self.rcond,
            },
            "notes": self.notes.texts,
        }

    def state_dict(self) -> dict[str, object]:
        """All of it, in tensors and plain Python; long lists as tensors, which are read faster."""
        return {
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "rank": torch.tensor(self.rank, dtype=torch.int64),
            "step_size": torch.tensor(self.step_size, dtype=torch.float64),
            "notes": self.notes.texts,
            "spectra": dict(self.spectra),
            "latest": self._latest_spectrum(),
            **{name: getattr(self, name) for name in ("shape", "rcond", "due")},
        }

    def _latest_spectrum(self) -> tuple[float, Tensor] | None:
        """Epoch and singular values of the last step on a whole batch, None if they are lost."""
        if self.latest is None or isinstance(self.latest[1], Tensor):
            return self.latest
        try:
            return self.latest[0], self.latest[1].singular_values
        except ValueError:  # of a damped step, whose matrix went with a step on a shorter batch
            return None

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Restore a state."""
        for name in ("seconds", "rank", "step_size"):
            setattr(self, name, state_dict[name].tolist())
        self.notes.add(0, state_dict["notes"])
        self.spectra = dict(state_dict["spectra"])
        for name in ("latest", "shape", "rcond", "due"):
            setattr(self, name, state_dict[name])
