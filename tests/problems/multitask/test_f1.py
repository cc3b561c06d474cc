import pytest
import torch

from problems.multitask._f1 import F1


def by_hand(predicted, labels):
    """F1 of one task by precision and recall, sample by sample."""
    hits = sum(p and y for p, y in zip(predicted, labels, strict=True))
    if not hits:
        return 0.0
    precision, recall = hits / sum(predicted), hits / sum(labels)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_agrees_with_precision_and_recall(share):
    generator = torch.Generator().manual_seed(0)
    predicted, labels = torch.rand(2, 60, 7, generator=generator) < share
    score = F1(7, torch.device("cpu"))
    for part in (slice(0, 1), slice(1, 40), slice(40, 60)):
        score.add(predicted[part], labels[part])
    columns = zip(predicted.T.tolist(), labels.T.tolist(), strict=True)
    assert score.value().tolist() == pytest.approx([by_hand(*column) for column in columns])


def test_edges():
    nothing, everything = torch.zeros(4, 1, dtype=torch.bool), torch.ones(4, 1, dtype=torch.bool)
    pairs = [
        (nothing, nothing, 0.0),  # 0 / 0
        (everything, nothing, 0.0),
        (nothing, everything, 0.0),
        (everything, everything, 1.0),
    ]
    score = F1(4, torch.device("cpu"))
    score.add(*(torch.cat([pair[i] for pair in pairs], 1) for i in (0, 1)))
    assert score.value().tolist() == [pair[2] for pair in pairs]
    assert score.value().dtype == torch.float64


def test_nothing_counted_yet():
    assert F1(3, torch.device("cpu")).value().tolist() == [0, 0, 0]
