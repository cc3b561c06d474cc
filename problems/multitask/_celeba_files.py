"""CelebA in its own file format."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from problems._problem import DataError

SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
IMAGES, ATTRIBUTES, PARTITION = (
    "img_align_celeba",
    "list_attr_celeba.txt",
    "list_eval_partition.txt",
)
SPLITS = {"train": 0, "validation": 1, "test": 2}
# In the order of the columns of the file.
TASKS = (
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs"),
    *("Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair"),
    *("Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair"),
    *("Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline"),
    *("Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings"),
    *("Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young"),
)


def require_files(folder: Path) -> None:
    """Check that the files are there before any is read; a `DataError` says where to get one."""
    missing = [name for name in (ATTRIBUTES, PARTITION) if not (folder / name).is_file()]
    missing += [f"{IMAGES}/"] if not (folder / IMAGES).is_dir() else []
    if missing:
        raise DataError(f"{folder} has no {' and no '.join(missing)}; {expected()}")


def expected() -> str:
    """The files that there should be and their source, for error texts."""
    return (
        f"give with --data a folder with {IMAGES}/ (the aligned .jpg images), {ATTRIBUTES} and "
        f"{PARTITION}, downloaded and unpacked from {SOURCE}"
    )


def read_attributes(folder: Path) -> dict[str, list[int]]:
    """The labels of all images, 0 or 1 for each attribute; a `DataError` names a bad line.

    The file has a line with the number of images, one with the names of the attributes, and one
    per image with its name and -1 or 1 per attribute.
    """
    path = folder / ATTRIBUTES
    lines = _lines(path)
    count = len(TASKS)
    if len(lines) < 2 or not lines[0].strip().isdecimal() or len(lines[1].split()) != count:
        raise _malformed(path, f"must begin with a count and a line of {count} attribute names")
    labels = {}
    for number, line in enumerate(lines[2:], start=3):
        image, *values = line.split()
        if len(values) != count or not {"-1", "1"}.issuperset(values):
            raise _malformed(path, f"line {number} must be a name and {count} times -1 or 1", line)
        labels[image] = [int(value == "1") for value in values]
    if len(labels) != int(lines[0]):
        raise _malformed(path, f"has {len(labels)} images where its first line says {lines[0]}")
    return labels


def read_partition(folder: Path) -> dict[str, list[str]]:
    """Names of the images of each split, in the order of the file.

    The file has a line per image with its name and 0, 1 or 2, for training, validation and test.

    Returns:
        Names by ``"train"``, ``"validation"`` and ``"test"``.

    Raises:
        DataError: The file is not of this form, or training or test split are empty.
    """
    path = folder / PARTITION
    found = {str(number): [] for number in SPLITS.values()}
    for number, line in enumerate(_lines(path), start=1):
        image, *split = line.split()
        if len(split) != 1 or split[0] not in found:
            raise _malformed(path, f"line {number} must be a name and 0, 1 or 2", line)
        found[split[0]].append(image)
    splits = {name: found[str(number)] for name, number in SPLITS.items()}
    for name in ("train", "test"):
        if not splits[name]:
            raise _malformed(path, f"has no image of the {name} split ({SPLITS[name]})")
    return splits


def read_split(
    folder: Path, images: Sequence[str], labels: dict[str, list[int]], size: int
) -> dict[str, Tensor]:
    """Images and labels of a split, ``size`` pixels wide and high.

    Returns:
        ``images`` (N, 3, size, size) and ``labels`` (N, 40), uint8.

    Raises:
        DataError: An image is missing, cannot be decoded or has no labels.
    """
    unlabelled = next((image for image in images if image not in labels), None)
    if unlabelled:
        raise DataError(
            f"{folder / PARTITION} lists {unlabelled}, which {ATTRIBUTES} does not; {expected()}"
        )
    pixels = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
    for place, image in zip(pixels, _decoded(folder / IMAGES, images, size), strict=True):
        place.copy_(image.permute(2, 0, 1))
    chosen = torch.tensor([labels[image] for image in images], dtype=torch.uint8)
    return {"images": pixels, "labels": chosen}


def _decoded(folder: Path, images: Sequence[str], size: int) -> Iterator[Tensor]:
    """Images (size, size, 3), uint8, decoded in threads: Pillow works outside Python's lock."""
    with ThreadPoolExecutor() as pool:
        # In portions, so that no more of them wait in memory.
        for start in range(0, len(images), 1024):
            portion = images[start : start + 1024]
            yield from pool.map(lambda image: _decode(folder / image, size), portion)


def _decode(path: Path, size: int) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "CelebA needs the package pillow, which is not installed; "
            "get it with: pip install 'hig[experiments]'"
        ) from error
    try:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except OSError as error:  # missing, truncated or no image
        raise DataError(f"{path} cannot be read as an image: {error}; {expected()}") from error
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(size, size, 3)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; {expected()}") from error
    return [line for line in text.splitlines() if line.strip()]


def _malformed(path: Path, what: str, found: str = "") -> DataError:
    ending = f", found {found[:60]!r}" if found else ""
    return DataError(f"{path} {what}{ending}; get it again from {SOURCE}")
