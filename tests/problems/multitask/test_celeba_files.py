import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from problems import DataError
from problems.multitask import _celeba_files as files
from tests.problems.multitask.faces import write_faces

SPLITS = [0, 0, 1, 2, 0, 2]
IMAGES = [f"{number:06d}.jpg" for number in range(1, 7)]


@pytest.fixture
def faces(tmp_path):
    """The folder and the labels in it."""
    return tmp_path, write_faces(tmp_path, SPLITS, size=(30, 40))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_forty_names():
    assert len(set(files.TASKS)) == 40
    assert (files.TASKS[0], files.TASKS[20], files.TASKS[39]) == (
        "5_o_Clock_Shadow",
        "Male",
        "Young",
    )


def test_attributes(faces):
    folder, expected = faces
    labels = files.read_attributes(folder)
    assert list(labels) == IMAGES
    assert list(labels.values()) == expected.tolist()


def test_partition(faces):
    assert files.read_partition(faces[0]) == {
        "train": ["000001.jpg", "000002.jpg", "000005.jpg"],
        "validation": ["000003.jpg"],
        "test": ["000004.jpg", "000006.jpg"],
    }


def test_images_in_the_order_asked_for(faces):
    folder, expected = faces
    labels = files.read_attributes(folder)
    chosen = [IMAGES[4], IMAGES[1]]
    split = files.read_split(folder, chosen, labels, 16)
    assert split["images"].shape == (2, 3, 16, 16)
    assert split["images"].dtype == split["labels"].dtype == torch.uint8
    assert split["labels"].tolist() == expected[[4, 1]].tolist()
    for image, name in zip(split["images"], chosen, strict=True):
        with Image.open(folder / files.IMAGES / name) as opened:
            pixels = np.asarray(opened.convert("RGB"), dtype=float)
        # Resized or not, the mean of every channel stays, up to rounding and the filter's edges.
        means = image.double().mean((1, 2)).numpy()
        np.testing.assert_allclose(means, pixels.mean((0, 1)), atol=2)
        top, bottom = image.double().split(8, dim=1)
        difference = pixels[:20].mean() - pixels[20:].mean()
        assert (top.mean() - bottom.mean()).item() == pytest.approx(difference, abs=3)


def test_a_grey_image_has_three_channels(faces):
    folder, _ = faces
    Image.new("L", (20, 20), 100).save(folder / files.IMAGES / IMAGES[0])
    labels = files.read_attributes(folder)
    images = files.read_split(folder, IMAGES[:1], labels, 4)["images"]
    assert (images.int() - 100).abs().max() <= 2


@pytest.mark.parametrize("missing", ["list_attr_celeba.txt", "list_eval_partition.txt", "both"])
def test_missing_files(missing, faces):
    folder, _ = faces
    names = [files.ATTRIBUTES, files.PARTITION] if missing == "both" else [missing]
    for name in names:
        (folder / name).unlink()
    with pytest.raises(DataError) as caught:
        files.require_files(folder)
    text = str(caught.value)
    assert f"has no {' and no '.join(names)};" in text
    assert "img_align_celeba/" in text and text.endswith(files.SOURCE)


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match=r"no list_attr_celeba.txt and .* and no img_align_celeba/"):
        files.require_files(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("6\n", "six\n", "must begin with a count and a line of 40 attribute names"),
        ("Eyeglasses", "", "must begin with a count and a line of 40 attribute names"),
        ("6\n", "7\n", "has 6 images where its first line says 7"),
        ("000002.jpg ", "000002.jpg 1 ", "line 4 must be a name and 40 times -1 or 1, found '0000"),
        (" -1", "  0", "must be a name and 40 times -1 or 1, found"),
    ],
)
def test_malformed_attributes(old, new, message, faces):
    folder, _ = faces
    edit(folder / files.ATTRIBUTES, old, new)
    with pytest.raises(DataError, match=message) as caught:
        files.read_attributes(folder)
    assert str(caught.value).endswith(f"get it again from {files.SOURCE}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "000002.jpg 0",
            "000002.jpg 3",
            "line 2 must be a name and 0, 1 or 2, found '000002.jpg 3",
        ),
        ("000002.jpg 0", "000002.jpg", "line 2 must be a name and 0, 1 or 2"),
    ],
)
def test_malformed_partition(old, new, message, faces):
    folder, _ = faces
    edit(folder / files.PARTITION, old, new)
    with pytest.raises(DataError, match=message):
        files.read_partition(folder)


@pytest.mark.parametrize(("left", "name"), [("0", "test"), ("2", "train")])
def test_empty_splits(left, name, faces):
    folder, _ = faces
    (folder / files.PARTITION).write_text(f"000001.jpg {left}\n")
    with pytest.raises(DataError, match=f"has no image of the {name} split"):
        files.read_partition(folder)


@pytest.mark.parametrize("name", ["empty", "binary"])
def test_files_that_are_no_text(name, faces):
    folder, _ = faces
    (folder / files.ATTRIBUTES).write_bytes({"empty": b"", "binary": b"\xff\xfe\x80"}[name])
    with pytest.raises(DataError, match=r"must begin with|cannot be read: 'utf-8' codec"):
        files.read_attributes(folder)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"no image")])
def test_images_that_cannot_be_read(damage, faces):
    folder, _ = faces
    labels = files.read_attributes(folder)
    damage(folder / files.IMAGES / IMAGES[1])
    with pytest.raises(DataError, match=r"000002\.jpg cannot be read as an image: .*--data"):
        files.read_split(folder, IMAGES, labels, 8)


def test_a_truncated_image(faces):
    folder, _ = faces
    path = folder / files.IMAGES / IMAGES[1]
    path.write_bytes(path.read_bytes()[:-200])
    labels = files.read_attributes(folder)
    with pytest.raises(
        DataError, match=r"000002\.jpg cannot be read as an image: .*(?i:truncated)"
    ):
        files.read_split(folder, IMAGES, labels, 8)


def test_an_image_without_labels(faces):
    folder, _ = faces
    labels = files.read_attributes(folder)
    del labels["000003.jpg"]
    with pytest.raises(DataError, match=r"lists 000003\.jpg, which list_attr_celeba\.txt does not"):
        files.read_split(folder, IMAGES, labels, 8)


def test_without_pillow_the_error_names_what_to_install(faces, monkeypatch):
    folder, _ = faces
    labels = files.read_attributes(folder)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'hig\[experiments\]'"):
        files.read_split(folder, IMAGES, labels, 8)
