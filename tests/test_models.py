import torch
from torch import nn

from mnist_ae import models

# Counted by hand from the post's layers: weights + biases.
PARAMETERS = {
    "encoder.0": 1 * 4 * 25 + 4,
    "encoder.2": 4 * 8 * 25 + 8,
    "encoder.5": 3200 * 10 + 10,
    "decoder.0": 10 * 400 + 400,
    "decoder.2": 400 * 4000 + 4000,
    "decoder.5": 10 * 10 * 25 + 10,
    "decoder.6": 10 * 1 * 25 + 1,
}


def test_layers_are_the_posts_one_by_one():
    x, rows = torch.zeros(1, 1, 28, 28), []
    for part, layers in models.PostAutoencoder().named_children():
        for number, layer in enumerate(layers):
            x = layer(x)
            count = sum(weight.numel() for weight in layer.parameters())
            assert count == PARAMETERS.get(f"{part}.{number}", 0)
            rows.append((type(layer).__name__, tuple(x.shape[1:])))
    assert rows == [
        *[("Conv2d", (4, 24, 24)), ("ReLU", (4, 24, 24)), ("Conv2d", (8, 20, 20)), ("ReLU", (8, 20, 20))],
        *[("Flatten", (3200,)), ("Linear", (10,)), ("Softmax", (10,))],
        *[("Linear", (400,)), ("ReLU", (400,)), ("Linear", (4000,)), ("ReLU", (4000,)), ("Unflatten", (10, 20, 20))],
        *[("ConvTranspose2d", (10, 24, 24)), ("ConvTranspose2d", (1, 28, 28)), ("Sigmoid", (1, 28, 28))],
    ]


def test_the_listing_read_literally_has_the_same_parameters_and_is_affine():
    model = models.PostAutoencoder(activations=False)
    assert sum(p.numel() for p in model.parameters()) == sum(PARAMETERS.values()) == 1_644_083
    assert not any(isinstance(layer, nn.ReLU | nn.Softmax | nn.Sigmoid) for layer in model.modules())
    a, b = torch.randn(2, 3, 1, 28, 28)
    torch.testing.assert_close(model(0.3 * a + 0.7 * b), 0.3 * model(a) + 0.7 * model(b), atol=1e-5, rtol=1e-4)


def test_codes_are_probabilities_and_images_stay_between_0_and_1():
    torch.manual_seed(0)
    model = models.PostAutoencoder()
    images = torch.randn(5, 1, 28, 28)
    codes = model.encoder(images)
    assert codes.shape == (5, 10)
    assert (codes > 0).all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(5))
    assert 0 < model(images).min() < model(images).max() < 1


def test_normalise_is_what_torchvision_does():
    from torchvision import transforms

    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    image = torch.arange(784, dtype=torch.int64).remainder(256).to(torch.uint8).view(28, 28)
    ours = models.PostAutoencoder.normalise(image.view(1, 1, 28, 28))
    torch.testing.assert_close(ours[0], theirs(image.numpy()))
    torch.testing.assert_close(models.PostAutoencoder.normalise(image.view(1, 1, 28, 28).double() / 255), ours)


def test_the_fast_way_is_the_same_function_with_the_same_gradients():
    for activations in (True, False):
        torch.manual_seed(1)
        model = models.PostAutoencoder(activations).double()
        for parameter in model.parameters():  # away from the small first values, biases above all
            nn.init.normal_(parameter, std=0.2)
        images = torch.randn(3, 1, 28, 28, dtype=torch.float64)
        slow, fast = model(images), model.fast_forward(images)
        torch.testing.assert_close(fast, slow)
        gradients = [torch.autograd.grad(out.square().sum(), model.parameters()) for out in (slow, fast)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)
