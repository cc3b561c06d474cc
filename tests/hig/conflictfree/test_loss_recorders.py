"""Values of losses of which a step sees some."""

import numpy as np
import pytest
import torch

from hig.conflictfree import LatestLossRecorder, LossRecorder, MomentumLossRecorder


def test_latest():
    recorder = LatestLossRecorder(3)
    assert recorder.record_loss(1, 5.0) == [0, 5, 0]
    assert recorder.record_loss([2, 0], [7, 8]) == [8, 5, 7]
    assert recorder.record_all_losses([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("betas", [0.9, [0.5, 0.9, 0.0], [0.9]])
def test_momentum(betas):
    """The average of what a loss has been, with weights that fall off by beta."""
    recorder = MomentumLossRecorder(3, betas)
    per_loss = betas * 3 if isinstance(betas, list) and len(betas) == 1 else betas
    history = [[], [], []]
    generator = np.random.default_rng(0)
    for _ in range(20):
        index = int(generator.integers(3))
        history[index].append(float(generator.random()))
        found = recorder.record_loss(index, history[index][-1])
        for i, values in enumerate(history):
            beta = per_loss[i] if isinstance(per_loss, list) else per_loss
            weights = [beta**k for k in range(len(values))][::-1]
            expected = np.average(values, weights=weights) if values else 0.0
            assert found[i] == pytest.approx(expected)


@pytest.mark.parametrize("kind", [LatestLossRecorder, MomentumLossRecorder])
@pytest.mark.parametrize(
    ("indexes", "losses"),
    [(1, 4), (1, 4.0), ([1], 4.0), (1, torch.tensor(4.0)), (np.array([1]), torch.tensor([4.0])),
     (np.int64(1), np.float64(4)), ((1,), (4.0,))],
)  # fmt: skip
def test_ways_to_say_one_loss(kind, indexes, losses):
    assert kind(2).record_loss(indexes, losses) == [0, pytest.approx(4)]


@pytest.mark.parametrize("kind", [LatestLossRecorder, MomentumLossRecorder])
def test_no_graph_is_kept_and_results_do_not_change_later(kind):
    recorder = kind(2)
    loss = torch.ones((), requires_grad=True) * 2
    first = recorder.record_loss(0, loss)
    recorder.record_loss(0, 3 * loss)
    assert first == [2, 0]
    assert not any(getattr(value, "requires_grad", False) for value in recorder.current_losses)


@pytest.mark.parametrize("kind", [LatestLossRecorder, MomentumLossRecorder])
def test_exact_resume(kind, tmp_path):
    recorder = kind(2)
    recorder.record_loss(0, torch.tensor(3.0))
    torch.save(recorder.state_dict(), tmp_path / "state")
    other = kind(2)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for index, loss in ((1, 2.0), (0, 5.0)):
        assert other.record_loss(index, loss) == recorder.record_loss(index, loss)
    with pytest.raises(ValueError, match="state is of 2 losses, the recorder of 3"):
        kind(3).load_state_dict(recorder.state_dict())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: LatestLossRecorder(0), "num_losses must be at least 1, got 0"),
        (lambda: LatestLossRecorder(2).record_loss([0, 1], [1.0]), "got 1 for losses"),
        (lambda: LatestLossRecorder(2).record_loss(2, 1.0), "losses count from 0 to 1, got 2"),
        (lambda: LatestLossRecorder(2).record_all_losses([1.0]), "2 losses, got 1 values"),
        (lambda: MomentumLossRecorder(2, 1.0), r"betas must be in \[0, 1\), got 1.0"),
        (lambda: MomentumLossRecorder(2, [0.1] * 3), r"one per loss \(2\)"),
    ],
)
def test_what_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
    with pytest.raises(NotImplementedError, match="must define record_loss"):
        LossRecorder(2).record_loss(0, 1.0)
