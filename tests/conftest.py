"""What tests of several folders use: the place of the real data, an installed wheel, one seed for each test."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real recordings and data sets; tests that want it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data folder {SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def run_installed(tmp_path_factory):
    """`run_installed(code, folder)` runs code that finds our packages as a wheel brings them, and nothing of the
    clone."""
    clone, installed = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("installed")
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, clone)
    for package in ("hf_ecgmamba", "hf_mse_adapter", "model_cards"):
        shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))

    def run(code, folder):
        done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("import setuptools.build_meta; setuptools.build_meta.build_wheel('.')", clone)
    with ZipFile(next(clone.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    found = f"""
import sys
sys.path.insert(0, {str(installed)!r})
import hf_ecgmamba, hf_mse_adapter
for package in (hf_ecgmamba, hf_mse_adapter):
    assert package.__file__.startswith(sys.path[0]), package.__file__
"""
    return lambda code, folder: run(found + code, folder)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
