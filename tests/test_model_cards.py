"""What goes beside a published model: the endpoint's handler and the Space work with the folder alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hf_ecgmamba import EcgMambaConfig, EcgMambaFeatureExtractor, EcgMambaForSequenceClassification, save_for_hub
from training.fresh_process import run_fresh

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards" / "ecgmamba"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = EcgMambaConfig(
        leads=("I", "II"), hidden_size=16, num_hidden_layers=1, d_state=4, id2label={0: "NORM", 1: "AFIB"},
        label2id={"NORM": 0, "AFIB": 1}, problem_type="multi_label_classification", window_seconds=4.0,
    )  # fmt: skip
    extractor = EcgMambaFeatureExtractor.from_model_config(config)
    return save_for_hub(EcgMambaForSequenceClassification(config), extractor, tmp_path_factory.mktemp("model"))


def test_handler_answers_requests_and_refuses_paths(folder, tmp_path):
    """As an Inference Endpoint starts it: handler.py of the repository, path of the repository, json in and out."""
    code = f"""
import json, sys
sys.path.insert(0, {str(folder)!r})
from handler import EndpointHandler
handler = EndpointHandler({str(folder)!r})
signal = json.load(open("signal.json"))
recording = {{"array": signal, "sampling_rate": 100, "leads": ["I", "II"], "units": "mV"}}
def refused(data):
    try:
        return handler(data)
    except ValueError as error:
        return str(error)
answers = [
    handler({{"inputs": recording}}),
    handler({{"inputs": signal, "parameters": {{"sampling_rate": 100, "units": "mV", "top_k": 1}}}}),
    handler({{"inputs": [recording, recording]}}),
    refused({{"inputs": "/etc/passwd"}}),
    refused({{"inputs": ["/etc/passwd"]}}),
    refused({{"inputs": [recording, "/etc/passwd"]}}),
    refused({{"inputs": {{"array": "/etc/passwd"}}}}),
    refused({{"inputs": signal}}),
    refused({{"parameters": {{}}}}),
]
print(json.dumps(answers))
"""
    signal = np.random.default_rng(0).normal(size=(2, 400)) * 0.2
    (tmp_path / "signal.json").write_text(json.dumps(signal.tolist()))
    one, top, two, *refused = json.loads(run_fresh(code, tmp_path).splitlines()[-1])
    assert {finding["label"] for finding in one["findings"]} == {"NORM", "AFIB"}
    assert top["findings"] == one["findings"][:1]
    for answer in two:  # of a batch of two
        for found, alone in zip(answer["findings"], one["findings"], strict=True):
            assert found == {**alone, "score": pytest.approx(alone["score"], abs=1e-5)}
    assert all("expected" in answer or "sampling_rate" in answer or "must be" in answer for answer in refused), refused


def test_space_reads_an_uploaded_recording(folder, tmp_path):
    pytest.importorskip("gradio", reason="the Space needs gradio, which is no dependency of the package")
    signal = np.random.default_rng(0).normal(size=(2, 1000)) * 0.2
    np.savetxt(tmp_path / "patient.csv", signal.T, delimiter=",", header="I,II", comments="")
    code = f"""
import sys, os
sys.path.insert(0, {str(CARDS / "space")!r})
import app, gradio
page, findings, notes = app.read(["patient.csv"], 100)
assert "iframe" in page and "NORM" in findings and "AFIB" in findings and "2 leads" in notes, (findings, notes)
page, findings, notes = app.read(["patient.csv"], None)
assert page == "" and "sampling" in findings and "could not be read" in findings, findings
assert "no file" in app.read(None, None)[1] and "one recording" in app.read(["patient.csv", "patient.csv"], 1)[1]
print("ok")
"""
    assert run_fresh(code, tmp_path, MODEL_ID=str(folder), GRADIO_ANALYTICS_ENABLED="False").split()[-1] == "ok"


def test_front_matter_and_requirements():
    front = yaml.safe_load((CARDS / "space" / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio" and (CARDS / "space" / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60  # the Hub's limit
    assert front["python_version"] == "3.12"  # 3.10 if nothing is said
    of_model = (CARDS / "requirements.txt").read_text()
    # a Space is an MCP server, too
    assert (CARDS / "space" / "requirements.txt").read_text() == of_model + "mcp>=1.21,<2\n"
