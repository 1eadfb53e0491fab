"""The script for the Hub's jobs: what it declares, what it asks of the training, and that it trains."""

import configparser
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "training" / "jobs" / "run_recipe.py"


@pytest.fixture(scope="module")
def job():
    specification = importlib.util.spec_from_file_location("run_recipe", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_it_declares_what_the_packages_need():
    """PEP 723: the block between the marks, each line a comment of TOML."""
    lines = SCRIPT.read_text().splitlines()
    block = lines[lines.index("# /// script") + 1 : lines.index("# ///")]
    declared = tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in block))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = [line for line in setup["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    assert declared["dependencies"] == needed
    assert declared["requires-python"] == setup["options"]["python_requires"]


def test_what_is_launched(job, monkeypatch, tmp_path):
    launched = []
    monkeypatch.setattr(job, "run", lambda command, code, environment: launched.append((command, environment)))
    monkeypatch.setattr(job, "fetch_data", lambda name: f"/fetched/{name}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained" / "seed_1").mkdir(parents=True)
    (tmp_path / "trained" / "seed_1" / "config.json").write_text("{}")
    recipe = "training/recipes/msa_mosei_qwen.yaml"
    job.main(["--recipe", recipe, "--data", "someone/mosei", "--publish", "someone/model", "--num_train_epochs", "1"])
    (train, environment), (publish, _) = launched
    assert [ROOT / "training/run_msa.py", ROOT / recipe] == [Path(one) for one in train[3:5]]
    assert train[5:] == [
        *("--output_dir", str(tmp_path / "trained"), "--num_train_epochs", "1"),
        *("--data_path", "/fetched/someone/mosei"),
    ]
    assert environment["PYTHONPATH"].split(":")[0] == str(ROOT)
    assert publish == ["-m", "training.publish", str(tmp_path / "trained" / "seed_1"), "--repo_id", "someone/model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "training/recipes/none.yaml"], "begins with ecg_ or msa_"),
        (["--recipe", "training/recipes/ecg_none.yaml"], "there is no recipe"),
        (["--recipe", "x", "--code", "."], "no training/run_ecg.py"),
    ],
)
def test_one_line_says_what_is_wrong(arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr


@pytest.mark.slow
def test_it_trains(tmp_path):
    flags = ["--recipe", "training/recipes/ecg_simulated.yaml", "--output", str(tmp_path), "--max_steps", "2"]
    subprocess.run([sys.executable, SCRIPT, *flags], check=True, timeout=900)
    assert (tmp_path / "config.json").is_file() and (tmp_path / "model.safetensors").is_file()
