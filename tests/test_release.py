"""What is released: the sdist has all that its own tests need (sybil #114, crc32c #53), and nothing else."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILDS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]
TOPS = [name.removeprefix("/") for name in BUILDS["sdist"]["include"]]
ALWAYS = ["pyproject.toml", "README.md", "LICENSE", ".gitignore"]
LEFT = shutil.ignore_patterns("__pycache__", "_build", "*.pyc")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout, in which somebody made an environment that git does not ignore."""
    here = tmp_path_factory.mktemp("checkout")
    for name in [*TOPS, *ALWAYS]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, here / name, ignore=LEFT)
        elif source.exists():  # an sdist that is unpacked has no .gitignore
            shutil.copy(source, here / name)
    for name in ("tests", "docs", "parity", "maskedlinear_core"):
        other = here / "fresh" / "lib" / "site-packages" / "other" / name / "planted.py"
        other.parent.mkdir(parents=True)
        other.write_text("", "utf-8")
    return here


def built(checkout, target, folder):
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


def test_the_sdist_holds_the_checkout_and_nothing_else(checkout, tmp_path):
    with tarfile.open(built(checkout, "sdist", tmp_path / "dist")) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    expected = {str(file.relative_to(checkout)) for file in checkout.rglob("*") if file.is_file()}
    assert found == {name for name in expected if not name.startswith("fresh/")} | {".gitignore"} & found
    assert {"tests/conftest.py", "tests/versions/conftest.py", ".ci/run", "docs/conf.py"} <= found


def test_the_wheel_holds_the_packages_alone(checkout, tmp_path):
    with zipfile.ZipFile(built(checkout, "wheel", tmp_path / "dist")) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(BUILDS["wheel"]["packages"])
    assert all(f"{top}/py.typed" in names for top in tops)
    assert not [name for name in names if "sbom" in name or "planted" in name]


def test_every_top_of_the_sdist_is_named_from_the_top_and_is_there():
    assert all(name.startswith("/") for name in BUILDS["sdist"]["include"])
    assert all((ROOT / name).exists() for name in TOPS)
