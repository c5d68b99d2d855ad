"""The demo in a real headless Chromium: draw, stop, slider, compare, upload, errors, a phone, the keyboard.

Skipped where there is no gradio, no playwright or no Chromium.
"""

import base64
import contextlib
import gc
import io
import re
import threading
import time
import zipfile

import numpy as np
import pytest

pytest.importorskip("gradio", reason="gradio is not installed here: `make demo-tests` installs cond_ddpm[demo]")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; `make demo-tests` installs it")

from conftest import launch_chromium  # noqa: E402
from PIL import Image  # noqa: E402
from test_demo import LIMITS, _bytes, drawn, new_pipeline  # noqa: E402
from test_demo import pytestmark as _of_gradio  # noqa: E402

from cond_ddpm.demo import Model, Studio, launch, make_demo, markup  # noqa: E402

pytestmark = [pytest.mark.end_to_end, *_of_gradio]
MOST = 120_000  # milliseconds: the most that anything is waited for
TABS = ["Draw", "Watch", "Noise", "Compare", "Measured"]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def studio():
    """What the page should show; not the page's own, which is asked for by the browser alone."""
    return Studio([Model("shapes", new_pipeline, "")], LIMITS)


@pytest.fixture(scope="module")
def served():
    pipelines = {"shapes": new_pipeline(), "other": new_pipeline(1)}
    page = make_demo([Model(name, lambda pipeline=pipeline: pipeline, "") for name, pipeline in pipelines.items()], LIMITS)
    launch(page, prevent_thread_lock=True, quiet=True)
    yield page
    page.close()
    gc.collect()  # what the server leaves, while warnings of it are ignored


@pytest.fixture
def open_page(browser, served):
    """A function that opens the page; an error in its JavaScript, or a request to anywhere else, fails the test."""
    wrong = []
    with contextlib.ExitStack() as stack:

        def open_page(tab="Draw", **context):
            page = stack.enter_context(
                browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
            ).new_page()
            page.set_default_timeout(MOST)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda request: _is_local(request.url) or wrong.append(request.url))
            page.goto(served.local_url)
            page.get_by_role("tab", name=tab, exact=True).click()
            return page

        yield open_page
    assert not wrong


def _is_local(url):
    return url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:"))


def press(page, name):
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def fill(page, label, value):
    field = page.get_by_label(label).locator("visible=true").first
    field.fill(str(value))
    field.press("Tab")


def shown_image(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.get_attribute("src").partition(",")[2]))))


def test_draw_by_mouse_and_keyboard(open_page, studio):
    page = open_page()
    assert "No pictures yet" in page.locator("#generated").inner_text()
    page.get_by_label("cross", exact=True).locator("visible=true").first.focus()
    page.keyboard.press("Space")
    for label, value in {"Pictures of each class": 2, "Seed": 4, "Steps": 3, "Guidance": 2}.items():
        fill(page, f"number input for {label}" if label != "Seed" else "Seed", value)
    press(page, "Draw")
    page.locator("#generated a.download").first.wait_for()
    images = page.locator("#generated img")
    wanted = drawn(studio)[1]
    assert images.count() == 4
    for number, image in enumerate(wanted):
        np.testing.assert_array_equal(shown_image(images.nth(number)), image.transpose(1, 2, 0))
    assert images.nth(3).get_attribute("alt") == "cross, seed 5"
    links = page.locator("#generated a.download")
    files = {}
    for link in links.all():
        with page.expect_download() as download:
            link.click()
        files[download.value.suggested_filename] = download.value.path()
    arrays = np.load(files["pictures.npz"])
    np.testing.assert_array_equal(arrays["images"], wanted.transpose(0, 2, 3, 1))
    assert arrays["class_labels"].tolist() == [0, 0, 2, 2] and arrays["seeds"].tolist() == [4, 5] * 2
    np.testing.assert_array_equal(np.asarray(Image.open(files["pictures.png"])), markup.sheet(wanted, 2))
    assert len(zipfile.ZipFile(files["pictures.zip"]).namelist()) == 4
    assert "guidance_scale=2.0" in page.locator("#code").inner_text()
    before = page.get_by_label("Seed").locator("visible=true").first.input_value()
    page.get_by_role("button", name="Roll").locator("visible=true").click()
    page.wait_for_function("before => [...document.querySelectorAll('input')].every(e => e.value !== before)", arg=before)


def test_stop_ends_the_work_and_says_so(open_page, served, monkeypatch):
    unet = served.studio.pipeline.unet
    forward, calls, gate = unet.forward, [], threading.Event()

    def gated(*arguments, **named):
        calls.append(None)
        if len(calls) > 3:  # the fourth step waits, so that Stop comes before the last; the others take their time
            gate.wait(MOST / 1000)
            time.sleep(0.3)
        return forward(*arguments, **named)

    monkeypatch.setattr(unet, "forward", gated)
    page = open_page()
    threads = threading.active_count()
    press(page, "Draw")
    page.locator("#generated img").first.wait_for()  # noise, on its way to a picture
    page.locator("progress").first.wait_for()
    press(page, "Stop")
    page.get_by_text("Stopped.").wait_for()
    gate.set()
    deadline = time.monotonic() + 60
    while served.studio._turn.locked() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not served.studio._turn.locked() and len(calls) < 20
    monkeypatch.undo()
    press(page, "Draw")
    page.locator("#generated a.download").first.wait_for()
    assert page.get_by_text("Stopped.").count() == 0
    assert threading.active_count() <= threads + 8


def test_slider_through_time(open_page):
    page = open_page("Watch")
    assert "Nothing to watch yet" in page.locator("#watched").inner_text()
    fill(page, "number input for Steps", 6)
    press(page, "Draw")
    slider = page.locator("#watched input[type=range]")
    slider.wait_for()
    assert slider.get_attribute("max") == "6"  # six moments and the finished picture
    visible = page.locator("#watched img:visible")
    slider.press("Home")
    assert visible.count() == 2 and "t = 999" in visible.first.get_attribute("alt")
    assert page.locator("#watched p:visible").first.inner_text().startswith("t = 999, signal-to-noise ratio \N{MINUS SIGN}")
    slider.press("ArrowRight")
    assert "t = 999" not in visible.first.get_attribute("alt")
    slider.press("End")
    np.testing.assert_array_equal(shown_image(visible.first), shown_image(visible.last))
    assert "finished" in slider.get_attribute("aria-valuetext")
    press(page, "play all moments")
    page.wait_for_function("document.querySelector('#watched input').value === '3'")
    href = page.locator("#watched a.download").get_attribute("href")
    assert Image.open(io.BytesIO(base64.b64decode(href.partition(",")[2]))).n_frames >= 6


def test_compare(open_page):
    page = open_page("Compare")
    fill(page, "number input for Pictures", 2)
    press(page, "Compare")
    page.locator("#compared section").nth(4).wait_for()
    titles = page.locator("#compared h3")
    assert titles.all_inner_texts() == [f"guidance {w}" for w in (0, 1, 2, 4, 8)]
    page.get_by_text("Models or moments", exact=True).locator("visible=true").first.click()
    page.wait_for_timeout(300)
    press(page, "Compare")
    page.wait_for_function("document.querySelectorAll('#compared h3').length === 2")
    assert titles.all_inner_texts() == ["shapes", "other"]
    first, second = (shown_image(page.locator("#compared section").nth(row).locator("img").first) for row in (0, 1))
    assert (first != second).any()


def test_upload_and_its_errors(open_page, tmp_path):
    page = open_page("Noise")
    (tmp_path / "mine.png").write_bytes(_bytes(Image.new("RGB", (40, 20), "orange")))
    (tmp_path / "bad.png").write_bytes(b"<svg onload=alert(1)>")
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "mine.png")
    page.get_by_text("mine").first.wait_for()
    page.wait_for_timeout(500)
    press(page, "Add noise")
    page.locator("#noised .film").wait_for()
    slider = page.locator("#noised input[type=range]")
    slider.press("Home")
    original, noisy = (shown_image(page.locator("#noised img:visible").nth(number)) for number in (0, 1))
    assert (original == [255, 165, 0]).all() and abs(noisy.astype(int) - original).mean() < 10
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "bad.png")
    page.get_by_text("bad").first.wait_for()
    page.wait_for_timeout(500)
    press(page, "Add noise")
    alert = page.get_by_role("alert").filter(has_text="picture: expected a whole PNG")
    alert.wait_for()
    assert "Traceback" not in page.locator("body").inner_text()


def test_errors_are_in_words(open_page):
    page = open_page()
    for name in ("square", "cross"):
        page.get_by_label(name, exact=True).locator("visible=true").first.check(force=True)
    press(page, "Draw")  # 3 classes x 4
    alert = page.get_by_role("alert").filter(has_text="at most 8 altogether, got 3 classes x 4; choose fewer")
    alert.wait_for()
    assert "No pictures yet" in page.locator("#generated").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(open_page, scheme):
    page = open_page(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    for tab in TABS:
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, tab
    rgb = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", rgb)[:3])) > 384
    assert light == (scheme == "light")
    small = page.evaluate(
        "[...document.querySelectorAll('.chips label')].filter(e => e.offsetHeight && e.offsetHeight < 24).length"
    )
    assert small == 0  # as large as a finger needs at least (WCAG 2.5.8)
