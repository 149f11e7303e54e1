"""Random changes that leave a digit what it is, each image with a draw of its own; and the holes of a digit."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, drawn on the CPU, on `device`. CUDA's queue of work is not waited for.

    >>> to_device(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(count, generator=generator) - 1


def warp(
    images: Tensor,
    generator: torch.Generator,
    *,
    rotation: float = 20,
    scale: float = 0.2,
    shear: float = 0.3,
    shift: float = 0.15,
) -> Tensor:
    """Rotate, stretch, slant and move each image: float [N, C, H, W] -> the same shape and range, 0 from outside.

    Drawn uniformly: rotation up to so many degrees either way; scale up to 1 +- so much, in x and y apart; shear up to
    so many pixels sideways a pixel of height; shift up to so much of half the width. All 0: the image itself.
    generator: on the CPU, so that a seed draws the same on every device.

    >>> images, nothing = torch.rand(2, 1, 28, 28), {"rotation": 0, "scale": 0, "shear": 0, "shift": 0}
    >>> torch.allclose(warp(images, torch.Generator(), **nothing), images, atol=1e-5)
    True
    """
    n = len(images)
    angle = _uniform(n, generator) * math.radians(rotation)
    wide, high = (1 + scale * _uniform(n, generator) for _ in range(2))
    slant = shear * _uniform(n, generator)
    right, down = (shift * _uniform(n, generator) for _ in range(2))
    # Each row says where, in the old image, an output pixel's colour is fetched.
    x = torch.stack([angle.cos() / wide, slant - angle.sin() / wide, right], dim=1)
    y = torch.stack([angle.sin() / high, angle.cos() / high, down], dim=1)
    grid = F.affine_grid(to_device(torch.stack([x, y], dim=1), images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


@torch.no_grad()
def holes(images: Tensor) -> Tensor:
    """What the strokes of each image enclose: [N, 1, H, W], uint8 or float in [0, 1] -> the same.

    An image is a landscape, ink is high, and it is flooded from the border over the lowest passes. How much higher than
    the ground the water stands where it has to climb over ink is the hole: 0.9 inside of a ring drawn with 0.9, 0 in
    a ring with a gap. (Grey-scale reconstruction by erosion, Vincent 1993.)

    >>> ring = F.pad(torch.ones(1, 1, 3, 3), (1, 1, 1, 1))
    >>> ring[0, 0, 2, 2] = 0
    >>> holes(ring)[0, 0, 2]
    tensor([0., 0., 1., 0., 0.])
    """
    ground = images[:, 0].permute(1, 2, 0).contiguous()  # [H, W, N]: a line of all images lies together
    water = torch.full_like(ground, 1 if images.is_floating_point() else 255)
    while True:
        before = water.clone()
        for axis in (0, 1):  # sweep down, up, right and left: each pixel lets in what stands at the one before
            lines = list(zip(ground.unbind(axis), water.unbind(axis), strict=True))
            for sweep in (lines, lines[::-1]):
                level = torch.zeros_like(sweep[0][0])
                for low, line in sweep:
                    level = torch.maximum(low, torch.minimum(line, level))
                    line.copy_(level)
        if torch.equal(water, before):
            return (water - ground).permute(2, 0, 1)[:, None].contiguous()


def window(images: Tensor, generator: torch.Generator, *, low: int = 12, high: int = 18, share: float = 1.0) -> Tensor:
    """Show a band of rows or of columns, black elsewhere: float [N, C, 28, 28] -> the same shape and range.

    The band is `low` to `high` pixels wide and lies in the middle 24, where the ink of MNIST is. share: the chance, 0
    to 1, that an image is cut at all.

    >>> shown = window(torch.ones(1, 1, 28, 28), torch.Generator().manual_seed(0)).bool()[0, 0]
    >>> sorted({int(rows) for rows in (shown.any(0).sum(), shown.any(1).sum())})[-1]  # the other way it is whole
    28
    """
    n = len(images)
    width = torch.randint(low, high + 1, (n, 1), generator=generator)
    first = 2 + (torch.rand(n, 1, generator=generator) * (25 - width)).floor()
    place = torch.arange(28)
    band = (place >= first) & (place < first + width)
    rows = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    shown = torch.where(rows, band[:, None, :, None], band[:, None, None, :])
    shown |= torch.rand(n, 1, 1, 1, generator=generator) >= share
    return images * to_device(shown, images.device)
