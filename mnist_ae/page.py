"""figures/try.html: the committed weights in one page that needs no Python, no network and no server."""

import base64
import json
from pathlib import Path

from mnist_ae import confusion, pretrained, storage

TEMPLATE = Path(__file__).with_name("try.html")
PAGE = "try.html"


def write() -> Path:
    """Write the page where MNIST's figures go; returns its path. Errors as for `pretrained.read`."""
    content, metrics = pretrained.read()
    told = {
        "weights": base64.b64encode(content).decode(),
        "digits": confusion.one_to_one_mapping(metrics["train_matrix"]).tolist(),
        "accuracy": metrics["accuracy"]["one_to_one"],
    }
    before, after = TEMPLATE.read_text(encoding="utf-8").split('"DATA"')
    path = storage.figures_folder("MNIST") / PAGE
    storage.write(path, f"{before}{json.dumps(told)}{after}".encode())
    return path
