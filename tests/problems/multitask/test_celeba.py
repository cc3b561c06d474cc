import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from problems import DataError
from problems.multitask import CelebA
from problems.multitask import celeba as module
from tests.problems.multitask.faces import TASKS, write_faces

SMALL = CelebA(width=2)


def random_data(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 2, (count, TASKS), generator=generator, dtype=torch.uint8)
    return {"images": images, "labels": labels}


def test_the_published_network():
    with torch.device("meta"):
        network = CelebA().network()
    widths = [m.out_channels for m in network if isinstance(m, nn.Conv2d)]
    assert widths == [64, 128, 128, 256, 256, 512, 512]
    normalised = [m.num_features for m in network if isinstance(m, nn.BatchNorm2d)]
    assert normalised == widths
    linear = [(m.in_features, m.out_features) for m in network if isinstance(m, nn.Linear)]
    assert linear == [(512 * 4 * 4, 512), (512, 512), (512, 40)]
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 40)


def test_published_settings():
    settings = CelebA.settings
    assert set(settings) == {"adam", "pcgrad", "imtlg", "config", "mconfig"}
    assert all((s.batch_size, s.lr, s.published) == (256, 3e-4, True) for s in settings.values())
    assert CelebA().epochs == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_task_by_task(dtype):
    torch.manual_seed(0)
    network, batch = SMALL.network().to(dtype).eval(), random_data(5)
    logits = SMALL.predict(network, batch)
    pixels = torch.stack([image.to(dtype) for image in batch["images"]]) * (2 / 255) - 1
    torch.testing.assert_close(logits, network(pixels))
    labels = batch["labels"].to(dtype)
    expected = [binary_cross_entropy_with_logits(logits[:, i], labels[:, i]) for i in range(TASKS)]
    losses = SMALL.losses(network, batch)
    assert len(losses) == len(SMALL.loss_names) == TASKS
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(SMALL.single_loss(network, batch, 7), expected[7])
    torch.testing.assert_close(SMALL.loss(logits, batch), sum(expected))
    torch.testing.assert_close(SMALL.batch_loss(network, batch), sum(expected))
    pairs = SMALL.loss_pairs(network, batch)
    torch.testing.assert_close([loss for loss, _ in pairs], expected)
    torch.testing.assert_close(pairs[0][1], logits)
    assert all(p is pairs[0][1] for _, p in pairs)


def test_evaluation_in_portions(monkeypatch):
    torch.manual_seed(0)
    network, data = SMALL.network().eval(), random_data(7)
    with torch.no_grad():
        whole = SMALL.data_loss(network, data, 100), SMALL.metrics(network, data)
        monkeypatch.setattr(module, "CHUNK", 3)
        parts = SMALL.data_loss(network, data, 100), SMALL.metrics(network, data)
        predicted = SMALL.predict(network, data) > 0
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert torch.equal(parts[1]["f1"], whole[1]["f1"])
    hits = (predicted & (data["labels"] == 1)).sum(0)
    wrong = (predicted != (data["labels"] == 1)).sum(0)
    torch.testing.assert_close(whole[1]["f1"], (hits / (hits + 0.5 * wrong)).double())
    assert whole[1]["mean_f1"] == whole[1]["f1"].mean()


def test_every_epoch_has_all_images_in_another_order():
    train = random_data(10)
    train["images"][:, 0, 0, 0] = torch.arange(10, dtype=torch.uint8)
    train["labels"][:, 0] = torch.arange(10, dtype=torch.uint8)
    batches = SMALL.batches(train, 4, torch.Generator().manual_seed(0))
    epochs = []
    for _ in range(2):
        portions = [next(batches) for _ in range(3)]
        assert [len(batch["labels"]) for batch in portions] == [4, 4, 2]
        for batch in portions:
            assert torch.equal(batch["labels"][:, 0], batch["images"][:, 0, 0, 0])
        epochs.append(torch.cat([batch["labels"][:, 0] for batch in portions]).tolist())
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    again = SMALL.batches(train, 10, torch.Generator().manual_seed(0))
    assert next(again)["labels"][:, 0].tolist() == epochs[0]


def test_data_of_a_folder(tmp_path):
    labels = write_faces(tmp_path, [2, 0, 0, 1, 0], size=(20, 24))
    train, test = CelebA(folder=str(tmp_path)).data(torch.Generator())
    assert train["images"].shape == (3, 3, 64, 64)
    assert train["labels"].tolist() == labels[[1, 2, 4]].tolist()
    assert test["labels"].tolist() == labels[:1].tolist()
    fewer, _ = CelebA(folder=str(tmp_path), train_size=2).data(torch.Generator())
    assert torch.equal(fewer["images"], train["images"][:2])


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_without_data_the_error_names_their_source(folder):
    with pytest.raises(DataError, match=r"--data .*https://mmlab\.ie\.cuhk\.edu\.hk/projects"):
        CelebA(folder=folder).data(torch.Generator())


def test_where_the_data_lie_makes_no_other_problem():
    assert CelebA(folder="here") == CelebA(folder="there") != CelebA(width=32)


@pytest.mark.parametrize("field", ["train_size", "test_size", "width"])
def test_numbers_must_be_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0; the default is"):
        CelebA(**{field: 0})
