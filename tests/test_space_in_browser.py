"""The ECG Space as a visitor has it, in a headless Chromium (Debian's; playwright by pip)."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hf_ecgmamba import EcgMambaConfig, EcgMambaFeatureExtractor, EcgMambaForSequenceClassification, save_for_hub
from hf_ecgmamba.publishing import drawn_up_ecg
from hf_ecgmamba.recording_channels import STANDARD_LEADS
from tests.spaces import NAMELESS, a_browser, opened, reached_by_tab, require_a_browser, started, tools_of, violations

pytestmark = pytest.mark.slow
require_a_browser()


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
    with started("ecgmamba", folder, uploads) as address:
        yield address, uploads


@pytest.fixture(scope="module")
def browser():
    with a_browser() as browser:
        yield browser


def visited(browser, address, **options):
    page = opened(browser, address, **options)
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
    page, frame = visited(browser, space[0])
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
    millimetre = frame.locator("body").evaluate("() => mm")
    page.mouse.click(box["x"] + 100, box["y"] + 60)
    page.mouse.click(box["x"] + 100 + 50 * millimetre, box["y"] + 60 + 10 * millimetre)
    assert re.fullmatch(r"(99\d|100\d) ms \(60/min\), −1\.00 mV", said.inner_text())
    frame.get_by_label("Lead V1").uncheck()
    for button, start in (("png", b"\x89PNG"), ("pdf", b"%PDF-1.4"), ("json", b"{")):
        with page.expect_download() as download:
            frame.locator(f"#{button}").click()
        download.value.save_as(tmp_path / button)
        assert (tmp_path / button).read_bytes().startswith(start)
    assert page.errors == []
    page.close()


def test_everything_has_a_name_and_a_phone_shows_it(browser, space):
    page, frame = visited(browser, space[0], width=390, height=844)
    assert frame.locator("input, select, button").evaluate_all(NAMELESS) == []
    assert page.locator("input:not([type=file]), select, button").evaluate_all(NAMELESS) == []
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert frame.locator("body").evaluate("body => body.ownerDocument.documentElement.scrollWidth") <= 390
    assert frame.locator("#paper").bounding_box()["width"] > 300
    page.close()


def test_an_upload_is_read_refused_in_one_line_and_not_kept(browser, space, tmp_path):
    page, _ = visited(browser, space[0])
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(browser, space, scheme):
    page, _ = visited(browser, space[0], color_scheme=scheme)
    page.get_by_role("button", name="The file does not state").click()
    assert violations(page) == []
    page.locator("h1").click()
    reached = reached_by_tab(page)
    for name in (
        "Read it",
        "The example",
        "Paper speed",
        "Gain",
        "Zoom in",
        "Calipers",
        "Full screen",
        "PDF",
        "Lead V1",
    ):
        assert any(name in one for one in reached), (name, reached)
    assert any(one.startswith("The ECG. Arrow keys") for one in reached)
    page.close()


def test_a_programs_tool(space, tmp_path):
    """By MCP, as an assistant's client calls it, and by Gradio's own client; eight at once get their own answers."""
    pytest.importorskip("mcp", reason="the Space is an MCP server where mcp is installed")
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    (tool,) = tools_of(space[0])
    assert "findings with their scores" in tool.description
    assert set(tool.inputSchema["properties"]) == {"recording", "sampling_rate"}
    assert "Hz" in tool.inputSchema["properties"]["sampling_rate"]["description"]

    paths = [write_csv(tmp_path / f"visitor{index}.csv", scale=1 + index / 10) for index in range(8)]

    def ask(path):
        return Client(space[0], verbose=False).predict(handle_file(str(path)), None, api_name="/read_ecg")

    alone = [ask(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, paths)) == alone
    assert len({answer["findings"][0]["score"] for answer in alone}) > 4
    (tmp_path / "broken.edf").write_bytes(b"0       broken")
    with pytest.raises(AppError, match=r"broken\.edf"):
        ask(tmp_path / "broken.edf")
