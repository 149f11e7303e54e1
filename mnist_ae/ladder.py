"""From the post's network to ten digits, one idea a rung: for notebook 04; `make ladder` trains all but the top."""

from dataclasses import dataclass

from mnist_ae.recipes import POST, TEN_DIGITS, Network, Post, Recipe

EPOCHS = 3  # of every rung that is one network, so that they can be compared
PLAIN = {"epochs": EPOCHS, "heads": 1, "canonical": False, "holes": False}


@dataclass(frozen=True)
class Rung:
    """A recipe, what it changes in the one before, and why that helps or does not."""

    recipe: Recipe
    change: str
    why: str


RUNGS = (
    Rung(
        Post("listing", epochs=EPOCHS, activations=False),
        "the post's listing, read literally: no non-linearity",
        "An affine map of ten numbers can do no more than PCA: it describes images, it does not sort them.",
    ),
    Rung(
        Post(POST.name, epochs=EPOCHS),
        "+ the published model's ReLU, softmax and sigmoid",
        "A softmax code can be one-hot. The loss is content with mixtures, which say more about an image.",
    ),
    Rung(
        Post("reachable", epochs=EPOCHS, reachable=True),
        "+ a target that the output can reach: pixels from 0 to 1",
        "A sigmoid cannot draw -0.4 or 2.8. With errors this small, though, the post's rate hardly moves the weights.",
    ),
    Rung(
        Network("adam", **PLAIN, reconstruction=1, information=0, augmented=False, post=True),
        "+ AdamW, one cycle of the learning rate, averaged weights",
        "The shortest way down: one neuron for all images, and their mean as the drawing. The softmax is stuck there.",
    ),
    Rung(
        Network("convolutions", **PLAIN, reconstruction=1, information=0, augmented=False),
        "+ an encoder with strides and batch normalisation, a small decoder",
        "It could tell the digits apart, were it asked to.",
    ),
    Rung(
        Network("augmented", **PLAIN, reconstruction=1, information=0),
        "+ reads an augmented image, draws the original",
        "Position and slant are now useless to the code: it has to guess them. What is left is nearer to the digit.",
    ),
    Rung(
        Network("information", **PLAIN),
        "mutual information and consistency in place of the drawing",
        "This asks for ten one-hot, equally used codes that no augmentation changes: the question, without labels.",
    ),
    Rung(
        Network("canonical", **PLAIN | {"canonical": True}),
        "+ images without their slant",
        "Less that the network has to learn to overlook.",
    ),
    Rung(
        Network("holes", **PLAIN | {"canonical": True, "holes": True}),
        "+ what the strokes enclose",
        "A 9 with a curled tail is no 3: it has a hole.",
    ),
    Rung(
        Network("heads", epochs=EPOCHS),
        "+ eight heads on one trunk, of which mutual information picks one",
        "A head that merges two digits, by chance, is not picked.",
    ),
    Rung(
        TEN_DIGITS,
        "+ three such networks of two epochs teach a deeper one, and it three autoencoders in turn",
        "Into which digit a rare style falls is a lottery of the first steps. Three tickets are better than one.",
    ),
)
