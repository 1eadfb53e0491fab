"""The network that answers where none is named, and the folders that are delivered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ecgmamba import EcgMambaForSequenceClassification
from hf_ecgmamba.__main__ import main
from hf_ecgmamba.default_network import FOLDER, NAME, default_network
from hf_ecgmamba.pipeline_ecg_classification import load_pipeline

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
LARGE, SMALL = CARDS / "ecgmamba-ptbxl", CARDS / "ecgmamba-ptbxl-tiny"
# 3041 of PTB-XL, which no network was trained on
FOUND = {"AFIB", "CRBBB"}


@pytest.mark.parametrize("folder", [LARGE, SMALL], ids=lambda folder: folder.name)
def test_a_delivered_network_finds_in_its_example_what_the_cardiologist_wrote(folder):
    result = load_pipeline(str(folder), device="cpu")(folder / "example.csv")
    assert {finding["label"] for finding in result["findings"] if finding["present"]} >= FOUND
    said = json.loads((folder / "example_output.json").read_text())
    assert [f["label"] for f in result["findings"][:3]] == [f["label"] for f in said["findings"][:3]]
    for came, expected in zip(result["findings"], said["findings"], strict=True):
        assert came["score"] == pytest.approx(expected["score"], abs=1e-4)


@pytest.mark.parametrize(
    "folder, megabytes, parameters", [(LARGE, 8.0, 1_500_000), (SMALL, 2.0, 350_000)], ids=["large", "small"]
)
def test_a_delivered_folder_is_small(folder, megabytes, parameters):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 1e6 * megabytes
    assert EcgMambaForSequenceClassification.from_pretrained(folder).num_parameters() <= parameters


def test_the_networks_weights_weigh_little_in_a_wheel():
    assert (SMALL / "model.safetensors").stat().st_size < 800_000


def test_the_command_answers_without_a_model(capsys):
    assert main([str(SMALL / "example.csv")]) == 0
    told = capsys.readouterr().out
    assert "atrial fibrillation" in told and f"answered by {NAME}" in told
    assert main([str(SMALL / "example.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == NAME


ASK = f"""
ecg = pipeline("ecg-classification", device="cpu")
found = [finding["label"] for finding in ecg({str(SMALL / "example.csv")!r})["findings"] if finding["present"]]
assert {FOUND!r} <= set(found), found
"""


def test_a_wheel_answers_without_a_model(run_installed, tmp_path):
    """Nothing of the clone is beside it."""
    inside = 'assert "ptbxl_tiny" in ecg.model.name_or_path, ecg.model.name_or_path'
    run_installed(f"from transformers import pipeline\n{ASK}{inside}", tmp_path)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["ours first", "transformers first"])
def test_the_task_is_known_whatever_is_imported_first(order):
    imports = ("import hf_ecgmamba", "from transformers import pipeline")
    code = "\n".join([*(imports[which] for which in order), ASK])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CARDS.parent)


def test_a_copy_without_the_network_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("hf_ecgmamba.default_network.FOLDER", tmp_path / NAME)
    with pytest.raises(FileNotFoundError, match="no model is named"):
        default_network()
    assert main([str(SMALL / "example.csv")]) == 2
    assert "no model is named" in capsys.readouterr().err
    assert FOLDER.is_dir()
