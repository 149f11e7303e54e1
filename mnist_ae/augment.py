"""Augmentation: affine, random crops, channel dropout, each image with random numbers of its own; and input channels of
an encoder: the canonical form of an image, without slant, and its filled holes.
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


def affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, stretch, slant and move each image: float [N, C, H, W] -> the same shape and range, 0 from outside.

    Drawn uniformly, by a generator on the CPU, so that a seed draws the same on every device: rotation up to 15 degrees
    either way; scale 0.8 to 1.2, in x and y apart; shear up to a quarter of a pixel sideways a pixel of height; shift
    up to 0.15 of half the width.
    """
    n = len(images)
    angle = _uniform(n, generator) * math.radians(15)
    wide, high = (1 + 0.2 * _uniform(n, generator) for _ in range(2))
    slant = 0.25 * _uniform(n, generator)
    right, down = (0.15 * _uniform(n, generator) for _ in range(2))
    x = torch.stack([angle.cos() / wide, slant - angle.sin() / wide, right], dim=1)
    y = torch.stack([angle.sin() / high, angle.cos() / high, down], dim=1)
    return _fetch(images, to_device(torch.stack([x, y], dim=1), images.device))


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(count, generator=generator) - 1


def _fetch(images: Tensor, places: Tensor) -> Tensor:
    """places: [N, 2, 3], each row says where, in the old image, an output pixel's colour is fetched."""
    return F.grid_sample(images, F.affine_grid(places, list(images.shape), align_corners=False), align_corners=False)


def canonical(images: Tensor) -> Tensor:
    """Each image without its slant, in the middle: float [N, 1, H, W] in [0, 1] -> the same.

    Moved so that its centre of intensity is the centre of the image, and sheared sideways so that x and y, weighted by
    intensity, are uncorrelated, by MOST_SLANT pixels a pixel of height at most. (LeCun et al. 1998; the moments are
    those of Teague 1980.) A blank image stays as it is.

    >>> slanted = torch.eye(5)[None, None]
    >>> canonical(slanted)[0, 0].argmax(dim=1)
    tensor([2, 2, 2, 2, 2])
    """
    intensity = images[:, 0] + 1e-12  # a blank image has its centre in the middle
    height, width = intensity.shape[1:]
    y, x = (torch.arange(size, device=intensity.device) - (size - 1) / 2 for size in (height, width))
    mass = intensity.sum((1, 2))
    centre_x, centre_y = (intensity.sum(1) @ x) / mass, (intensity.sum(2) @ y) / mass
    dx, dy = x - centre_x[:, None], y - centre_y[:, None]
    covariance = torch.einsum("nyx,ny,nx->n", intensity, dy, dx) / mass
    variance = torch.einsum("nyx,ny->n", intensity, dy**2) / mass
    slant = (covariance / variance.clamp_min(1)).clamp(-MOST_SLANT, MOST_SLANT)
    one, none = torch.ones_like(mass), torch.zeros_like(mass)
    fetched_x = torch.stack([one, slant * height / width, 2 * centre_x / width], dim=1)  # in halves of its size
    fetched_y = torch.stack([none, one, 2 * centre_y / height], dim=1)
    return _fetch(images, torch.stack([fetched_x, fetched_y], dim=1))


@torch.no_grad()
def holes(images: Tensor) -> Tensor:
    """The filled-hole channel, what the strokes enclose: [N, 1, H, W], uint8 or float in [0, 1] -> the same.

    An image is a landscape, intensity its height, and it is flooded from the border over the lowest passes. How much
    higher than the ground the water stands where it has to climb over strokes is the hole: 0.9 inside of a ring of
    intensity 0.9, 0 in a ring with a gap. (Grey-scale reconstruction by erosion, Vincent 1993.)

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


def band(count: int, generator: torch.Generator) -> Tensor:
    """The mask of a random crop for each of `count` images: bool [N, 1, 28, 28], for half of them a band of rows or of
    columns, else all. The band is 12 to 18 pixels wide and lies in the middle 24, where the strokes of MNIST are.

    >>> shown = band(100, torch.Generator().manual_seed(0))
    >>> int(shown.flatten(1).sum(1).min()) // 28, int(shown.all(3).all(2).sum())
    (12, 60)
    """
    width = torch.randint(12, 19, (count, 1), generator=generator)
    first = 2 + (torch.rand(count, 1, generator=generator) * (25 - width)).floor()
    place = torch.arange(28)
    inside = (place >= first) & (place < first + width)
    rows = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    shown = torch.where(rows, inside[:, None, :, None], inside[:, None, None, :])
    return shown | (torch.rand(count, 1, 1, 1, generator=generator) >= 0.5)


def view(x: Tensor, generator: torch.Generator, *, bands: bool) -> Tensor:
    """An augmented copy of an encoder's input, float [N, C, 28, 28] -> the same: moved by `affine`, with channel
    dropout (after the first, in three of ten images), and with `bands` random crops (a `band` of half of the images).

    >>> view(torch.zeros(2, 2, 28, 28), torch.Generator(), bands=True).shape
    torch.Size([2, 2, 28, 28])
    """
    x = affine(x, generator)
    if bands:
        x = x * to_device(band(len(x), generator), x.device)
    shown = torch.ones(x.shape[:2])
    shown[:, 1:] = (torch.rand(len(x), generator=generator) >= 0.3)[:, None]
    return x * to_device(shown, x.device)[:, :, None, None]
