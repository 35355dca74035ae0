"""The examples in docstrings of what users call: written with names that users have."""

import ast
import builtins
import doctest
import importlib
import inspect

import pytest

FRAMEWORKS = {"torch", "nn", "F", "jax", "jnp", "np", "optax", "nnx", "equinox", "eqx"}
"""Names under which everybody imports a framework."""

PACKAGES = ("maskedlinear_torch", "maskedlinear_jax", "maskedlinear_jax.nnx", "maskedlinear_jax.equinox", "parity")


def documented(package):
    """Yield what a package exports and the methods of its classes, with their names."""
    for name in dir(package):
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_"):
                    yield f"{name}.{attribute}", member


def unknown(text, known):
    """Return the names that an example reads, and neither makes, imports nor may take for known."""
    code = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
    nodes = list(ast.walk(ast.parse(code)))
    made = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {(name.asname or name.name).split(".")[0] for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
             for name in node.names}  # fmt: skip
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - made - set(known) - FRAMEWORKS - set(vars(builtins))


@pytest.mark.parametrize("package", PACKAGES)
def test_examples_use_names_that_users_can_import(package):
    there = importlib.import_module(package)
    seen = 0
    for name, value in documented(there):
        text = inspect.getdoc(value) or ""
        seen += ">>>" in text
        assert not unknown(text, dir(there)), f"{package}.{name}"
    assert seen > 3


def test_a_name_of_another_file_is_found():
    assert unknown(">>> layer = Layer(2, constructors.rows([0]))", {"Layer"}) == {"constructors"}
