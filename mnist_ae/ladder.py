"""From the post's network to ten digits, one idea a rung: for notebook 04; `make ladder` trains all but the top."""

from mnist_ae.recipes import POST, TEN_DIGITS, Network, Post, Recipe

EPOCHS = 3  # of every rung that is one network, so that they can be compared
PLAIN = {"epochs": EPOCHS, "heads": 1, "canonical": False, "holes": False}
DRAWING = PLAIN | {"reconstruction": 1, "information": 0}

# What each changes in the one before: the recipe.
RUNGS: dict[str, Recipe] = {
    "the post's listing, read literally: no non-linearity": Post("listing", epochs=EPOCHS, activations=False),
    "+ the published model's ReLU, softmax and sigmoid": Post(POST.name, epochs=EPOCHS),
    "+ a target that the output can reach: pixels from 0 to 1": Post("reachable", epochs=EPOCHS, reachable=True),
    "+ AdamW, one cycle of the learning rate, averaged weights": Network("adam", **DRAWING, augmented=False, post=True),
    "+ an encoder with strides and batch normalisation, a small decoder": Network(
        "convolutions", **DRAWING, augmented=False
    ),
    "+ reads an augmented image, draws the original": Network("augmented", **DRAWING),
    "mutual information and consistency in place of the drawing": Network("information", **PLAIN),
    "+ images without their slant": Network("canonical", **PLAIN | {"canonical": True}),
    "+ what the strokes enclose": Network("holes", **PLAIN | {"canonical": True, "holes": True}),
    "+ eight heads on one trunk, of which mutual information picks one": Network("heads", epochs=EPOCHS),
    "+ three such networks of two epochs teach a deeper one, and it three autoencoders in turn": TEN_DIGITS,
}
