"""A page whose code runs says what to install for it: a reader who has one extra sees which others it takes."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
CODE = re.compile(r"```python\n(.*?)```", re.S)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
OURS = {"maskedlinear_core": set(), "maskedlinear_torch": {"torch"}, "maskedlinear_jax": {"jax"}, "parity": set()}
USED = {
    r"\b(?:save_packed|load_packed|packed_bytes|dump_model)\(": {"safetensors"},
    r"\b(?:compare|compare_models|assert_parity)\(": {"torch", "jax"},
    r"maskedlinear_jax\.nnx": {"flax"},
    r"maskedlinear_jax\.equinox": {"equinox"},
    r"optax\.": {"optax"},
}
"""What a line of code needs that it does not import."""
BROUGHT = {"nnx": {"optax"}, "transformers": {"safetensors"}}
"""What comes along with an extra or a package, by its own requirements."""


def needed(code):
    """Return the packages that a page's code needs, by their names in an index."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
            found |= OURS.get(top, {DISTRIBUTIONS.get(top, top)})
    for pattern, packages in USED.items():
        if re.search(pattern, code):
            found |= packages
    return found - {"numpy"}


def installed(text):
    """Return the packages that the page's line installs."""
    line = re.search(r"^pip install (.+)$", text, re.M)
    if line is None:
        return set()
    found = set()
    for word in re.findall(r"'[^']+'|\S+", line.group(1)):
        name, _, extras = word.strip("'").partition("[")
        found |= {name} | BROUGHT.get(name, set())
        for extra in filter(None, extras.rstrip("]").split(",")):
            lines = PROJECT["optional-dependencies"][extra]
            found |= {re.match(r"[\w-]+", one).group() for one in lines} | BROUGHT.get(extra, set())
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if CODE.search(page.read_text("utf-8"))], ids=lambda page: page.stem
)
def test_a_page_says_what_its_code_needs(page):
    text = page.read_text("utf-8")
    assert needed("\n".join(CODE.findall(text))) <= installed(text)


def test_what_is_not_installed_is_found():
    code = "import optax\nfrom maskedlinear_jax import save_packed\nsave_packed('file', {})\n"
    assert needed(code) == {"jax", "optax", "safetensors"}
    assert installed("```sh\npip install 'maskedlinear[jax,storage]'\n```\n") == {"maskedlinear", "jax", "safetensors"}
