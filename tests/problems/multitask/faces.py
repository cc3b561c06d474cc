"""A small folder in CelebA's own file format."""

import numpy as np
from PIL import Image

from problems.multitask import _celeba_files

TASKS = 40
SIZE = (178, 218)  # of CelebA's aligned images


def write_faces(folder, splits, size=SIZE):
    """Write images that show their first attributes: a bright left half, a bright top, red.

    Args:
        folder: Where to write.
        splits: 0, 1 or 2 per image.
        size: Width and height of the images.

    Returns:
        Labels (images, 40) of 0 and 1.
    """
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (len(splits), TASKS))
    labels[:, 3] = 0  # a task without positives
    names = [f"{number:06d}.jpg" for number in range(1, len(splits) + 1)]
    (folder / "img_align_celeba").mkdir(parents=True)
    for name, row in zip(names, labels, strict=True):
        pixels = generator.integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
        pixels[:, : size[0] // 2] += 70 * row[0].astype(np.uint8)
        pixels[: size[1] // 2] += 70 * row[1].astype(np.uint8)
        pixels[..., 0] += 70 * row[2].astype(np.uint8)
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    header = " ".join(_celeba_files.TASKS)
    # The columns of the original are aligned, with two blanks before a 1.
    rows = [
        name + "".join(f" {2 * value - 1:2d}" for value in row)
        for name, row in zip(names, labels, strict=True)
    ]
    attributes = "\n".join([str(len(names)), header + " ", *rows]) + "\n"
    (folder / "list_attr_celeba.txt").write_text(attributes)
    partition = "".join(f"{name} {split}\n" for name, split in zip(names, splits, strict=True))
    (folder / "list_eval_partition.txt").write_text(partition)
    return labels
