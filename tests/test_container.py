"""The web service around a published folder's handler: files as bodies, limits, and 1,000 broken requests."""

import base64
import copy
import importlib.util
import io
import json
import random
import threading
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import psutil
import pyedflib
import pytest
import scipy.io
import torch
import wfdb

from hf_ecgmamba import (
    EcgClassificationPipeline,
    EcgMambaConfig,
    EcgMambaFeatureExtractor,
    EcgMambaForSequenceClassification,
)

pytest.importorskip("fastapi", reason="the container needs fastapi, which is no dependency of the package")
from fastapi.testclient import TestClient

CARDS = Path(__file__).resolve().parents[1] / "model_cards"


def load(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def handler():
    torch.manual_seed(0)
    config = EcgMambaConfig(
        leads=("I", "II"), hidden_size=16, num_hidden_layers=1, d_state=4, id2label={0: "NORM", 1: "AFIB"},
        label2id={"NORM": 0, "AFIB": 1}, problem_type="multi_label_classification", window_seconds=4.0,
    )  # fmt: skip
    parts = EcgMambaForSequenceClassification(config), EcgMambaFeatureExtractor.from_model_config(config)
    # as the endpoint starts it is in test_model_cards.py
    handler = object.__new__(load(CARDS / "ecgmamba" / "handler.py").EndpointHandler)
    handler.pipeline = EcgClassificationPipeline(model=parts[0], feature_extractor=parts[1], device="cpu")
    return handler


@pytest.fixture
def server(handler):
    server = load(CARDS / "container" / "server.py")
    server.load_handler = lambda folder: handler
    return server


@pytest.fixture
def client(server):
    with TestClient(server.app, raise_server_exceptions=False) as client:
        yield client


SIGNAL = np.round(np.random.default_rng(0).normal(size=(2, 600)) * 0.2, 3)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """One recording as a body of every kind: name -> (content type, content)."""
    folder = tmp_path_factory.mktemp("bodies")
    np.save(folder / "npy", SIGNAL)
    np.savez(folder / "npz", signal=SIGNAL, sampling_rate=100, leads=["I", "II"], units="mV")
    np.savetxt(folder / "csv", SIGNAL.T, "%.3f", ",", header="# Sampling Rate (Hz):= 100\nI (mV),II (mV)", comments="")
    scipy.io.savemat(folder / "mat", {"feats": SIGNAL, "curr_sample_rate": 100.0}, appendmat=False)
    with h5py.File(folder / "h5", "w") as file:
        file["ecg"] = SIGNAL
        file["ecg"].attrs.update({"sampling_rate": 100.0, "leads": ["I", "II"], "units": "mV"})
    with pyedflib.EdfWriter(str(folder / "edf.edf"), 2) as file:
        for index, lead in enumerate(("I", "II")):
            file.setSignalHeader(index, {
                "label": lead, "dimension": "mV", "sample_frequency": 100, "physical_min": -2, "physical_max": 2,
                "digital_min": -32768, "digital_max": 32767, "transducer": "", "prefilter": "",
            })  # fmt: skip
        file.writeSamples(list(SIGNAL))
    wfdb.wrsamp("r", 100, ["mV"] * 2, ["I", "II"], SIGNAL.T, fmt=["16"] * 2, adc_gain=[1000] * 2, baseline=[0] * 2,
                write_dir=str(folder))  # fmt: skip
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folder / "r.hea", "r.hea")
        file.write(folder / "r.dat", "r.dat")
    files = {name: (folder / name).read_bytes() for name in ("csv", "mat", "h5")}
    files |= {"npy": (folder / "npy.npy").read_bytes(), "npz": (folder / "npz.npz").read_bytes()}
    files |= {"edf": (folder / "edf.edf").read_bytes(), "zip": archive.getvalue()}
    array = {"array": SIGNAL.tolist(), "sampling_rate": 100, "leads": ["I", "II"], "units": "mV"}
    asked = {"leads": ["I", "II"], "sampling_rate": 100, "units": "mV"}
    requests = {
        "dict": {"inputs": array, "parameters": {"top_k": 2, "thresholds": [0.5, 0.5]}},
        "list": {"inputs": SIGNAL.tolist(), "parameters": asked},
        "several": {"inputs": [array, array]},
        "base64": {"inputs": base64.b64encode(files["edf"]).decode()},
        "file": {"inputs": {"file": base64.b64encode(files["zip"]).decode(), "name": "r.zip"}},
    }
    bodies = {name: ("application/octet-stream", content) for name, content in files.items()}
    return bodies | {name: ("application/json", json.dumps(one).encode()) for name, one in requests.items()}


STATED = {"leads": "I,II", "sampling_rate": "100", "units": "mV"}


def post(client, kind, content, name="", **options):
    parameters = STATED if name in ("npy", "mat") else {}
    parameters = {key: value for key, value in parameters.items() if name != "mat" or key == "leads"}
    return client.post("/", content=content, headers={"Content-Type": kind}, params=parameters, **options)


@pytest.mark.parametrize(
    "name", ["csv", "mat", "h5", "npy", "npz", "edf", "zip", "dict", "list", "several", "base64", "file"]
)
def test_every_kind_of_body_gets_the_same_answer(client, handler, bodies, name):
    expected = handler.pipeline({"array": SIGNAL, "sampling_rate": 100, "leads": ["I", "II"]})["findings"]
    came = post(client, *bodies[name], name)
    assert came.status_code == 200, came.text
    for answer in came.json() if name == "several" else [came.json()]:
        scores = {found["label"]: found["score"] for found in answer["findings"]}
        assert scores == pytest.approx({found["label"]: found["score"] for found in expected}, abs=2e-3)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "a request must be"),
        (b"null", "a request must be"),
        (b'{"inputs": []}', "0 recordings"),
        (b'{"inputs": 5}', "a int that is no recording"),
        (b'{"inputs": "/etc/passwd"}', "not base64"),
        (b'{"inputs": {"array": "/etc/passwd", "sampling_rate": 100}}', "no recording"),
        (b'{"inputs": {"file": "/etc/passwd"}}', "not base64"),
        (b'{"inputs": {"file": 3}}', "not base64"),
        (b'{"inputs": [[0]], "parameters": []}', "parameters is a list"),
        (b'{"inputs": [[0]], "parameters": {"trusted": true}}', "parameters has trusted"),
        (b'{"inputs": [[0]], "parameters": {"batch_size": 1000000}}', "parameters has batch_size"),
        (b'{"inputs": [[0, 1], [0, 1]], "parameters": {"sampling_rate": 5e-324}}', "sampling rate is"),
        (b'{"inputs": [[0, 1], [0, 1]], "parameters": {"sampling_rate": "fast"}}', "sampling_rate is 'fast'"),
        (b'{"inputs": [[0, 1], [0, 1]], "parameters": {"sampling_rate": 100, "leads": 7}}', "leads is 7"),
        (b'{"inputs": [[0, 1], [0, 1]], "parameters": {"sampling_rate": 100, "top_k": "all"}}', "top_k is 'all'"),
        (b'{"inputs": [[0, "a"], [0, 1]], "parameters": {"sampling_rate": 100}}', "expected real numbers"),
    ],
)
def test_bad_requests_get_one_line(client, content, message):
    came = post(client, "application/json", content)
    assert came.status_code == 400 and list(came.json()) == ["error"]
    assert message in came.json()["error"] and "\n" not in came.json()["error"]


def test_no_answer_shows_the_server(client, tmp_path):
    """A stranger's header names a file of the server, and the answer says nothing of it, nor where anything lies."""
    secret = tmp_path / "secret.dat"
    secret.write_bytes(np.arange(4000, dtype="<i2").tobytes())
    for name in (str(secret), f"../{tmp_path.name}/secret.dat"):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("r.hea", f"r 2 100 1000\n{name} 16 1000/mV 16 0 0 0 0 I\n{name} 16 1000/mV 16 0 0 0 0 II\n")
        came = post(client, "application/zip", archive.getvalue())
        assert came.status_code == 400 and "by its name alone" in came.json()["error"]
    for junk in (b"\0\1\2" * 100, b"a,b\n1,2\n", b"\x93NUMPY" + bytes(100)):
        error = post(client, "application/octet-stream", junk).json()["error"]
        assert "/tmp" not in error and "ecg_upload" not in error and "pickle=" not in error


def test_limits(server, client, bodies):
    assert client.get("/health").json() == {"status": "ok"}
    server.MOST_BYTES = 1000
    assert post(client, *bodies["dict"]).status_code == 413
    server.MOST_BYTES = 2**26
    many = {"inputs": [{"array": [[0.0]], "sampling_rate": 100}] * 65}
    assert "65 recordings" in post(client, "application/json", json.dumps(many)).json()["error"]

    started, go_on = threading.Event(), threading.Event()

    def slow(data):
        started.set()
        go_on.wait(20)
        return {"findings": [float("nan")]}

    server.app.state.handler, handler = slow, server.app.state.handler
    server.MOST_SECONDS, server.MOST_WAITING = 0.3, 2
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(post(client, *bodies["dict"]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait(10)
    deadline = time.monotonic() + 10
    while server.app.state.waiting < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    full = post(client, *bodies["dict"])
    assert full.status_code == 503 and full.headers["Retry-After"] == "1"
    for thread in threads:
        thread.join()
    assert [one.status_code for one in answers] == [408, 408]
    go_on.set()
    deadline = time.monotonic() + 10
    while server.app.state.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    server.MOST_SECONDS = 60
    assert post(client, *bodies["dict"]).json() == {"findings": [None]}
    server.app.state.handler = handler
    assert post(client, *bodies["dict"]).status_code == 200


# -- broken requests --------------------------------------------------------------------------------------------------


ODD = (
    None,
    True,
    -1,
    0,
    1e308,
    5e-324,
    2**70,
    "",
    "x",
    "/etc/passwd",
    "../../etc/passwd",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
)


def mutated(kind, content, random):
    if kind == "application/json" and random.random() < 0.6:
        data = json.loads(content)
        for _ in range(random.randint(1, 3)):
            replace_one(data, random)
        return json.dumps(data).encode()
    content = bytearray(content)
    if random.random() < 0.4:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        return bytes(content)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        way, at = random.randrange(4), random.randrange(max(len(content), 1))
        if random.random() < 0.5:
            at = min(at, 600)  # where headers lie
        if way == 0 and content:
            content[min(at, len(content) - 1)] = random.randrange(256)
        elif way == 1:
            del content[at : at + random.randint(1, 64)]
        elif way == 2:
            content[at:at] = random.randbytes(random.randint(1, 64))
        elif random.random() < 0.2:
            del content[at:]
    return bytes(content)


def replace_one(data, random):
    """Somewhere in it, an odd value."""
    while True:
        keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else []
        if not keys:
            return
        key = random.choice(list(keys))
        if isinstance(data[key], dict | list) and random.random() < 0.6:
            data = data[key]
            continue
        data[key] = copy.deepcopy(random.choice(ODD))
        return


def fuzz(client, bodies, count):
    random_ = random.Random(0)
    statuses, slowest, grown = {}, 0.0, {}
    for index in range(count):
        name = random_.choice(sorted(bodies))
        kind, content = bodies[name]
        started = time.perf_counter()
        came = post(client, kind, mutated(kind, content, random_), name)
        slowest = max(slowest, time.perf_counter() - started)
        statuses[came.status_code] = statuses.get(came.status_code, 0) + 1
        assert came.status_code in (200, 400), (index, name, came.status_code, came.text)
        if came.status_code == 400:
            error = came.json()["error"]
            assert error and "\n" not in error and "/tmp" not in error and "root:" not in error, (index, name, error)
        if index in (count // 5, count - 1):
            grown[index] = psutil.Process().memory_info().rss
    assert statuses.get(400, 0) > count / 10 and statuses.get(200, 0) > count / 10, statuses
    first, last = grown.values()
    assert last - first < 100 * 2**20, f"{(last - first) / 2**20:.0f} MB more"
    return slowest


def test_broken_requests(server, client, bodies):
    assert fuzz(client, bodies, 200) < server.MOST_SECONDS


@pytest.mark.slow
def test_a_thousand_broken_requests(server, client, bodies):
    assert fuzz(client, bodies, 1000) < server.MOST_SECONDS
