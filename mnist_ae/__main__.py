"""`python -m mnist_ae check|sweep|ladder`, called by the Makefile."""

import argparse
import sys
import warnings
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from dataclasses import replace

from mnist_ae import data, experiment, train
from mnist_ae.ladder import RUNGS

SWEEPS = {experiment.TEN_DIGITS.name: "ten_digits", experiment.POST.name: "seeds"}  # recipe: its table in figures/


def main(arguments: list[str] | None = None) -> None:
    """check prints what papermill needs for these parameters, and the checksum of the data; sweep and ladder fill their
    tables in figures/ and print them.
    """
    parser = argparse.ArgumentParser(prog="python -m mnist_ae", description=__doc__)
    parser.add_argument("task", choices=["check", "sweep", "ladder"])
    for name, default in {"dataset": "auto", "epochs": "20", "seed": "0", "device": "auto", "threads": "2"}.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seeds", default="10", help="sweep, ladder: how many, counted from 0, or 10-19")
    parser.add_argument("--recipe", default=experiment.TEN_DIGITS.name, help="sweep: of what")
    options = parser.parse_args(arguments)
    try:
        if options.recipe not in SWEEPS:
            raise ValueError(f"unknown recipe {options.recipe!r}: choose one of {', '.join(SWEEPS)}")
        first, dash, last = options.seeds.partition("-")
        if dash and first:
            low = train.whole_number("the first seed", number(first), 0, 2**32 - 1)
            seeds = range(low, train.whole_number("the last seed", number(last), low, low + 999) + 1)
        else:
            seeds = range(train.whole_number("seeds", number(options.seeds), 1, 1000))
        numbers = {name: number(vars(options)[name]) for name in ("epochs", "seed", "threads")}
        epochs, seed, threads = experiment.check_parameters(device=options.device, **numbers)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            digits = data.load(options.dataset)
        for warning in caught:
            print(f"\n{'*' * 100}\n{warning.message}\n{'*' * 100}\n", file=sys.stderr)
    except (ValueError, OSError, data.DataError) as error:
        sys.exit(f"error: {error}")

    if options.task == "check":
        raw = f"-r dataset {digits.name} -r device {options.device}"  # text, even where it looks like a number
        print(f"{raw} -p epochs {epochs} -p seed {seed} -p threads {threads}\n{digits.checksum}")
        return
    post = replace(experiment.POST, epochs=epochs)
    if options.task == "ladder":
        table, recipes = "ladder", [rung.recipe for rung in RUNGS[:-1]]  # the top is a sweep's
    else:
        table, recipes = SWEEPS[options.recipe], [post if options.recipe == post.name else experiment.TEN_DIGITS]
    longest_first = reversed(recipes)
    try:
        rows = experiment.sweep(longest_first, seeds, dataset=digits.name, table=table, device=options.device)
    except (OSError, ModuleNotFoundError, BrokenExecutor) as error:  # no scheduler, no extra, a full disk or memory
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished runs are in the table, the others go on from their checkpoints")
    print(rows.to_string(index=False))


def number(text: str) -> int | float | str:
    """A number as people write it, 20 or 2e1, as Python's; what is none as it is."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


if __name__ == "__main__":
    main()
