"""Random changes that leave a digit what it is, each image with a draw of its own; and what an encoder reads of an
image besides its pixels: its canonical form, without slant, and its holes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_SLANT = 1.0  # 45 degrees; 92 of MNIST's 60,000 training images lean more


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
    rotation: float = 15,
    scale: float = 0.2,
    shear: float = 0.25,
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


def canonical(images: Tensor) -> Tensor:
    """Each image without its slant, in the middle: float [N, 1, H, W] in [0, 1] -> the same.

    Moved so that the centre of its ink is the centre of the image, and sheared sideways so that in the ink x and y are
    uncorrelated, by MOST_SLANT pixels a pixel of height at most. (LeCun et al. 1998; the moments are those of Teague
    1980.) A blank image stays as it is.

    >>> slanted = torch.eye(5)[None, None]
    >>> canonical(slanted)[0, 0].argmax(dim=1)
    tensor([2, 2, 2, 2, 2])
    """
    ink = images[:, 0] + 1e-12  # a blank image has its centre in the middle
    height, width = ink.shape[1:]
    y, x = (torch.arange(size, device=ink.device) - (size - 1) / 2 for size in (height, width))
    mass = ink.sum((1, 2))
    centre_x, centre_y = (ink.sum(1) @ x) / mass, (ink.sum(2) @ y) / mass
    dx, dy = x - centre_x[:, None], y - centre_y[:, None]
    covariance = torch.einsum("nyx,ny,nx->n", ink, dy, dx) / mass
    variance = torch.einsum("nyx,ny->n", ink, dy**2) / mass
    slant = (covariance / variance.clamp_min(1)).clamp(-MOST_SLANT, MOST_SLANT)
    one, none = torch.ones_like(mass), torch.zeros_like(mass)
    # Each row says where, in the old image, an output pixel's colour is fetched, in halves of its size.
    fetched_x = torch.stack([one, slant * height / width, 2 * centre_x / width], dim=1)
    fetched_y = torch.stack([none, one, 2 * centre_y / height], dim=1)
    grid = F.affine_grid(torch.stack([fetched_x, fetched_y], dim=1), list(images.shape), align_corners=False)
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


def hide_holes(x: Tensor, hidden: Tensor) -> Tensor:
    """x: float [N, C, H, W], hidden: bool [N] -> x with nothing but the image (the first channel) where hidden.

    >>> hide_holes(torch.ones(2, 2, 1, 1), torch.tensor([True, False])).flatten(1)
    tensor([[1., 0.],
            [1., 1.]])
    """
    shown = torch.ones(x.shape[:2], device=x.device)
    shown[:, 1:] = ~to_device(hidden, x.device)[:, None]
    return x * shown[:, :, None, None]


def view(x: Tensor, generator: torch.Generator, *, bands: bool) -> Tensor:
    """An augmented copy of what an encoder reads, float [N, C, 28, 28] -> the same: warped, with the holes hidden in
    three of ten images, and with `bands` half of the images cut to a band.

    >>> view(torch.zeros(2, 2, 28, 28), torch.Generator(), bands=True).shape
    torch.Size([2, 2, 28, 28])
    """
    x = warp(x, generator)
    if bands:
        x = window(x, generator, share=0.5)
    return hide_holes(x, torch.rand(len(x), generator=generator) < 0.3)
