"""The examples in the docstrings are run, each in a folder of its own; and every public function has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import mnist_ae

MODULES = [importlib.import_module(f"mnist_ae.{found.name}") for found in pkgutil.iter_modules(mnist_ae.__path__)]
MODULES = [module for module in MODULES if module.__name__ != "mnist_ae.__main__"]


def public(module):
    return {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
        if inspect.isfunction(thing) or inspect.isclass(thing)
    }


FUNCTIONS = [
    pytest.param(module, name, id=f"{module.__name__.split('.')[1]}.{name}")
    for module in MODULES
    for name, thing in public(module).items()
    if inspect.isfunction(thing)
]


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_the_examples_run(module, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(getattr(module, name))
    assert text, "no docstring"
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    example = doctest.DocTestParser().get_doctest(text, dict(vars(module)), name, module.__file__, 0)
    assert example.examples, "no example"
    found = []
    doctest.DocTestRunner(optionflags=options).run(example, out=found.append)
    assert not found, "".join(found)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_everything_public_is_described(module):
    assert inspect.getdoc(module)
    for name, thing in public(module).items():
        assert inspect.getdoc(thing), name
        for method, function in vars(thing).items() if inspect.isclass(thing) else ():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert inspect.getdoc(function) or method in ("forward", "model", "holes"), f"{name}.{method}"
