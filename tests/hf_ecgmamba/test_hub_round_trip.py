"""Pushed to a Hub and pulled from it by id, whole, through huggingface_hub's own client against a stub on loopback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_ecgmamba import (
    EcgClassificationPipeline,
    EcgMambaConfig,
    EcgMambaFeatureExtractor,
    EcgMambaForSequenceClassification,
    save_for_hub,
)
from tests.hub_stub import HubStub
from training.fresh_process import run_fresh

ROOT = Path(__file__).resolve().parents[2]


def test_push_then_classify_by_id(tmp_path):
    torch.manual_seed(0)
    config = EcgMambaConfig(
        leads=("I", "II"), hidden_size=16, num_hidden_layers=1, d_state=4, id2label={0: "NORM", 1: "AFIB"},
        label2id={"NORM": 0, "AFIB": 1}, problem_type="multi_label_classification", window_seconds=4.0,
    )  # fmt: skip
    model, extractor = EcgMambaForSequenceClassification(config), EcgMambaFeatureExtractor.from_model_config(config)
    folder = save_for_hub(model, extractor, tmp_path / "folder", dataset="noise", metrics={"macro_auc": 0.5})
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"private")
    signal = np.random.default_rng(0).normal(size=(2, 400)).astype(np.float32) * 0.2
    np.savez(tmp_path / "record.npz", signal=signal, sampling_rate=100, leads=["I", "II"], units="mV")

    with HubStub().serving() as hub:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_stub"}
        pushed = subprocess.run(
            [sys.executable, "-m", "training.publish", str(folder), "--repo_id", "someone/ecg"], cwd=ROOT,
            capture_output=True, text=True, env={**os.environ, **online, "HF_HOME": str(tmp_path / "home")},
        )  # fmt: skip
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.strip().endswith(hub.repositories["model", "someone/ecg"].sha)
        assert set(hub.files) >= {"config.json", "model.safetensors", "README.md", "handler.py"}
        assert not [path for path in hub.files if "checkpoint" in path]
        card = hub.files["README.md"].decode()
        snippets = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))  # as the page shows them
        code = f"""{snippets}
import json
by_task = ecg("record.npz")
assert pipeline(model="someone/ecg", trust_remote_code=True, device="cpu")("record.npz") == by_task
print(json.dumps(by_task))
"""
        pulled = json.loads(run_fresh(code, tmp_path, **online).splitlines()[-1])
    assert (tmp_path / "recording.png").stat().st_size > 10_000

    ecg = EcgClassificationPipeline(model=model, feature_extractor=extractor, device="cpu")
    for came, expected in zip(pulled["findings"], ecg(tmp_path / "record.npz")["findings"], strict=True):
        assert came == {**expected, "score": pytest.approx(expected["score"], abs=1e-5)}
