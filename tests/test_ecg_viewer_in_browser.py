"""The ECG on paper, by itself in a headless Chromium: what is drawn, measured and saved, and that everybody can."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from hf_ecgmamba.publishing import drawn_up_ecg
from hf_ecgmamba.recording_channels import STANDARD_LEADS
from tests.spaces import NAMELESS, SPACES, a_browser, reached_by_tab, require_a_browser, violations

pytestmark = pytest.mark.slow
require_a_browser()
RATE = 100


@pytest.fixture(scope="module")
def browser():
    with a_browser() as browser:
        yield browser


def shown(browser, folder, signal, leads=STANDARD_LEADS, timeline=(), width=1280, height=900):
    """The page of a recording; signal [leads, time] in mV."""
    data = {
        "leads": list(leads), "sampling_rate": RATE, "duration": signal.shape[1] / RATE, "millivolts": 0.001,
        "signals": [base64.b64encode((row * 1000).astype("<i2").tobytes()).decode() for row in signal],
        "result": {"findings": [{"label": "AFIB", "score": 0.8, "present": True}], "timeline": list(timeline),
                   "notes": [], "refused": None},
    }  # fmt: skip
    text = (SPACES / "ecgmamba/space/viewer.html").read_text(encoding="utf-8")
    path = folder / "viewer.html"
    path.write_text(text.replace("/*DATA*/null", json.dumps(data)), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
    page.errors = []
    page.on("console", lambda said: said.type == "error" and page.errors.append(said.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(path.as_uri())
    page.locator("#paper").wait_for()
    return page


def ink(page):
    """The trace: for each column of the canvas the mean row of its black pixels, NaN where there are none."""
    text = page.locator("#paper").evaluate("canvas => canvas.toDataURL('image/png')").split(",")[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L")) < 150  # the grid is paler
    rows = np.arange(picture.shape[0])[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (picture * rows).sum(axis=0) / picture.sum(axis=0)


@pytest.fixture
def twelve():
    return drawn_up_ecg(STANDARD_LEADS, RATE)


def test_a_millivolt_and_a_second_are_as_long_as_the_paper_says(browser, tmp_path):
    """A square wave of 1 mV and 1 s in one lead: 10 mm/mV, 25 mm/s, and as gain and speed are changed."""
    square = np.where((np.arange(1000) // 100) % 2, 1.0, 0.0)[None]
    page = shown(browser, tmp_path, square, leads=["II"])
    for gain, speed in ((10, 25), (5, 25), (20, 50), (10, 12.5)):
        page.locator("#gain").select_option(str(gain))
        page.locator("#speed").select_option(str(speed))
        columns = ink(page)[60:]  # beside the name
        low, high = np.nanmax(columns), np.nanmin(columns)
        millimetre = page.evaluate("mm")
        assert low - high == pytest.approx(millimetre * gain, abs=2)
        falls = np.flatnonzero(np.diff((columns < (low + high) / 2).astype(int)))
        assert np.median(np.diff(falls)) == pytest.approx(millimetre * speed, abs=2)
    assert page.errors == []
    page.close()


def test_calipers_by_mouse_and_by_keyboard(browser, tmp_path, twelve):
    page = shown(browser, tmp_path, twelve)
    said = page.locator("#said")
    page.locator("#calipers").click()
    box = page.locator("#paper").bounding_box()
    millimetre = page.evaluate("mm")
    page.mouse.click(box["x"] + 100, box["y"] + 60)
    page.mouse.click(box["x"] + 100 + 20 * millimetre, box["y"] + 60 - 5 * millimetre)
    assert re.fullmatch(r"(79\d|80\d) ms \(75/min\), \+0\.50 mV", said.inner_text())
    # without a mouse: Enter sets a point in the middle, arrows move it, Enter sets the other
    page.locator("#calipers").press("Enter")
    page.locator("#calipers").press("Enter")
    page.locator("#paper").focus()
    page.keyboard.press("Enter")
    for key in ["ArrowRight"] * 20 + ["ArrowUp"] * 10:
        page.keyboard.press(key)
    assert said.inner_text() == "800 ms (75/min), +1.00 mV"
    page.close()


def test_leads_layout_zoom_and_pan(browser, tmp_path, twelve):
    page = shown(browser, tmp_path, np.tile(twelve, 3))
    paper, said = page.locator("#paper"), page.locator("#said")
    tall = paper.bounding_box()["height"]
    for lead in ("V1", "V2", "V3", "V4", "V5", "V6"):
        page.get_by_label(f"Lead {lead}", exact=True).uncheck()
    page.locator("#layout").select_option("rows")
    rows = paper.bounding_box()["height"]
    page.get_by_label("Lead V1", exact=True).check()
    assert paper.bounding_box()["height"] > rows and tall > 0
    page.get_by_role("button", name="No leads").click()
    assert not page.get_by_label("Lead I", exact=True).is_checked()
    page.get_by_role("button", name="All leads").click()
    assert page.get_by_label("Lead I", exact=True).is_checked()
    before = said.inner_text()
    page.locator("#in").click()
    assert said.inner_text() != before
    page.locator("#fit").click()
    assert said.inner_text() == before
    box = paper.bounding_box()
    page.mouse.move(box["x"] + 600, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 600 - 50 * page.evaluate("mm"), box["y"] + 100)
    page.mouse.up()
    assert said.inner_text().startswith("2.0 to")  # fifty millimetres
    page.close()


def test_full_screen_makes_the_paper_larger(browser, tmp_path, twelve):
    page = shown(browser, tmp_path, twelve, width=900, height=900)
    before = page.locator("#paper").bounding_box()["width"]
    page.locator("#full").click()
    page.wait_for_function("document.fullscreenElement !== null")
    page.wait_for_timeout(300)
    assert page.locator("#paper").bounding_box()["width"] >= before
    # a millimetre of paper has more pixels: it is larger, not merely wider
    assert page.evaluate("mm") == pytest.approx(page.locator("#paper").evaluate("paper => paper.clientWidth") / 250)
    page.evaluate("document.exitFullscreen()")
    page.close()


def test_a_click_on_the_timeline_goes_there(browser, tmp_path, twelve):
    timeline = [{"start": 60.0, "end": 90.0, "label": "AFIB", "score": 0.8}]
    page = shown(browser, tmp_path, np.tile(twelve, 12), timeline=timeline)
    page.get_by_role("button", name="Go to AFIB, 60 to 90 s").click()
    assert page.locator("#said").inner_text().startswith("60.0 to")
    page.close()


def test_what_is_saved_is_what_is_shown(browser, tmp_path, twelve):
    page = shown(browser, tmp_path, twelve)
    saved = {}
    for kind in ("png", "pdf", "json"):
        with page.expect_download() as download:
            page.locator(f"#{kind}").click()
        download.value.save_as(tmp_path / kind)
        saved[kind] = (tmp_path / kind).read_bytes()
    assert Image.open(io.BytesIO(saved["png"])).width >= 2000
    assert json.loads(saved["json"])["findings"][0]["label"] == "AFIB"
    # a reader finds each object where the table says
    pdf = saved["pdf"]
    table = int(pdf.split(b"startxref\n")[1].split()[0])
    assert pdf[table:].startswith(b"xref\n0 6")
    for number, line in enumerate(pdf[table:].splitlines()[3:8], start=1):
        assert pdf[int(line.split()[0]) :].startswith(b"%d 0 obj" % number)
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_everybody_can_use_it(browser, tmp_path, twelve, width):
    timeline = [{"start": 0.0, "end": 5.0, "label": "AFIB", "score": 0.8}]
    page = shown(browser, tmp_path, twelve, timeline=timeline, width=width, height=844)
    assert violations(page) == []
    assert page.locator("input, select, button").evaluate_all(NAMELESS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    reached = reached_by_tab(page, most=40)
    buttons = ("Zoom in", "Calipers", "Full screen", "PNG", "PDF", "JSON", "Lead V1", "Go to AFIB")
    for name in ("Paper speed", "Gain", "Layout", "The ECG", "Time shown", *buttons):
        assert any(one.startswith(name) for one in reached), (name, reached)
    assert page.locator("#paper").bounding_box()["width"] >= width - 30
    page.close()
