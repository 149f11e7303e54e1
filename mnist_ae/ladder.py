"""From the post's network to ten digits, one idea a rung: what notebook 04 shows and `make ladder` computes."""

from dataclasses import dataclass

from mnist_ae.experiment import POST, TEN_DIGITS, AnyRecipe, Recipe
from mnist_ae.ten_digits import Recipe as TenDigits
from mnist_ae.ten_digits import Start, Student

EPOCHS = 3  # of every rung that is one network, so that they can be compared


@dataclass(frozen=True)
class Rung:
    """A recipe, what it changes in the one before, and why that helps or does not."""

    recipe: AnyRecipe
    change: str
    why: str


RUNGS = (
    Rung(
        Recipe("listing", epochs=EPOCHS, activations=False),
        "the post's listing, read literally: no non-linearity",
        "An affine map of ten numbers can do no more than PCA: it describes images, it does not sort them.",
    ),
    Rung(
        Recipe(POST.name, epochs=EPOCHS),
        "+ the published model's ReLU, softmax and sigmoid",
        "A softmax code can be one-hot. The loss is content with mixtures, which say more about an image.",
    ),
    Rung(
        Recipe("reachable", epochs=EPOCHS, reachable=True),
        "+ a target that the output can reach: pixels from 0 to 1",
        "A sigmoid cannot draw -0.4 or 2.8. With errors this small, though, the post's rate hardly moves the weights.",
    ),
    Rung(
        Start("adam", epochs=EPOCHS, information=0, warped=False, post=True),
        "+ AdamW, one cycle of the learning rate, averaged weights",
        "The shortest way down: one neuron for all images, and their mean as the drawing. The softmax is stuck there.",
    ),
    Rung(
        Start("convolutions", epochs=EPOCHS, information=0, warped=False),
        "+ an encoder with strides and batch normalisation, a small decoder",
        "It could tell the digits apart, were it asked to.",
    ),
    Rung(
        Start("warped", epochs=EPOCHS, information=0),
        "+ reads a warped image, draws the original",
        "Position and slant are now useless to the code: it has to guess them. What is left is nearer to the digit.",
    ),
    Rung(
        Start("information", epochs=EPOCHS, reconstruction=0),
        "mutual information and consistency in place of the drawing",
        "This asks for ten one-hot, equally used codes that no warp changes: the question itself, without labels.",
    ),
    Rung(
        Start("both", epochs=EPOCHS),
        "+ the drawing again: both terms",
        "Less than a point on average, but the worst of three seeds with it is better than the best without it.",
    ),
    Rung(
        TenDigits("student", starts=4 * (Start(),), students=(Student(windows=0.5),)),
        "+ four short starts, their answers weighed, and a student of the surest that often sees a part",
        "One start knows what another gets wrong; what all get wrong, it learns: no gain over one longer start.",
    ),
    Rung(
        TEN_DIGITS,
        "+ two of the starts and all students see holes, and a second student learns from the first",
        "All plain starts take a 9 with a curled tail for a 3. Those that see what is closed do not.",
    ),
)
