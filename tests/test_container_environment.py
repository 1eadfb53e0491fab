"""The Dockerfile without docker: in an environment of its requirements alone (`make test-container` makes one), its
server starts on a published folder with nothing of this repository to import, and answers."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch

from hf_ecgmamba import EcgMambaConfig, EcgMambaFeatureExtractor, EcgMambaForSequenceClassification, save_for_hub

pytestmark = pytest.mark.slow
CONTAINER = Path(__file__).resolve().parents[1] / "model_cards" / "container"
PYTHON = os.environ.get("CONTAINER_PYTHON")
if PYTHON is None:
    pytest.skip(
        "CONTAINER_PYTHON names no environment of the Dockerfile's; make test-container", allow_module_level=True
    )


def test_the_container_starts_and_answers(tmp_path):
    torch.manual_seed(0)
    config = EcgMambaConfig(
        hidden_size=16, num_hidden_layers=1, d_state=4, id2label={0: "NORM", 1: "AFIB"},
        label2id={"NORM": 0, "AFIB": 1}, problem_type="multi_label_classification",
    )  # fmt: skip
    parts = EcgMambaForSequenceClassification(config), EcgMambaFeatureExtractor.from_model_config(config)
    folder = save_for_hub(*parts, tmp_path / "repository")
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(CONTAINER / "server.py", app)  # as its COPY lines do
    dockerfile = (CONTAINER / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)[1])
    variables = dict(pair.split("=", 1) for pair in shlex.split(re.search(r"^ENV (.*)$", dockerfile, re.MULTILINE)[1]))
    variables |= {"MODEL_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    variables |= {name: str(tmp_path / name) for name in ("HF_HOME", "NUMBA_CACHE_DIR")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", *command[:-1], str(port)]
    # nothing of this machine's own environment but where programs are
    with subprocess.Popen(command, cwd=app, env={"PATH": os.environ["PATH"], **variables}) as process:
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    assert urlopen(f"http://127.0.0.1:{port}/health").status == 200
                    break
                except (URLError, ConnectionError):
                    assert process.poll() is None and time.monotonic() < deadline, "the container did not start"
                    time.sleep(0.5)
            body = (folder / "example.csv").read_bytes()
            request = Request(f"http://127.0.0.1:{port}/", body, {"Content-Type": "text/csv"})
            answer = json.load(urlopen(request))
        finally:
            process.terminate()
    stored = json.loads((folder / "example_output.json").read_text())
    came, expected = ({one["label"]: one["score"] for one in some["findings"]} for some in (answer, stored))
    assert came == pytest.approx(expected, abs=1e-4)
