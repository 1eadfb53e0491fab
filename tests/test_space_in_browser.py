"""The ECG Space as a visitor has it, in a headless Chromium (Debian's; playwright by pip)."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from hf_ecgmamba import EcgMambaConfig, EcgMambaFeatureExtractor, EcgMambaForSequenceClassification, save_for_hub
from hf_ecgmamba.publishing import drawn_up_ecg
from hf_ecgmamba.recording_channels import STANDARD_LEADS

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the Space needs gradio, which is no dependency of the package")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium to look at the page with", allow_module_level=True)

APP = Path(__file__).resolve().parents[1] / "model_cards" / "ecgmamba" / "space" / "app.py"
OTHER_ERRORS = re.compile(
    r"huggingface\.co|gstatic|googleapis|fonts|iframeResizer|cdnjs|ERR_INTERNET|ERR_NAME|ERR_CONN"
)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The address of a running Space of a small model, and the folder of its uploads."""
    torch.manual_seed(0)
    config = EcgMambaConfig(
        hidden_size=32, num_hidden_layers=1, d_state=4, id2label={0: "NORM", 1: "AFIB"},
        label2id={"NORM": 0, "AFIB": 1}, problem_type="multi_label_classification", thresholds=[0.99, 0.99],
    )  # fmt: skip
    parts = EcgMambaForSequenceClassification(config), EcgMambaFeatureExtractor.from_model_config(config)
    folder = save_for_hub(*parts, tmp_path_factory.mktemp("model"))
    uploads = tmp_path_factory.mktemp("uploads")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    surroundings = {"MODEL_ID": str(folder), "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(uploads)}
    surroundings |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, str(APP)], env={**os.environ, **surroundings})
    address, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 240
    while True:
        try:
            urlopen(address).read()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the Space did not start"
            time.sleep(0.5)
    yield address, uploads
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, address, width=1280, height=900):
    page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
    page.errors = []
    page.on("console", lambda said: said.type == "error" and page.errors.append(f"{said.text} {said.location}"))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    frame = page.frame_locator("iframe.page")
    frame.locator("#paper").wait_for(timeout=120_000)
    return page, frame


def write_csv(path, leads=STANDARD_LEADS, scale=1.0):
    signal = drawn_up_ecg(leads, 100) * scale
    header = "# Sampling Rate (Hz):= 100\n" + ",".join(f"{lead} (mV)" for lead in leads)
    np.savetxt(path, signal.T, "%.3f", ",", header=header, comments="")
    return path


def submit(page, path):
    page.set_input_files("input[type=file]", path)
    page.locator("td.filename", has_text=path.stem).wait_for(timeout=30_000)  # it is there
    page.get_by_role("button", name="Read it").click()


def test_an_example_is_read_when_the_page_opens(browser, space, tmp_path):
    page, frame = opened(browser, space[0])
    assert page.locator(".findings h2").inner_text() == "No finding above its threshold"
    assert "Not a medical device" in page.inner_text("body")
    said = frame.locator("#said")
    assert "of 10.0 s" in said.inner_text()
    before = frame.locator("#paper").evaluate("canvas => canvas.toDataURL()")
    frame.locator("#in").click()
    assert frame.locator("#paper").evaluate("canvas => canvas.toDataURL()") != before
    frame.locator("#out").click()
    frame.locator("#layout").select_option("rows")
    frame.locator("#speed").select_option("50")
    frame.locator("#paper").focus()
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("1.0 to")
    frame.locator("#calipers").click()
    box = frame.locator("#paper").bounding_box()
    page.mouse.click(box["x"] + 100, box["y"] + 60)
    page.mouse.click(box["x"] + 300, box["y"] + 100)
    assert said.inner_text() == "1000 ms (60/min), −1.00 mV"  # 200 px of 4 to a millimetre; 40 px
    frame.get_by_label("Lead V1").uncheck()
    for button, start in (("png", b"\x89PNG"), ("pdf", b"%PDF-1.4"), ("json", b"{")):
        with page.expect_download() as download:
            frame.locator(f"#{button}").click()
        download.value.save_as(tmp_path / button)
        assert (tmp_path / button).read_bytes().startswith(start)
    assert [error for error in page.errors if not OTHER_ERRORS.search(error)] == []
    page.close()


def test_everything_has_a_name_and_a_phone_shows_it(browser, space):
    page, frame = opened(browser, space[0], width=390, height=844)
    nameless = """nodes => nodes.filter(node => node.offsetParent && !node.disabled && !node.getAttribute("aria-label")
        && !node.title && !node.textContent.trim() && !(node.labels && node.labels.length)
        && !node.getAttribute("aria-labelledby")).map(node => node.outerHTML.slice(0, 200))"""
    assert frame.locator("input, select, button").evaluate_all(nameless) == []
    assert page.locator("input:not([type=file]), select, button").evaluate_all(nameless) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert frame.locator("body").evaluate("body => body.ownerDocument.documentElement.scrollWidth") <= 390
    assert frame.locator("#paper").bounding_box()["width"] > 300
    page.close()


def test_an_upload_is_read_refused_in_one_line_and_not_kept(browser, space, tmp_path):
    page, _ = opened(browser, space[0])
    (tmp_path / "broken.edf").write_bytes(b"0       broken")
    submit(page, tmp_path / "broken.edf")
    alert = page.locator(".findings [role=alert]")
    alert.wait_for(timeout=60_000)
    assert "could not be read" in alert.inner_text() and "/" not in alert.inner_text()
    submit(page, write_csv(tmp_path / "mine.csv", ("I", "II", "III")))
    page.wait_for_function(  # the model wants twelve leads
        "document.querySelector('.findings [role=alert]')?.textContent.includes('lead')", timeout=60_000
    )
    submit(page, write_csv(tmp_path / "patient_77.csv"))
    page.locator(".findings h2").wait_for(timeout=60_000)
    assert "10.0 s, 100 Hz, 12 leads" in page.inner_text("body")
    page.close()
    deadline = time.monotonic() + 150
    while list(space[1].rglob("patient_77*")) and time.monotonic() < deadline:
        time.sleep(2)
    assert not list(space[1].rglob("patient_77*"))


def test_eight_visitors_each_get_their_own_answer(space, tmp_path):
    from gradio_client import Client, handle_file

    def visit(index):
        path = write_csv(tmp_path / f"visitor{index}.csv", scale=1 + index / 10)
        page, _, done, _ = Client(space[0], verbose=False).predict([handle_file(str(path))], None, api_name="/read")
        return re.search(r"signals.*?\[(.*?)\]", page)[1], done

    with ThreadPoolExecutor(8) as pool:
        came = list(pool.map(visit, range(8)))
    assert len({signals for signals, _ in came}) == 8
    assert [visit(index)[0] for index in (0, 5)] == [came[0][0], came[5][0]]
