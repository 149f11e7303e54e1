"""The post's autoencoder and ours: 28x28 pixels -> 10 numbers -> 28x28 pixels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_ae import augment, checks

# Mean and standard deviation of MNIST's training pixels in [0, 1], as the post normalises them.
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081


def initialise(kind: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A new model with the initial weights of `seed`; the caller's random numbers are left alone.

    >>> initialise(lambda: torch.rand(1), 0) == initialise(lambda: torch.rand(1), 0)
    tensor([True])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


class PostAutoencoder(nn.Module):
    """The autoencoder of the post (bytepawn.com, 18 March 2021). float32 [N, 1, 28, 28] -> the same shape.

    encoder: normalised images [N, 1, 28, 28] -> code [N, 10]. decoder: code -> images [N, 1, 28, 28].
    activations: True for the network of the published notebook, whose 40.53 % we reproduce; its code is a softmax
        (ten numbers in [0, 1], sum 1) and its output a sigmoid (in (0, 1)). False for the post's listing read
        literally: no non-linearity anywhere, so encoder and decoder are affine maps.
    reachable: True to encode and reconstruct pixels in [0, 1], which a sigmoid can reach, in place of normalised ones.
    """

    def __init__(self, activations: bool = True, reachable: bool = False):
        super().__init__()
        if reachable:
            self.normalise = checks.pixels

        def layers(*modules: nn.Module) -> nn.Sequential:
            bends = (nn.ReLU, nn.Softmax, nn.Sigmoid)
            return nn.Sequential(*[module for module in modules if activations or not isinstance(module, bends)])

        self.encoder = layers(
            nn.Conv2d(1, 4, kernel_size=5),  # (N, 4, 24, 24)
            nn.ReLU(),
            nn.Conv2d(4, 8, kernel_size=5),  # (N, 8, 20, 20)
            nn.ReLU(),
            nn.Flatten(),  # (N, 3200)
            nn.Linear(3200, 10),
            nn.Softmax(dim=1),
        )
        self.encoder.to(memory_format=torch.channels_last)  # up to 3 % faster a step on CPUs
        self.decoder = layers(
            nn.Linear(10, 400),
            nn.ReLU(),
            nn.Linear(400, 4000),
            nn.ReLU(),
            nn.Unflatten(1, (10, 20, 20)),
            nn.ConvTranspose2d(10, 10, kernel_size=5),  # (N, 10, 24, 24)
            nn.ConvTranspose2d(10, 1, kernel_size=5),  # (N, 1, 28, 28)
            nn.Sigmoid(),
        )

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """images: uint8 in 0..255 or floating in [0, 1] -> input and target of the network, in about -0.42..2.82."""
        return (checks.pixels(images) - PIXEL_MEAN) / PIXEL_STD

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))

    def fast_forward(self, images: Tensor) -> Tensor:
        """What `forward` computes, up to rounding, in less time: the two transposed convolutions as one."""
        first = next((i for i, layer in enumerate(self.decoder) if isinstance(layer, nn.ConvTranspose2d)), None)
        if first is None:  # somebody put another decoder in its place
            return self(images)
        maps = self.decoder[:first](self.encoder(images))
        return self.decoder[first + 2 :](_transposed_pair(maps, self.decoder[first], self.decoder[first + 1]))


def _transposed_pair(maps: Tensor, first: nn.ConvTranspose2d, second: nn.ConvTranspose2d) -> Tensor:
    """second(first(maps)) for stride 1 and one output channel: maps [N, C, H, W] -> [N, 1, H + K - 1, W + K - 1].

    Nothing stands between the two, so they are one transposed convolution, with a K x K kernel (K = 9 here). CPUs are
    slow at those and fast at matrix products, so each row of pixels goes through one matrix (a Toeplitz matrix: the
    kernel, shifted), which makes the K rows that it reaches; then overlapping rows are added up.
    """
    (n, c, h, w), k = maps.shape, first.kernel_size[0] + second.kernel_size[0] - 1
    width = w + k - 1
    kernel = F.conv_transpose2d(first.weight, second.weight)  # (C, 1, K, K)
    # What the first bias becomes in the second convolution: (1, 1, H + K - 1, W + K - 1), less at the border.
    grown = first.kernel_size[0] - 1
    spread = torch.einsum("c,cxij->xij", first.bias, second.weight)[None]
    bias = F.conv_transpose2d(maps.new_ones(1, 1, h + grown, w + grown), spread, second.bias)

    # The Toeplitz matrix [c, x, i, x + j] = kernel[c, 0, i, j]: repeated with a period of width + 1 and read in lines
    # of width, the kernel moves one to the right from each line to the next.
    shifted = F.pad(kernel[:, 0], (0, width + 1 - k)).repeat(1, 1, w)[:, :, : w * width].view(c, k, w, width)
    toeplitz = shifted.transpose(1, 2).reshape(c * w, k * width)

    rows = (maps.transpose(1, 2).reshape(n * h, c * w) @ toeplitz).view(n, h, k, width)
    return _OverlapAdd.apply(rows)[:, None] + bias


class _OverlapAdd(torch.autograd.Function):
    """rows [N, H, K, W] -> images [N, H + K - 1, W]: line i of row h is added to line h + i of the image.

    Autograd would do the same, with a copy of the images for each i.
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        n, h, ctx.k, w = rows.shape
        images = rows.new_zeros(n, h + ctx.k - 1, w)
        for i in range(ctx.k):
            images[:, i : i + h] += rows[:, :, i]
        return images

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.unfold(1, ctx.k, 1).transpose(2, 3)


class FirstHead(nn.Module):
    """[N, 10 * heads] -> the softmax of the first ten, [N, 10]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :10].softmax(dim=1)


class TenNeurons(nn.Module):
    """The autoencoder of the label-free recipe: what `normalise` gives, float32 -> images [N, 1, 28, 28] in [0, 1].

    encoder: what `normalise` gives -> code [N, 10], a softmax: convolutions that halve the image, with batch
    normalisation, and two linear layers. decoder: code -> images; it sees ten numbers and nothing else.
    heads: codes that are learned side by side, of which the first is the code. deeper: True for a fourth convolution.
    Input channels: the image, with canonical without its slant; with holes a second one, what its strokes enclose.
    """

    def __init__(self, heads: int = 1, deeper: bool = False, canonical: bool = True, holes: bool = True):
        super().__init__()
        self.canonical, self.holes = canonical, holes

        def block(seen: int, made: int, size: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(seen, made, size, stride, padding=size // 2, bias=False)
            return [convolution, nn.BatchNorm2d(made), nn.ReLU()]

        self.encoder = nn.Sequential(
            *block(2 if holes else 1, 16, 5, 2),
            *block(16, 32, 5, 2),
            *(block(32, 64, 3, 1) + block(64, 64, 5, 2) if deeper else block(32, 64, 5, 2)),  # (N, 64, 4, 4)
            nn.Flatten(),
            nn.Linear(1024, 128 * heads),
            nn.ReLU(),
            nn.Unflatten(1, (128 * heads, 1)),
            nn.Conv1d(128 * heads, 10 * heads, kernel_size=1, groups=heads),  # a linear layer for each head
            nn.Flatten(),
            FirstHead(),
        )
        self.decoder = nn.Sequential(
            nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28))
        )
        self.to(memory_format=torch.channels_last)  # a tenth to a third faster on CPUs

    def normalise(self, images: Tensor) -> Tensor:
        """images: [N, 1, 28, 28], uint8 in 0..255 or floating in [0, 1] -> the encoder's input, in [0, 1]:
        [N, 1, 28, 28], with holes [N, 2, 28, 28].
        """
        x = checks.pixels(images)
        x = augment.canonical(x) if self.canonical else x
        return torch.cat([x, augment.holes(x)], dim=1) if self.holes else x

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


def log_codes(model: nn.Module, x: Tensor) -> Tensor:
    """The logarithm of the codes of the encoder's input, float [N, C, 28, 28] in [0, 1]: [heads, N, 10], exact where a
    code rounds to 0.

    >>> model, x = TenNeurons(), torch.rand(2, 2, 28, 28)
    >>> torch.allclose(log_codes(model, x)[0].exp(), model.encoder(x))
    True
    """
    return model.encoder[:-1](x).unflatten(1, (-1, 10)).log_softmax(2).transpose(0, 1)
