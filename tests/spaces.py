"""A Space as a visitor has it: started as the Hub starts it, looked at in a headless Chromium, checked by axe."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

SPACES = Path(__file__).resolve().parents[1] / "model_cards"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# fonts and the like, from elsewhere
OTHER_ERRORS = re.compile(
    r"huggingface\.co|gstatic|googleapis|fonts|iframeResizer|cdnjs|ERR_INTERNET|ERR_NAME|ERR_CONN"
)
# what Gradio's own frame, around the page, is blamed for
OTHER_VIOLATIONS = {"image-redundant-alt"}
NAMELESS = """nodes => nodes.filter(node => node.offsetParent && !node.disabled && !node.getAttribute("aria-label")
    && !node.title && !node.textContent.trim() && !(node.labels && node.labels.length)
    && !node.getAttribute("aria-labelledby")).map(node => node.outerHTML.slice(0, 200))"""


def require_a_browser():
    """Skips the file that calls it, where there is none."""
    pytest.importorskip("gradio", reason="the Spaces need gradio, which is no dependency of the packages")
    pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    pytest.importorskip("axe_playwright_python", reason="the page is checked by axe (axe-playwright-python)")
    if CHROMIUM is None:
        pytest.skip("no chromium to look at the page with", allow_module_level=True)


@contextmanager
def started(kind, model, uploads, **surroundings):
    """The address of the running Space of `kind` for the model in a folder; `uploads` is where its uploads go."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    surroundings |= {"MODEL_ID": str(model), "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(uploads)}
    surroundings |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, SPACES / kind / "space/app.py"], env={**os.environ, **surroundings})
    address, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 240
    try:
        while True:
            try:
                urlopen(address).read()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the Space did not start"
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


@contextmanager
def a_browser(*flags):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *flags])
        yield browser
        browser.close()


def opened(browser, address, width=1280, height=900, **options):
    """A page of the Space, whose `errors` are those of its console."""
    page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True, **options)
    page.errors = []

    def note(text):
        if not OTHER_ERRORS.search(text):
            page.errors.append(text)

    page.on("console", lambda said: said.type == "error" and note(f"{said.text} {said.location}"))
    page.on("pageerror", lambda error: note(str(error)))
    page.goto(address)
    return page


def violations(page):
    """What axe finds in a page, without its frames: contrast, names of fields and buttons, order of headings."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:160]} ({(node['any'] + node['all'] + node['none'] or [one])[0].get('message')})"
        for one in found
        if one["id"] not in OTHER_VIOLATIONS
        for node in one["nodes"]
    ]


def reached_by_tab(page, most=120):
    """Names of what the Tab key comes to, in the page and in its frames, in order."""
    name = """() => { let node = document.activeElement;
        while (node && node.tagName === "IFRAME" && node.contentDocument) node = node.contentDocument.activeElement;
        return node === document.body || !node ? "" : (node.getAttribute("aria-label") || node.textContent.trim()
            || node.id || node.type || node.tagName).slice(0, 60); }"""
    names = []
    for _ in range(most):
        page.keyboard.press("Tab")
        names.append(page.evaluate(name))
    return names


def tools_of(address):
    """The tools that a Space has for an assistant, by the protocol that its client speaks (MCP)."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def listed():
        server = f"{address}gradio_api/mcp/"
        async with streamablehttp_client(server) as (*streams, _), ClientSession(*streams) as session:
            await session.initialize()
            return (await session.list_tools()).tools

    # playwright has a loop of its own in this thread
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, listed()).result()
