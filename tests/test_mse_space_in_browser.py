"""The MSE Space as a visitor has it, in a headless Chromium (Debian's; playwright by pip)."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hf_mse_adapter.clip_features import DEFAULT_FRONT_ENDS
from hf_mse_adapter.configuration_mse_adapter import MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from hf_mse_adapter.publishing_mse_adapter import save_for_hub
from tests.hf_mse_adapter.odd_clips import voice, write
from tests.hf_mse_adapter.tiny_backbones import build_backbone, build_tokenizer
from tests.spaces import NAMELESS, a_browser, opened, reached_by_tab, require_a_browser, started, tools_of, violations

pytestmark = pytest.mark.slow
require_a_browser()


def published(folder, **fields):
    backbone = build_backbone("Llama")
    backbone.save_pretrained(folder / "llm")
    torch.manual_seed(0)
    config = MseConfig(audio_dim=64, vision_dim=49, backbone_name_or_path=str(folder / "llm"), **fields)
    model = MseForConditionalGeneration.from_backbone(backbone, config)
    processor = MseProcessor.from_config(model.config, build_tokenizer(), front_ends=DEFAULT_FRONT_ENDS)
    return save_for_hub(model, processor, folder / "model")


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory, uploads):
    """The address of a Space whose model gives numbers."""
    model = published(tmp_path_factory.mktemp("sentiment"), task="regression", label_range=(-3, 3), label_step=0.5)
    with started("mse_adapter", model, uploads) as address:
        yield address


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two phrases of a voice, with a pause between them, and a face."""
    sound = np.concatenate([voice(2.0), np.zeros(16000, np.float32), voice(2.0)])
    return write(tmp_path_factory.mktemp("clip") / "patient_77.mp4", num_frames=125, sound=sound)


@pytest.fixture(scope="module")
def browser():
    with a_browser("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream") as browser:
        yield browser


def visited(browser, address, **options):
    page = opened(browser, address, **options)
    page.locator(".answer h2").wait_for(timeout=120_000)
    assert "example that came with the model" in page.inner_text("body")
    return page


def upload(page, path):
    page.locator(".clip input[type=file]").set_input_files(path)
    page.locator(".clip video").wait_for(timeout=30_000)


def read(page):
    """Presses the button, waits for another answer than the one that is there."""
    page.evaluate("document.querySelector('.answer, [role=alert]').setAttribute('data-old', '1')")
    page.get_by_role("button", name="Read it").click()
    page.locator(".answer:not([data-old]), [role=alert]:not([data-old])").first.wait_for(timeout=120_000)


def test_what_is_typed_is_read(browser, sentiment):
    page = visited(browser, sentiment)
    assert "What a person shows is not what a person feels" in page.inner_text("body")
    gauge = page.locator("svg.gauge").get_attribute("aria-label")
    assert re.fullmatch(
        r"[+−]\d\.\d\d on a scale from -3 to 3, give or take \d\.\d\d \(one standard deviation\)", gauge
    )
    page.get_by_label("What was said").fill("I love this film")
    read(page)
    assert "It comes from the words alone" in page.inner_text(".answer")
    page.get_by_label("What was said").fill("")
    read(page)
    assert "there is nothing to read" in page.inner_text("[role=alert]")
    assert page.errors == []
    page.close()


def test_a_film_shows_what_moved_it_the_face_and_the_sources(browser, sentiment, clip, uploads):
    page = visited(browser, sentiment)
    upload(page, clip)
    page.get_by_label("What was said").fill("well then")
    read(page)
    said = page.inner_text(".answer")
    for expected in (
        "What moved it",
        "words",
        "voice",
        "face",
        "speech in 4.2 s",
        "a face in 50 of 50 frames looked at",
    ):
        assert expected in said
    numbers = page.locator(".answer .bars .number").all_inner_texts()
    assert len(numbers) == 3 and all(re.fullmatch(r"[+−]?\d\.\d\d", number) for number in numbers)
    faces = page.locator(".answer .faces img")
    assert faces.count() == 5 and faces.first.evaluate("image => image.naturalWidth") == 168
    assert faces.first.get_attribute("src").startswith("data:image/jpeg")  # on no disk
    assert page.errors == []
    page.close()
    deadline = time.monotonic() + 150
    while list(uploads.rglob("patient_77*")) and time.monotonic() < deadline:
        time.sleep(2)
    assert not list(uploads.rglob("patient_77*"))


def test_a_voice_is_recorded_here(browser, sentiment):
    """The microphone is Chromium's fake one, which beeps."""
    page = visited(browser, sentiment, permissions=["microphone"])
    page.get_by_role("tab", name="Voice").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_label("What was said").fill("beep")
    page.get_by_label("Play", exact=True).first.wait_for(timeout=30_000)
    read(page)
    seconds = re.search(r"\b(\d\.\d) s long", page.inner_text(".answer"))
    assert seconds and float(seconds[1]) > 2, page.inner_text("body")
    page.close()


def test_a_conversation_over_time(browser, sentiment, clip):
    page = visited(browser, sentiment)
    upload(page, clip)
    page.get_by_role("button", name="A conversation").click()
    page.get_by_label("Turns").fill("0 - 2 Ann: Hello.\n2.5 - 5 Bo: So what?\n")
    page.get_by_role("button", name="Read the conversation").click()
    page.locator(".answer .lane").first.wait_for(timeout=120_000)
    said = page.inner_text(".answer")
    assert "2 turns" in said and "So what?" in said and page.locator(".answer .lane").count() == 2
    page.locator(".answer .lane button").nth(1).click()
    assert page.locator(".clip video").evaluate("film => film.currentTime") >= 2.5
    assert page.errors == []
    page.close()


def test_bad_clips_are_refused_in_one_line(browser, sentiment, tmp_path):
    page = visited(browser, sentiment)
    (tmp_path / "broken.mp4").write_bytes(b"no film at all")
    page.locator(".clip input[type=file]").set_input_files(tmp_path / "broken.mp4")
    page.get_by_label("What was said").fill("well")
    page.wait_for_timeout(3000)
    read(page)
    alert = page.locator("[role=alert]").inner_text()
    assert "broken.mp4 is no clip that can be read" in alert and "/" not in alert
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_everybody_can_use_it(browser, sentiment, clip, width, scheme):
    page = visited(browser, sentiment, width=width, color_scheme=scheme)
    upload(page, clip)
    page.get_by_label("What was said").fill("well then")
    read(page)
    for title in ("Advanced", "A conversation"):
        page.get_by_role("button", name=title).click()
    assert page.locator("input:not([type=file]), textarea, select, button").evaluate_all(NAMELESS) == []
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:
        page.locator("h1").click()
        reached = reached_by_tab(page)
        for name in ("Film", "Read it", "The example", "Advanced: speaker", "A conversation", "Read the conversation"):
            assert any(name in one for one in reached), (name, reached)
    page.close()


def test_a_program_asks_and_eight_at_once_get_their_own_answers(sentiment):
    pytest.importorskip("mcp", reason="the Space is an MCP server where mcp is installed")
    from gradio_client import Client

    (tool,) = tools_of(sentiment)
    assert set(tool.inputSchema["properties"]) == {"clip", "text"} and "emotion" in tool.description
    assert "two minutes" in tool.inputSchema["properties"]["clip"]["description"]
    sentences = [f"I have seen {number} films" for number in range(8)]

    def ask(sentence):
        return Client(sentiment, verbose=False).predict(None, sentence, api_name="/read_feeling")["value"]

    alone = [ask(sentence) for sentence in sentences]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, sentences)) == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 6) for value in alone}) > 4


def test_emotions_are_bars(browser, tmp_path_factory, tmp_path):
    labels = {0: "neutral", 1: "joy", 2: "anger"}
    model = published(tmp_path_factory.mktemp("emotion"), task="classification", id2label=labels)
    with started("mse_adapter", model, tmp_path) as address:
        page = visited(browser, address)
        assert re.match(r"(Neutral|Joy|Anger), \d\d%", page.inner_text(".answer h2"))
        names = page.locator(".answer .bars").first.locator(":scope > span:nth-child(3n+1)").all_inner_texts()
        assert sorted(names) == sorted(labels.values())
        assert violations(page) == []
        page.close()
