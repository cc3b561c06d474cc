"""A small convolutional U-Net for periodic fields."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class UNet(nn.Module):
    """Three resolutions, two convolutions at each, skip connections between equal ones.

    ``width`` is that of the finest resolution, doubled at each coarser one.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.down = nn.ModuleList(
            [_block(channels, width), _block(width, 2 * width), _block(2 * width, 4 * width)]
        )
        self.up = nn.ModuleList([_block(6 * width, 2 * width), _block(3 * width, width)])
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, fields: Tensor) -> Tensor:
        """(B, channels, h, w) to the same shape; h and w multiples of four."""
        skips = []
        *finer, coarsest = self.down
        for block in finer:
            fields = block(fields)
            skips.append(fields)
            fields = nn.functional.avg_pool2d(fields, 2)
        fields = coarsest(fields)
        for block in self.up:
            fields = interpolate(fields, scale_factor=2.0)
            fields = block(torch.cat([fields, skips.pop()], 1))
        return self.out(fields)


def _block(channels: int, width: int) -> nn.Sequential:
    options = {"padding": 1, "padding_mode": "circular"}
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, **options),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, **options),
        nn.SiLU(),
    )
