"""`python -m mnist_ae check|estimate|sweep|ablations|baselines|peers|publish|page`, called by the Makefile."""

import argparse
import math
import sys
import warnings
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from mnist_ae import ablations, baselines, checks, data, experiment, page, recipes, storage, train
from mnist_ae.sweep import collect, read_table, sweep

TABLES = {"ten-digits": "ten_digits", "post": "seeds"}  # recipe: its table in figures/


def main(arguments: list[str] | None = None) -> None:
    """check prints what papermill needs for these parameters, and the checksum of the data; estimate how long the
    notebooks will take; publish writes the weights of the run with this seed into figures/, page try.html, of them; the
    others fill their tables in figures/ and print them.
    """
    parser = argparse.ArgumentParser(prog="python -m mnist_ae", description=__doc__)
    tasks = "check estimate sweep ablations baselines peers publish page"
    parser.add_argument("task", choices=tasks.split())
    defaults = {"dataset": "auto", "epochs": "20", "seed": "0", "device": "auto", "threads": "2"}
    for name, default in (defaults | {"seeds": "10", "recipe": "ten-digits"}).items():
        parser.add_argument(f"--{name}", default=default)
    options = parser.parse_args(arguments)
    try:
        if options.task == "page":
            print(page.write())
            return
        digits, seeds = parse(options)
        if say := {"publish": publish, "estimate": estimate}.get(options.task):
            print(say(digits, options))
            return
    except (ValueError, OSError, data.DataError, storage.CheckpointError) as error:
        sys.exit(f"error: {error}")
    if options.task == "check":
        raw = f"-r dataset {digits.name} -r device {options.device}"  # text, even where it looks like a number
        numbers = " ".join(f"-p {name} {getattr(options, name)}" for name in ("epochs", "seed", "threads"))
        print(f"{raw} {numbers}\n{digits.checksum}")
        return
    run = partial(sweep, dataset=digits.name, device=options.device)
    try:
        if options.task == "sweep":
            post = replace(recipes.POST, epochs=options.epochs)
            rows = run([{"post": post}.get(options.recipe, recipes.TEN_DIGITS)], seeds, table=TABLES[options.recipe])
        elif options.task == "ablations":
            run(ablations.learning_rates(), [1000], table="learning_rates")
            steps = ablations.RECONSTRUCTION + ablations.INFORMATION
            run(steps, seeds, table="ablations", score=baselines.of_codes)
            rows = run(ablations.LONGER, [0], table="ablations", score=baselines.of_codes)
        else:
            if options.task == "baselines":
                baselines.umap()  # not after hours: it may not be installed
            methods = {"baselines": baselines.METHODS[::-1], "peers": baselines.PEERS}[options.task]  # longest first
            calls = [partial(baselines.row, method, seed, digits.name) for method in methods for seed in seeds]
            rows = collect(calls, ["method", "seed"], dataset=digits.name, table="baselines")
    except (OSError, ModuleNotFoundError, BrokenExecutor) as error:  # no scheduler, no extra, a full disk or memory
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished runs are in the table, the others go on from their checkpoints")
    print(rows.drop(columns="settings", errors="ignore").to_string(index=False))


def estimate(digits: data.Digits, options: argparse.Namespace) -> str:
    """How long `make run-notebooks` will take here at most, in words, from some steps of the post's network."""
    post, images = replace(recipes.POST, epochs=options.epochs), digits.train_images
    few = images[: 20 * post.batch_size]

    def minutes(device: str) -> float:  # for an image, the unit of what follows
        with train.Trainer(device=device, progress=False) as trainer:
            replace(post, epochs=3).train(trainer, few)  # the first is a rehearsal
        return min(row["seconds"] for row in trainer.history) / len(few) / 60

    cpu, device = minutes("cpu"), checks.device(options.device).type
    each = cpu if device == "cpu" else minutes(device)
    epoch = max(len(images), recipes.BATCH * recipes.LEAST_BATCHES)
    others = 250_000 * cpu + 8 * epoch * each  # as measured: starts and figures; what 03, 04 and 05 always train
    if read_table("baselines", digits.name).empty:
        others += 20 * len(images) * cpu
    if not experiment.committed(recipes.TEN_DIGITS, options.seed, digits):
        others += 1.2 * recipes.TEN_DIGITS.epochs * epoch * each
    training = post.epochs * len(images) * each
    whole, training = math.ceil(training + others), math.ceil(training)
    return f"The notebooks take about {whole} min, {training} of them to train the post's network"


def publish(digits: data.Digits, options: argparse.Namespace) -> Path:
    """The weights of a run with this seed, which is trained where none is finished, into figures/."""
    folder = experiment.run_folder(recipes.TEN_DIGITS, options.seed, digits)
    return experiment.publish(experiment.run(recipes.TEN_DIGITS, options.seed, digits, folder, device=options.device))


def parse(options: argparse.Namespace) -> tuple[data.Digits, range]:
    """The data set and the seeds; makes numbers of what is one, in `options`. ValueError names what cannot be."""
    if options.recipe not in TABLES:
        raise ValueError(f"unknown recipe {options.recipe!r}: choose one of {', '.join(TABLES)}")
    first, dash, last = options.seeds.partition("-")
    if dash and first:
        low = checks.whole_number("the first seed", number(first), 0, 2**32 - 1)
        seeds = range(low, checks.whole_number("the last seed", number(last), low, low + 999) + 1)
    else:
        seeds = range(checks.whole_number("seeds", number(options.seeds), 1, 1000))
    numbers = {name: number(getattr(options, name)) for name in ("epochs", "seed", "threads")}
    options.epochs, options.seed, options.threads = checks.parameters(**numbers, device=options.device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        digits = data.load(options.dataset)
    for warning in caught:
        print(f"\n{'*' * 100}\n{warning.message}\n{'*' * 100}\n", file=sys.stderr)
    return digits, seeds


def number(text: str) -> int | float | str:
    """A number as people write it, 20 or 2e1, as Python's; what is none as it is."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


if __name__ == "__main__":
    main()
