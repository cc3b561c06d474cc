"""Progress of a run on stderr, by tqdm."""

import sys
from typing import Self, TextIO

from tqdm import tqdm

from experiments._run.options import Options

# Seconds between two updates: on a terminal, and in a log file, which keeps all of them.
ON_TERMINAL, IN_LOG = 0.1, 30.0


class Progress:
    """Progress bar with losses, rate and time left; other texts appear above it."""

    def __init__(self, label: str, options: Options, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._quiet, self._timed = options.quiet, options.time_budget is not None
        self._steps, self._losses = 0, ""
        numbers = "{n:.0f}/{total:.0f} s" if self._timed else "epoch {n:.2f}/{total}"
        self._bar = tqdm(
            total=options.time_budget if self._timed else options.epochs,
            desc=label,
            disable=options.quiet,
            file=self._stream,
            mininterval=ON_TERMINAL if self._stream.isatty() else IN_LOG,
            miniters=0,  # steps of very different length: only time decides
            dynamic_ncols=True,
            bar_format=f"{{desc}} {{percentage:3.0f}}%|{{bar}}| {numbers}, "
            "{remaining} left{postfix}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bar; later texts come below it."""
        self._bar.close()

    def evaluated(self, train_loss: float, test_loss: float) -> None:
        """Update the mean losses."""
        self._losses = f"test {test_loss:.2e}, train {train_loss:.2e}, "

    def stepped(self, epoch: float, seconds: float, loss: float) -> None:
        """Show passes through the data and training time so far, and the loss of the batch."""
        self._steps += 1
        rate = self._steps / seconds if seconds > 0 else 0.0
        text = f"{self._losses}{rate:.3g} steps/s, batch {loss:.2e}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(self._done(epoch, seconds) - self._bar.n)

    def resumed(self, steps: int, epoch: float, seconds: float) -> None:
        """Count what was done before an interruption; the time left follows from later steps."""
        self._steps = steps
        self._bar.n = self._bar.initial = self._bar.last_print_n = self._done(epoch, seconds)

    def warn(self, text: str) -> None:
        """Print a line of its own, also if the run is quiet."""
        tqdm.write(text, file=self._stream)

    def say(self, text: str) -> None:
        """Print a line of its own, unless the run is quiet."""
        if not self._quiet:
            self.warn(text)

    def _done(self, epoch: float, seconds: float) -> float:
        return min(seconds if self._timed else epoch, self._bar.total)
