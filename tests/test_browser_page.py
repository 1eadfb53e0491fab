"""The page on which a model runs in the visitor's browser: its build, its reading of files under node, and, in a
headless Chromium, its scores of real records beside those of the pipeline."""

import functools
import json
import shutil
import subprocess
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_ecgmamba import EcgMambaConfig, EcgMambaFeatureExtractor, EcgMambaForSequenceClassification
from hf_ecgmamba.pipeline_ecg_classification import load_pipeline
from hf_ecgmamba.recording_channels import STANDARD_LEADS
from tests.hf_ecgmamba.signals import heart

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra `onnx`)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra `onnx`)")

from training.browser_page import ORT_FILES, ORT_VERSION, PAGE, main  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DELIVERED = ROOT / "model_cards" / "ecgmamba-ptbxl-tiny"
LABELS = ("NORM", "AFIB", "PVC", "1AVB", "SR")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small classifier that says something else of every record."""
    return save_classifier(tmp_path_factory.mktemp("classifier"))


def save_classifier(folder, **changes):
    torch.manual_seed(0)
    given = {"problem_type": "multi_label_classification", "thresholds": [0.2, 0.4, 0.5, 0.6, 0.8], **changes}
    config = EcgMambaConfig(
        hidden_size=32, num_hidden_layers=1, d_state=4, optional_leads=STANDARD_LEADS,
        id2label=dict(enumerate(LABELS)), label2id={label: k for k, label in enumerate(LABELS)}, **given,
    )  # fmt: skip
    model = EcgMambaForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    model.save_pretrained(folder)
    EcgMambaFeatureExtractor.from_model_config(config).save_pretrained(folder)
    return folder


# -- the build ----------------------------------------------------------------------------------------------------


def test_one_command_makes_a_page_that_is_whole(folder, tmp_path):
    page = tmp_path / "page"
    assert main([str(folder), str(page)]) == 0
    facts = json.loads((page / "model.json").read_text())
    assert facts["labels"] == list(LABELS) and facts["thresholds"] == [0.2, 0.4, 0.5, 0.6, 0.8]
    assert facts["words"][1] == ["atrial fibrillation", "rhythm"]
    assert facts["max_gap_seconds"] == 1.0 and facts["reading"]["normalization"] == "mean"
    assert facts["runtime"].endswith(f"onnxruntime-web@{ORT_VERSION}/dist/")
    session = onnxruntime.InferenceSession(page / "model.onnx")
    assert [given.name for given in session.get_inputs()] == ["input_values", "attention_mask", "lead_mask"]
    policy = (page / "index.html").read_text().partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert "default-src 'none'" in policy and f"connect-src 'self' {facts['runtime']}" in policy
    assert (page / "README.md").read_text().startswith("---\n") and "sdk: static" in (page / "README.md").read_text()
    named = {"index.html", "page.css", "page.js", "windows.js", "recording.js", "README.md"}
    assert {file.name for file in page.iterdir()} == named | {"model.json", "model.onnx", "example.csv"}


@pytest.mark.slow  # an export takes ten seconds
def test_with_a_runtime_of_its_own_the_page_names_no_other_place(folder, tmp_path):
    dist, page = tmp_path / "dist", tmp_path / "page"
    dist.mkdir()
    for name in ORT_FILES:
        (dist / name).write_text("a runtime")
    assert main([str(folder), str(page), "--ort", str(dist)]) == 0
    assert json.loads((page / "model.json").read_text())["runtime"] == "ort/"
    assert {file.name for file in (page / "ort").iterdir()} == set(ORT_FILES)
    assert "https:" not in (page / "index.html").read_text() and "THE_" not in (page / "index.html").read_text()
    assert main([str(folder), str(page)]) == 0  # again, and without
    assert not (page / "ort").exists() and "connect-src 'self' https:" in (page / "index.html").read_text()


def test_what_the_page_cannot_run_is_refused_in_one_line(folder, tmp_path, capsys):
    numbers = save_classifier(tmp_path / "numbers", problem_type="regression", thresholds=None)
    filtered = save_classifier(tmp_path / "filtered")
    EcgMambaFeatureExtractor.from_pretrained(filtered, bandpass=(0.5, 40.0)).save_pretrained(filtered)
    for model, arguments, expected in (
        (numbers, [], "problem_type is 'regression'; expected multi_label_classification or"),
        (filtered, [], "bandpass is (0.5, 40.0); the page has no such filter"),
        (folder, ["--ort", str(tmp_path)], f"which holds no {ORT_FILES[0]}"),
    ):
        assert main([str(model), str(tmp_path / "page"), *arguments]) == 2
        said = capsys.readouterr().err.splitlines()[-1]  # behind transformers' bars
        assert said.startswith("browser_page: ") and expected in said
        assert not (tmp_path / "page").exists()


# -- files of all kinds, as visitors bring them -------------------------------------------------------------------


def write_wfdb(folder, name, signal, rate, kind="16", leads=STANDARD_LEADS, gain=1000.0, units="mV"):
    """A WFDB record of `signal` `[leads, time]`; NaN becomes the count for a missing sample. Its two files."""
    wfdb = pytest.importorskip("wfdb")
    count = len(leads)
    wfdb.wrsamp(
        name, fs=rate, units=[units] * count, sig_name=list(leads), p_signal=np.asarray(signal, np.float64).T,
        fmt=[kind] * count, adc_gain=[gain] * count, baseline=[3] * count, write_dir=str(folder),
    )  # fmt: skip
    return [folder / f"{name}.hea", folder / f"{name}.dat"]


def write_csv(folder, name, signal, rate, leads=STANDARD_LEADS, unit="mV", separator=",", time=False):
    """Columns as our example.csv has them; with `;` also decimal commas, with `time` a column of it and no rate."""
    titles = [f"{lead} ({unit})" for lead in leads]
    columns, head = list(signal), f"# Sampling Rate (Hz):= {rate}\n"
    if time:
        titles, columns, head = ["time (s)", *titles], [np.arange(signal.shape[1]) / rate, *columns], ""
    rows = [separator.join(f"{value:.4f}".replace(".", "," if separator == ";" else ".") for value in row)
            for row in zip(*columns, strict=True)]  # fmt: skip
    path = folder / f"{name}.csv"
    path.write_text(head + separator.join(titles) + "\n" + "\n".join(rows) + "\n")
    return [path]


def write_edf(folder, name, signal, rate, unit="uV", leads=STANDARD_LEADS, beside=True):
    """EDF with a slow channel beside the leads, whose names are as recorders write them."""
    pyedflib = pytest.importorskip("pyedflib")
    path, seconds = folder / f"{name}.edf", signal.shape[1] // rate
    scale = 1000 if unit == "uV" else 1
    signal = signal[:, : seconds * rate] * scale
    heads = [
        {"label": f"ECG {lead}", "dimension": unit, "sample_frequency": rate, "physical_min": -9.0 * scale,
         "physical_max": 9.0 * scale, "digital_min": -32768, "digital_max": 32767}
        for lead in leads
    ]  # fmt: skip
    samples = [np.ascontiguousarray(row) for row in signal]
    if beside:
        heads.insert(0, {**heads[0], "label": "SpO2", "dimension": "%", "sample_frequency": 1})
        samples.insert(0, np.full(seconds, 97.0))
    with pyedflib.EdfWriter(str(path), len(heads)) as file:
        file.setSignalHeaders(heads)
        file.writeSamples(samples)
    return [path]


def generated(folder):
    """(name, files) of drawn-up hearts, each with something that a reader can get wrong."""
    whole, gaps, minute = heart(2570, 257), heart(5000, 500), heart(7300, 100)
    gaps[2, 900:1100] = np.nan  # short
    gaps[7, 3000:4000] = np.nan  # too long to fill: V2 is masked
    gaps[0, 1500:2400] = np.nan  # I is computed from II and III
    eight = [STANDARD_LEADS.index(lead) for lead in ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")]
    names = [STANDARD_LEADS[k] for k in eight]
    yield "212", write_wfdb(folder, "of_212", whole, 257, "212", gain=200.0)
    yield "gaps", write_wfdb(folder, "with_gaps", gaps, 500)
    yield (
        "eight leads",
        write_wfdb(folder, "eight", minute[eight], 100, leads=[f"ecg_{lead.lower()}" for lead in names]),
    )
    yield "an odd rate", write_wfdb(folder, "odd_rate", heart(2500, 250), 249.89)
    yield "a short one", write_csv(folder, "short", heart(310, 100), 100)
    yield "microvolts", write_csv(folder, "microvolts", 1000 * heart(3600, 360), 360, unit="µV")
    yield "decimal commas, time", write_csv(folder, "commas", heart(5000, 500), 500, separator=";", time=True)
    yield "EDF", write_edf(folder, "edf", heart(5000, 500), 500)


NODE = shutil.which("node")
READ = """
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { readRecording } from "./recording.js";
import { cutWindows } from "./windows.js";

const { model, recordings } = JSON.parse(readFileSync("asked.json", "utf8"));
const answers = recordings.map(paths => {
  try {
    const files = paths.map(path => ({ name: basename(path), bytes: new Uint8Array(readFileSync(path)) }));
    const { windows, notes } = cutWindows(readRecording(files, { unnamedLeads: model.leads }), model);
    return { notes, windows: windows.map(window => ({ ...window, values: [...window.values] })) };
  } catch (error) {
    return { refused: error.constructor.name + ": " + error.message };
  }
});
console.log(JSON.stringify(answers));
"""


@pytest.fixture(scope="module")
def read_by_node(tmp_path_factory):
    """`read_by_node(files of each recording)`: what the page's modules make of them."""
    if NODE is None:
        pytest.skip("no node to run the page's modules with")
    place = tmp_path_factory.mktemp("node")
    for name in ("recording.js", "windows.js"):
        shutil.copy(PAGE / name, place)
    (place / "package.json").write_text('{"type": "module"}')
    (place / "read.js").write_text(READ)
    names = ("sampling_rate", "window_seconds", "window_overlap", "max_gap_seconds")
    extractor = EcgMambaFeatureExtractor(optional_leads=STANDARD_LEADS)
    model = {"leads": STANDARD_LEADS, "optional_leads": STANDARD_LEADS, "reading": {"normalization": "mean"}}
    model |= {name: getattr(extractor, name) for name in names}

    def read(recordings, **changes):
        asked = {"model": model | changes, "recordings": [[str(path) for path in paths] for paths in recordings]}
        (place / "asked.json").write_text(json.dumps(asked))
        done = subprocess.run([NODE, "read.js"], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


def test_the_page_makes_the_windows_that_python_makes(read_by_node, tmp_path):
    extractor = EcgMambaFeatureExtractor(optional_leads=STANDARD_LEADS)
    recordings = dict(generated(tmp_path))
    answers = read_by_node(recordings.values())
    for (name, files), came in zip(recordings.items(), answers, strict=True):
        assert "refused" not in came, (name, came)
        expected = list(extractor.windows(files[0], on_gap="skip"))
        assert len(came["windows"]) == len(expected) > 0, name
        for one, other in zip(came["windows"], expected, strict=True):
            assert (one["start"], one["end"]) == pytest.approx((other.start, other.end)), name
            assert (
                one["real"] == other.attention_mask.sum() and one["present"] == other.lead_mask.astype(bool).tolist()
            )
            assert one["doubt"] is None and other.doubt is None, name
            values = np.array(one["values"], np.float32).reshape(other.input_values.shape)
            np.testing.assert_allclose(values, other.input_values, rtol=0, atol=2e-5, err_msg=name)


def test_both_sides_and_normalisations_agree_on_doubts(read_by_node, tmp_path):
    swapped, flat, arms = heart(1000), np.zeros((12, 1000)), heart(1000)
    swapped[[4, 5]] = swapped[[5, 4]]
    arms[[0, 1, 2, 3, 4, 5]] = [-arms[0], arms[2], arms[1], arms[4], arms[3], arms[5]]
    files = [write_csv(tmp_path, name, signal, 100) for name, signal in (("a", swapped), ("b", flat), ("c", arms))]
    files.append(write_csv(tmp_path, "d", 40 * heart(1000), 100))
    for normalization in ("per_record", "per_lead", "none"):
        extractor = EcgMambaFeatureExtractor(optional_leads=STANDARD_LEADS, normalization=normalization)
        for paths, came in zip(files, read_by_node(files, reading={"normalization": normalization}), strict=True):
            (expected,), (window,) = extractor.windows(paths[0]), came["windows"]
            values = np.array(window["values"], np.float32).reshape(12, -1)
            np.testing.assert_allclose(values, expected.input_values, rtol=0, atol=5e-5)
            doubt = window["doubt"]
            assert (doubt is None) == (expected.doubt is None)
            if doubt:
                assert doubt["ofAll"] == expected.doubt.of_all
                assert doubt["reason"].split(";")[0] == expected.doubt.reason.split(";")[0]
            assert any("arm electrodes" in note for note in window["notes"]) == any(
                "arm electrodes" in note for note in expected.notes
            )


def test_the_page_refuses_what_python_refuses_in_the_same_words(read_by_node, tmp_path):
    good = write_wfdb(tmp_path, "good", heart(1000), 100)
    header, data = good[0].read_text(), good[1].read_bytes()
    files = []

    def text(name, content):
        (tmp_path / name).write_text(content)
        files.append([tmp_path / name])

    def changed(name, old, new, signals=data):
        (tmp_path / f"{name}.hea").write_text(header.replace("good", name).replace(old, new))
        (tmp_path / f"{name}.dat").write_bytes(signals)
        files.append([tmp_path / f"{name}.hea", tmp_path / f"{name}.dat"])

    row = "0.1,0.2\n0.2,0.4\n0.1,0.1\n" * 100
    text("no_rate.csv", "I (mV),II (mV)\n" + row)
    text("no_lead.csv", "# Sampling Rate (Hz):= 100\nABP (mmHg),resp\n" + row)
    text("unknown.csv", "# Sampling Rate (Hz):= 100\nalpha (mV),beta (mV)\n" + row)
    text("bad_rate.csv", "# Sampling Rate (Hz):= fast\nI (mV),II (mV)\n" + row)
    text("counts.csv", "# Sampling Rate (Hz):= 100\nI,II,V1\n" + "100,200,5\n300,100,9\n" * 200)
    text("high.csv", "# Sampling Rate (Hz):= 100\nI,II,V1\n" + "100.5,200.2,5.5\n300.1,100.7,9\n" * 200)
    text("words.csv", "# Sampling Rate (Hz):= 100\nI (mV),II (mV)\n" + row + "0.1,high\n" + row)
    text("infinite.csv", "# Sampling Rate (Hz):= 100\nI (mV),II (mV)\n" + row + "0.1,inf\n" + row)
    text("brief.csv", "# Sampling Rate (Hz):= 100\nI (mV),II (mV)\n0.1,0.2\n0.2,0.3\n")
    text("empty.txt", "\n")
    text("slow.csv", "# Sampling Rate (Hz):= 1\nI (mV),II (mV)\n" + row)
    changed("units", "/mV", "/mmHg")
    changed("cut", "~", "~", data[:-40])
    changed("lines", "12 100 ", "13 100 ")
    changed("rate", "12 100 ", "12 -5 ")
    files.append([tmp_path / "good.hea"])
    moved = tmp_path / "alone"
    moved.mkdir()
    for suffix in ("hea", "dat"):
        shutil.copy(tmp_path / f"good.{suffix}", moved)
    files += [[moved / "good.dat"]]
    (moved / "good.hea").unlink()
    (moved / "broken.edf").write_bytes(b"0       broken")
    files.append([moved / "broken.edf"])
    extractor = EcgMambaFeatureExtractor(optional_leads=STANDARD_LEADS)
    answers = read_by_node(files)
    (tmp_path / "good.dat").unlink()  # the page was not given it
    for paths, came in zip(files, answers, strict=True):
        with pytest.raises((ValueError, OSError)) as refused:
            list(extractor.windows(paths[0], trusted=False))
        kind, _, line = came["refused"].partition(": ")
        assert kind == "Refusal", came
        expected = str(refused.value)
        shared = min(len(expected.split(marker)[0]) for marker in (";", " (", "give ", "not an EDF"))
        assert line[:shared] == expected[:shared] and "\n" not in line, (line, expected)
    (one,) = read_by_node([write_csv(tmp_path, "two", heart(1000)[:2], 100, ("I", "II"))], optional_leads=[])
    assert one["refused"] == "Refusal: two has the leads I, II; the model also needs V1, V2, V3, V4, V5, V6"


def test_what_only_python_reads_is_refused_by_its_name(read_by_node, tmp_path):
    paths = write_wfdb(tmp_path, "good", heart(1000), 100)
    header = paths[0].read_text()
    for name, old, new, expected in (
        ("skewed", " 16 ", " 16:3 ", "skew"), ("coded", " 16 ", " 80 ", "WFDB's format 80"),
        ("segments", "segments 12", "segments/3 12", "put together from segments"),
    ):  # fmt: skip
        (tmp_path / f"{name}.hea").write_text(header.replace("good", name).replace(old, new))
        (came,) = read_by_node([[tmp_path / f"{name}.hea", paths[1]]])
        assert expected in came["refused"] and "Python package" in came["refused"], came


# -- the page itself, in Chromium ---------------------------------------------------------------------------------


def real_records(shared_data, folder):
    """(name, files) of twenty real records, at rates from 100 to 500 Hz, in all forms that the page reads."""
    import importlib.util

    import wfdb
    from scipy.signal import resample_poly

    tool = importlib.util.spec_from_file_location("ptbxl", shared_data.parent / "tools" / "ptbxl.py")
    ptbxl = importlib.util.module_from_spec(tool)
    tool.loader.exec_module(ptbxl)
    ids, signals = ptbxl.load(9)
    for k in range(6):
        yield write_wfdb(folder, f"ptbxl_{ids[300 * k]}", signals[300 * k].T / 1000, 100)
    for k in (77, 1234):
        yield write_csv(folder, f"ptbxl_{ids[k]}", signals[k].T / 1000, 100)
    yield write_csv(folder, f"ptbxl_{ids[5]}", signals[5].T[[0, 1, 6, 7, 8, 9, 10, 11]], 100, unit="uV", time=True,
                    leads=[STANDARD_LEADS[lead] for lead in (0, 1, 6, 7, 8, 9, 10, 11)], separator=";")  # fmt: skip
    for name in ("A0001", "E00001", "E03823"):
        source = shared_data / "ecg" / "cinc2021" / name
        yield [source.with_suffix(".hea"), source.with_suffix(".mat")]

    def cinc(name):
        signal, facts = wfdb.rdsamp(str(shared_data / "ecg" / "cinc2021" / name))
        assert facts["fs"] == 500
        return signal.T

    yield write_wfdb(folder, "cinc_212", cinc("A0002"), 500, "212", gain=200.0)
    yield write_wfdb(folder, "cinc_360", resample_poly(cinc("A0003"), 18, 25, axis=-1), 360)
    yield write_wfdb(folder, "cinc_257", resample_poly(cinc("A0005"), 257, 500, axis=-1), 257, "212", gain=200.0)
    yield write_csv(folder, "cinc_csv", 1000 * cinc("A0006"), 500, unit="uV")
    yield write_edf(folder, "cinc_edf", cinc("A0007"), 500)
    yield write_edf(folder, "cinc_edf_mv", resample_poly(cinc("A0009"), 1, 2, axis=-1), 250, "mV", beside=False)
    for name in ("100", "208"):
        signal, facts = wfdb.rdsamp(str(shared_data / "ecg" / "mitbih_long" / name), sampto=360 * 95)
        yield write_wfdb(folder, f"mitbih_{name}", signal.T, 360, "212", gain=200.0, leads=facts["sig_name"])


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium to look at the page with")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def ort(tmp_path_factory):
    """onnxruntime-web's folder dist, as npm has it; but the two files that the page needs."""
    if shutil.which("npm") is None:
        pytest.skip("no npm to fetch onnxruntime-web with")
    place = tmp_path_factory.mktemp("npm")
    command = ["npm", "pack", f"onnxruntime-web@{ORT_VERSION}", "--pack-destination", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    if done.returncode != 0:
        pytest.skip(f"npm brings no onnxruntime-web: {done.stderr.strip()[-200:]}")
    with tarfile.open(next(place.glob("*.tgz"))) as archive:
        for name in ORT_FILES:
            archive.extract(f"package/dist/{name}", place, filter="data")
    return place / "package" / "dist"


class Quiet(SimpleHTTPRequestHandler):
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(folder, ort, tmp_path_factory):
    """The address of a served page, and the folder of its model: the delivered one where it is there."""
    model = DELIVERED if (DELIVERED / "config.json").is_file() else folder
    page = tmp_path_factory.mktemp("page")
    assert main([str(model), str(page), "--ort", str(ort)]) == 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", model
    server.shutdown()


def opened(browser, address, width=1280, height=900):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append((request.method, request.url)))
    page.on("console", lambda said: said.type == "error" and page.errors.append(f"{said.text} {said.location}"))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("html[data-ready]", timeout=120_000)
    return page


def read_in(page, files):
    """Gives files to the page; its scores by label, or the line that refuses them."""
    answered = int(page.get_attribute("html", "data-answered") or 0)
    page.set_input_files("#files", files)
    page.wait_for_selector(f"html[data-answered='{answered + 1}']", timeout=120_000)
    if page.locator("#refusal").is_visible():
        return page.inner_text("#refusal")
    return {
        item["label"]: (float(item["score"]), item["present"] == "true")
        for item in page.eval_on_selector_all("[data-label]", "items => items.map(item => ({...item.dataset}))")
    }


@pytest.mark.slow
def test_twenty_real_records_have_the_scores_of_the_pipeline(browser, site, shared_data, tmp_path):
    address, model = site
    pipeline, page = load_pipeline(str(model), device="cpu"), opened(browser, address)
    records, differences, spread = list(real_records(shared_data, tmp_path)), [], []
    assert len(records) == 20
    for files in records:
        expected = pipeline(files[0])
        came = read_in(page, files)
        assert expected["refused"] is None and isinstance(came, dict), (files, expected["refused"], came)
        assert len(came) == len(expected["findings"]), files
        for finding in expected["findings"]:
            score, present = came[finding["label"]]
            differences.append(abs(score - finding["score"]))
            assert differences[-1] < 1e-3, (files, finding, score)
            assert present == finding["present"], (files, finding)
        spread.append(
            [came[finding["label"]][0] for finding in sorted(expected["findings"], key=lambda f: f["label"])]
        )
    assert np.std(spread, axis=0).max() > 0.05  # it is not the same answer for all
    print(f"\n20 records, {len(differences)} scores: the largest difference is {max(differences):.1e}")
    assert {method for method, _ in page.requests} == {"GET"}
    assert [url for _, url in page.requests if not url.startswith((address, "data:"))] == []
    assert page.errors == []
    page.close()


@pytest.mark.slow
def test_a_refusal_is_one_line_and_the_next_recording_is_read(browser, site, tmp_path):
    page = opened(browser, site[0])
    files = write_wfdb(tmp_path, "alone", heart(1000), 100)
    assert "alone.dat, named by its header, is missing" in read_in(page, files[:1])
    assert page.locator("#result").is_hidden()
    (tmp_path / "unsaid.csv").write_text(
        "I (mV),II (mV)\n" + "\n".join(f"{one:.3f},{two:.3f}" for one, two in heart(1000)[:2].T)
    )
    assert "does not state its sampling rate" in read_in(page, [tmp_path / "unsaid.csv"])
    page.locator("summary", has_text="states no rate").click()
    page.get_by_label("Sampling rate (Hz)").fill("100")
    page.get_by_label("Sampling rate (Hz)").blur()
    page.wait_for_selector("html[data-answered='3']", timeout=30_000)
    assert "computed from the other limb leads: III, aVR, aVL, aVF" in page.inner_text("#notes")
    page.close()


@pytest.mark.slow
def test_keys_reach_everything_and_a_phone_shows_it(browser, site):
    page = opened(browser, site[0], width=390, height=844)
    page.get_by_role("button", name="Show an example").focus()
    page.keyboard.press("Enter")
    page.locator("#result").wait_for()
    page.wait_for_selector("html[data-answered='1']")
    nameless = """nodes => nodes.filter(node => node.offsetParent && !node.getAttribute("aria-label")
        && !node.textContent.trim() && !(node.labels && node.labels.length)).map(node => node.outerHTML)"""
    assert page.locator("input, select, button, canvas").evaluate_all(nameless) == []
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"files", "example", "gain", "scroll", "SUMMARY"} <= reached
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#scroll").bounding_box()["width"] > 320
    assert "Not a medical device" in page.inner_text("main")
    before = page.locator("#paper").evaluate("canvas => canvas.toDataURL()")
    page.select_option("#gain", "20")
    assert page.locator("#paper").evaluate("canvas => canvas.toDataURL()") != before
    assert page.errors == []
    page.close()
