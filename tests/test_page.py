"""The page that needs no Python: its JavaScript, run by node, computes what PyTorch computes."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mnist_ae import confusion, experiment, explore, page, pretrained, train

LINES = [[(60, 60), (210, 60), (110, 240)], [(140, 30), (150, 250)], [(30, 140), (30, 150)], [(0, 0), (0, 1)]]
ASK = """
const asked = JSON.parse(require("fs").readFileSync(0));
const {images, codes, sheets} = asked;
console.log(JSON.stringify([images.map(activations), codes.map(decode), sheets.map(likeMnist), DATA.digits]));
"""


def sheet(points):
    """Ink on the canvas, drawn as `explore.like_mnist` does."""
    paper = Image.new("L", (280, 280))
    pen = ImageDraw.Draw(paper)
    pen.line(points, fill=255, width=explore.PEN)
    for x, y in points:
        pen.ellipse((x - 12, y - 12, x + 12, y + 12), fill=255)
    return np.asarray(paper)


@pytest.mark.parametrize("name", ["digits", "MNIST"])
def test_the_page_computes_what_pytorch_computes(name, result, folder, request):
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed: nothing here runs JavaScript without a browser")
    images = request.getfixturevalue(name.lower()).test_images[:100]
    experiment.publish(result)
    (script,) = re.findall(r"<script>(.*)</script>", page.write().read_text(), re.S)
    (folder / "page.js").write_text(script + ASK)
    asked = {"images": (images.flatten(1) / 255).tolist(), "codes": torch.eye(10).tolist()}
    asked["sheets"] = [(sheet(points) / 255).ravel().tolist() for points in LINES]
    told = subprocess.run([node, folder / "page.js"], input=json.dumps(asked), capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    activations, drawn, prepared, digits = json.loads(told.stdout)
    codes = train.encode(result.model, images)
    assert codes.max(dim=1).values.mean() > 0.5, "or the comparison would say little"
    torch.testing.assert_close(torch.tensor(activations), codes, rtol=0, atol=1e-4)
    expected = train.decode(result.model, torch.eye(10)).flatten(1)
    torch.testing.assert_close(torch.tensor(drawn), expected, rtol=0, atol=1e-4)
    for points, image in zip(LINES, prepared, strict=True):
        np.testing.assert_allclose(image, explore.like_mnist([points]).ravel() / 255, atol=1.5 / 255)
    assert digits == confusion.one_to_one_mapping(result.metrics["train_matrix"]).tolist()


def test_the_committed_page_is_of_the_committed_weights_and_needs_no_network():
    committed, text = pretrained.FOLDER, page.TEMPLATE.read_text()
    assert "//" not in re.sub(r" // .*|\n// .*", "", text), "no address in it"
    if not all((committed / name).exists() for name in (pretrained.NAME, page.PAGE)):
        pytest.skip(f"figures/{page.PAGE} or its weights are not there: `make refresh` writes them")
    assert page.write().read_bytes() == (committed / page.PAGE).read_bytes(), "run `make figures/try.html`"
