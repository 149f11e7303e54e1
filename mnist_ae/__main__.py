"""`python -m mnist_ae check|sweep|ladder`, called by the Makefile."""

import argparse
import sys
import warnings
from dataclasses import replace

from mnist_ae import data, experiment, train
from mnist_ae.ladder import RUNGS

SWEEPS = {experiment.TEN_DIGITS.name: "ten_digits", experiment.POST.name: "seeds"}  # recipe: its table in figures/


def main(arguments: list[str] | None = None) -> None:
    """check prints the data set that a run would use; sweep and ladder fill their tables in figures/ and print them."""
    parser = argparse.ArgumentParser(prog="python -m mnist_ae", description=__doc__)
    parser.add_argument("task", choices=["check", "sweep", "ladder"])
    for name, default in {"dataset": "auto", "epochs": "20", "seed": "0", "device": "auto", "threads": "2"}.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seeds", default="10", help="sweep, ladder: how many, counted from 0")
    parser.add_argument("--recipe", default=experiment.TEN_DIGITS.name, choices=SWEEPS, help="sweep: of what")
    options = parser.parse_args(arguments)
    numbers = {
        name: int(text) if text.isdigit() else text
        for name, text in vars(options).items()
        if name in ("epochs", "seed", "threads", "seeds")
    }
    try:
        seeds = range(train.whole_number("seeds", numbers.pop("seeds"), 1, 1000))
        experiment.check_parameters(device=options.device, **numbers)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            digits = data.load(options.dataset)
        for warning in caught:
            print(f"\n{'*' * 100}\n{warning.message}\n{'*' * 100}\n", file=sys.stderr)
    except (ValueError, data.DataError) as error:
        sys.exit(f"error: {error}")

    post = replace(experiment.POST, epochs=numbers["epochs"])
    if options.task == "check":
        print(digits.name)
        return
    if options.task == "ladder":
        table, recipes = "ladder", [rung.recipe for rung in RUNGS]
    else:
        table, recipes = SWEEPS[options.recipe], [post if options.recipe == post.name else experiment.TEN_DIGITS]
    longest_first = reversed(recipes)
    try:
        rows = experiment.sweep(longest_first, seeds, dataset=digits.name, table=table, device=options.device)
    except (OSError, ModuleNotFoundError) as error:  # no scheduler, no extra `cluster`, a full disk
        sys.exit(f"error: {error}")
    print(rows.to_string(index=False))


if __name__ == "__main__":
    main()
