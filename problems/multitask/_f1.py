"""F1 score of a binary attribute."""

import torch
from torch import Tensor


class F1:
    r"""F1 per task, counted up over batches.

    :math:`F_1 = 2 TP / (2 TP + FP + FN)` with the numbers of true positives, false positives and
    false negatives. A task that has no positives among labels and predictions, for which this is
    0 / 0, has F1 = 0: nothing was shown to be found.
    """

    def __init__(self, tasks: int, device: torch.device):
        self._counts = torch.zeros(2, tasks, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count a batch of predictions and labels, booleans (B, tasks)."""
        # Predicted and true positives add up to 2 TP + FP + FN.
        both, either = predicted & labels, (predicted.sum(0) + labels.sum(0))
        self._counts += torch.stack([both.sum(0), either])

    def value(self) -> Tensor:
        """F1 (tasks,) of all that was counted, float64."""
        both, either = self._counts.double()
        return 2 * both / either.clamp_min(1)
