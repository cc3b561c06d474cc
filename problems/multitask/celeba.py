"""Forty attributes of a face, recognised in its image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from problems._problem import (
    Batch,
    DataError,
    Settings,
    location,
    parameter,
    require_positive_numbers,
    samples,
    slices,
)
from problems._several_losses import SeveralLosses
from problems.multitask import _celeba_files as files
from problems.multitask._f1 import F1

SIZE = 64  # pixels
STAGES = ((1,), (2, 2), (4, 4), (8, 8))  # of convolutions, in widths; each ends in a pooling
HIDDEN = 8  # likewise
# Images evaluated at a time: whole test data would not fit any memory.
CHUNK = 512

METHODS = ("adam", "pcgrad", "imtlg", "config", "mconfig")


@dataclass(frozen=True)
class CelebA(SeveralLosses):
    """Forty binary attributes of 64×64 images of faces, recognised by one network.

    Seven convolutions of 3×3 with batch normalisation, a pooling by 2 after each width, and two
    fully connected layers are shared; each attribute has a linear head. Its loss is the binary
    cross-entropy, in the mean over the images, and the loss of the problem the sum over the
    attributes.

    Training data are the first images of CelebA's training split, in a random order in every
    epoch; test data those of its test split. The validation split is not used. All of them are
    decoded at the start, which takes a minute or two, and kept as bytes: 2.3 GB. With published
    width the training wants a GPU.

    Images and attributes: Liu, Luo, Wang, Tang, *Deep Learning Face Attributes in the Wild*,
    ICCV 2015. Network and settings: Liu, Chu, Thuerey, *ConFIG: Towards Conflict-free Training of
    Physics Informed Neural Networks*, ICLR 2025; where the poolings are is our own choice.

    Attributes:
        folder: Folder of CelebA's files.
        train_size: Number of training images; all of the split are fewer in other folders.
        test_size: Number of test images, likewise.
        width: Channels of the first convolution; all other widths are multiples of it.
    """

    folder: str = location("data", "folder with CelebA's files, unpacked")
    train_size: int = parameter(162770, "training images, at most those there are")
    test_size: int = parameter(19962, "test images, at most those there are")
    width: int = parameter(64, "channels of the first convolution; others grow with it")

    name: ClassVar[str] = "celeba"
    epochs: ClassVar[int | None] = 15
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        dict.fromkeys(METHODS, Settings(batch_size=256, lr=3e-4, published=True))
    )

    def __post_init__(self):
        require_positive_numbers(self)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the attributes."""
        return files.TASKS

    def network(self) -> nn.Sequential:
        """Freshly initialised network from images (B, 3, 64, 64) to logits (B, 40)."""
        layers: list[nn.Module] = []
        channels = 3
        for stage in STAGES:
            for multiple in stage:
                layers += _convolution(channels, multiple * self.width)
                channels = multiple * self.width
            layers.append(nn.MaxPool2d(2))
        side = SIZE // 2 ** len(STAGES)
        inputs, hidden = channels * side**2, HIDDEN * self.width
        layers += [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU()]
        layers += [nn.Linear(hidden, hidden), nn.ReLU()]
        # The heads are the rows of one matrix.
        return nn.Sequential(*layers, nn.Linear(hidden, len(files.TASKS)))

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Read training and test data.

        Returns:
            Training and test set, each with ``images`` (N, 3, 64, 64) and ``labels`` (N, 40) of 0
            and 1, uint8.

        Raises:
            DataError: No folder is given, or its files are missing or not as they should be.
        """
        if not self.folder:
            raise DataError(f"celeba has no folder to read its data from; {files.expected()}")
        folder = Path(self.folder)
        files.require_files(folder)
        splits = files.read_partition(folder)
        labels = files.read_attributes(folder)
        train = splits["train"][: self.train_size]
        test = splits["test"][: self.test_size]
        return (
            files.read_split(folder, train, labels, SIZE),
            files.read_split(folder, test, labels, SIZE),
        )

    def batches(self, train: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches without end of ``images`` and ``labels``, uint8, the last one shorter.

        They come in a new random order in every epoch, which the state of the generator alone
        decides.
        """
        while True:
            order = torch.randperm(samples(train), generator=generator)
            for chosen in order.to(train["images"].device).split(size):
                yield {key: value[chosen] for key, value in train.items()}

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Logits of all attributes.

        Args:
            network: A network of `network`.
            batch: ``images`` (B, 3, 64, 64), uint8.

        Returns:
            (B, 40); positive where an attribute is found.
        """
        dtype = next(network.parameters()).dtype
        return network(batch["images"].to(dtype) / 127.5 - 1)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Sum over the tasks of the cross-entropy of logits (B, 40), mean over the images."""
        return self._task_losses(prediction, batch).sum()

    def _task_losses(self, prediction: Tensor, batch: Batch) -> Tensor:
        labels = batch["labels"].to(prediction)
        return binary_cross_entropy_with_logits(prediction, labels, reduction="none").mean(0)

    def losses(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """The cross-entropies of all tasks, scalars; the network is evaluated once for all."""
        return list(self._task_losses(self.predict(network, batch), batch))

    def single_loss(self, network: nn.Module, batch: Batch, index: int) -> Tensor:
        """The cross-entropy of one task, a scalar."""
        return self.losses(network, batch)[index]

    def loss_pairs(self, network: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """The cross-entropy of each task with the logits (B, 40) of all."""
        logits = self.predict(network, batch)
        labels = batch["labels"].to(logits)
        columns = zip(logits.unbind(1), labels.unbind(1), strict=True)
        return [(binary_cross_entropy_with_logits(*column), logits) for column in columns]

    def data_loss(self, network: nn.Module, data: Batch, chunk: int) -> float:
        """Mean loss per image, as for any problem, a few images at a time."""
        return super().data_loss(network, data, min(chunk, CHUNK))

    def metrics(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scores of the recognised attributes.

        Args:
            network: A network of `network`.
            batch: ``images`` and ``labels`` of any number of images.

        Returns:
            ``f1`` (40,), F1 per task, and ``mean_f1``, their mean; a task without positives
            among labels and predictions has F1 = 0.
        """
        score = F1(len(files.TASKS), batch["labels"].device)
        for part in slices(batch, CHUNK):
            score.add(self.predict(network, part) > 0, part["labels"] > 0)
        f1 = score.value()
        return {"f1": f1, "mean_f1": f1.mean()}

    def example(self, network: nn.Module, batch: Batch) -> dict[str, list[str]]:
        """``tasks``, the names of the attributes in the order of ``f1``."""
        return {"tasks": list(files.TASKS)}


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    # Batch normalisation takes away what a bias would add.
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
