"""Progress of a run on stderr: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable
from shutil import get_terminal_size
from typing import Self, TextIO

from tqdm import tqdm

from experiments._run.options import Options

# In a log file the next line comes after a tenth of the time so far, within these bounds.
SHORTEST_INTERVAL, LONGEST_INTERVAL = 5.0, 60.0

# What the bar and its frame take of a line of a terminal.
BAR_WIDTH = 20


class Progress:
    """Shows rate, losses and time left.

    The budget decides what the bar runs over: passes through the data or seconds of training.

    Args:
        label: Name of the method.
        options: The budget, and whether to be quiet.
        stream: Where to write, by default stderr.
        now: Wall clock in seconds.
    """

    def __init__(
        self,
        label: str,
        options: Options,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self._label = label
        self._timed = options.time_budget is not None
        self._total = options.time_budget if self._timed else options.epochs
        self._quiet = options.quiet
        self._stream = sys.stderr if stream is None else stream
        self._now = now
        self._started = now()
        self._due = self._started + SHORTEST_INTERVAL
        self._steps = 0
        self._first: tuple[float, float] | None = None
        self._losses: list[str] = []
        self._room = math.inf
        self._bar = self._make_bar()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def evaluated(self, train_loss: float, test_loss: float) -> None:
        """Take up new mean losses."""
        self._losses = [f"test {test_loss:.2e}", f"train {train_loss:.2e}"]

    def stepped(self, epoch: float, seconds: float, loss: float) -> None:
        """Show that a step is done.

        Args:
            epoch: Passes through the data so far.
            seconds: Training time so far.
            loss: Loss of the batch.
        """
        self._steps += 1
        if self._quiet:
            return
        done = min(seconds if self._timed else epoch, self._total)
        self._first = self._first or (self._now(), done)
        text = self._text(epoch, seconds, loss, done)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._now() >= self._due:
            print(f"{self._label}: {self._total_text(done)}, {text}", file=self._stream, flush=True)
            interval = (self._now() - self._started) / 10
            self._due = self._now() + min(max(interval, SHORTEST_INTERVAL), LONGEST_INTERVAL)

    def resumed(self, steps: int) -> None:
        """Count these steps, taken before an interruption, as done."""
        self._steps = steps

    def warn(self, text: str) -> None:
        """Print a line of its own, quiet or not, also while there is a bar."""
        tqdm.write(text, file=self._stream)

    def say(self, text: str) -> None:
        """Print a line of its own, unless quiet."""
        if not self._quiet:
            self.warn(text)

    def _make_bar(self) -> tqdm | None:
        if self._quiet or not self._stream.isatty():
            return None
        number = "{n:.0f}/{total:.0f} s" if self._timed else "epoch {n:.2f}/{total}"
        widest = number.format(n=self._total, total=self._total)
        layout = f"{{desc}} {{percentage:3.0f}}%|{{bar}}| {number}{{postfix}}"
        size = get_terminal_size()  # 80 × 24 where the terminal does not know, as in containers
        self._room = size.columns - len(self._label) - len(widest) - BAR_WIDTH
        return tqdm(
            total=self._total,
            desc=self._label,
            bar_format=layout,
            file=self._stream,
            ncols=size.columns,
            nrows=size.lines,
        )

    def _total_text(self, done: float) -> str:
        if self._timed:
            return f"{done:.0f} of {self._total:.0f} s"
        return f"epoch {done:.2f} of {self._total}"

    def _text(self, epoch: float, seconds: float, loss: float, done: float) -> str:
        rate = self._steps / seconds if seconds > 0 else 0.0
        # The most wanted first: on a narrow terminal those at the end find no room.
        parts = [*self._left(done), *self._losses, f"{rate:.3g} steps/s", f"batch {loss:.2e}"]
        if self._timed:
            parts.append(f"epoch {epoch:.2f}")
        while parts and len(", ".join(parts)) > self._room:
            parts.pop()
        return ", ".join(parts)

    def _left(self, done: float) -> list[str]:
        """Time left, with what evaluations and checkpoints take; nothing after a single step."""
        start, before = self._first
        if done <= before:
            return []
        left = (self._total - done) * (self._now() - start) / (done - before)
        return [f"{left:.0f} s left" if left < 100 else f"{tqdm.format_interval(left)} left"]
