"""The examples in the docstrings are run, each in a folder of its own; and everything public has a docstring."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import mnist_ae

MODULES = [importlib.import_module(f"mnist_ae.{found.name}") for found in pkgutil.iter_modules(mnist_ae.__path__)]
PUBLIC = {
    f"{module.__name__}.{name}": thing
    for module in MODULES
    for name, thing in vars(module).items()
    if (inspect.isfunction(thing) or inspect.isclass(thing))
    if thing.__module__ == module.__name__ and not name.startswith("_")
}
TESTS = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]


def test_everything_public_is_described():
    for name, thing in PUBLIC.items():
        assert not vars(thing).get("__doc__", thing.__doc__).startswith(f"{thing.__name__}("), (
            name  # a dataclass makes one
        )
    assert all(module.__doc__ for module in MODULES)


@pytest.mark.parametrize("test", TESTS, ids=[test.name for test in TESTS])
def test_the_examples_run(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=found.append)
    assert not found, "".join(found)
