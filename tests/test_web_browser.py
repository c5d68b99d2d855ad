"""The page without a server in a real browser: the pictures are Python's, and every state of the page has words.

Skipped where there is no Chromium, no playwright to drive it or no copy of onnxruntime-web; `tests/install_browser.sh` fetches
them. A folder of npm's package can be named by COND_DDPM_ORT_WEB.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from conftest import NAMES, ROOT, launch_chromium, make_unet
from diffusers import DDPMScheduler
from test_web import RANDOMS, SEEDS, SIZES, check_randoms

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.pipelines.pipeline_cond_ddpm import DEFAULT_SAMPLER
from cond_ddpm.web import export_page

pytestmark = pytest.mark.integration
RUNTIME = Path(os.environ.get("COND_DDPM_ORT_WEB", ROOT / "build" / "onnxruntime-web"))
SECONDS = 120_000  # in milliseconds: the most that anything is waited for


@pytest.fixture(scope="module")
def playwright():
    """What drives the browser; the module's tests are skipped if anything that they need is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason='pip install ".[onnx]"')
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not (RUNTIME / "dist").is_dir():
        pytest.skip(f"onnxruntime-web is not at {RUNTIME}")
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def launch(playwright):
    """A function from Chromium's flags to a browser, which is closed at the end."""
    with contextlib.ExitStack() as stack:

        def launch(*flags):
            browser = launch_chromium(playwright, *flags)
            stack.callback(browser.close)
            return browser

        yield launch


@pytest.fixture(scope="module")
def browser(launch):
    return launch()


@pytest.fixture(scope="module")
def pipeline():
    """A tiny model with 3 classes; unlike a new one, it is sampled in few steps."""
    pipeline = CondDDPMPipeline(make_unet("hybrid"), DDPMScheduler(), dict(enumerate(NAMES)), 0.1, 2.0)
    pipeline.scheduler = pipeline.make_scheduler(DEFAULT_SAMPLER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def site(playwright, pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "site"
    export_page(pipeline, folder, "someone/shapes", "shapes", runtime=str(RUNTIME))
    return folder


@contextlib.contextmanager
def served(folder, isolated=False):
    """The address of a server with the page: Python's own, or the page's, which sends the headers for several threads.

    With one thread, the tests lose nothing, and do not wait for each other's threads.
    """
    if isolated:
        command = [sys.executable, "-u", str(folder / "serve.py"), "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                yield server.stdout.readline().split()[0]
            finally:
                server.terminate()
        return

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def address(site):
    with served(site) as address:
        yield address


@pytest.fixture
def new_page(browser):
    """A function that opens a page in a context of its own; an error in its JavaScript fails the test."""
    errors = []
    with contextlib.ExitStack() as stack:

        def new_page(of=None, **settings):
            context = (of or browser).new_context(**settings)
            stack.callback(context.close)
            context.set_default_timeout(SECONDS)
            page = context.new_page()
            page.on("pageerror", lambda error: errors.append(error))
            return page

        yield new_page
    assert not errors


def ready(page, address, **settings):
    """Open the page with these settings and wait until it can draw; return where it computes, such as "wasm 1"."""
    page.goto("about:blank")  # otherwise, another fragment of the same address would not load the page again
    page.goto(f"{address}#{urlencode(settings)}")
    page.wait_for_selector("body[data-ready]")
    return page.get_attribute("body", "data-ready")


def status_becomes(page, words):
    page.wait_for_function("words => document.getElementById('status').textContent.includes(words)", arg=words)


def pixels(page, canvas="#original"):
    """The pixels of a canvas, (H, W, 3)."""
    script = """canvas => [canvas.width, canvas.height,
        ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]"""
    width, height, *values = page.eval_on_selector(canvas, script)
    return np.array(values).reshape(height, width, 4)[..., :3]


def drawn(page):
    page.click("#draw")
    status_becomes(page, "took")
    return pixels(page)


def of_python(pipeline, label, seed, **arguments):
    return np.asarray(pipeline(None if label is None else [label], seeds=[seed], **arguments).images[0]).astype(int)


def test_the_pictures_are_those_of_python(pipeline, address, new_page):
    """To within 2 of 255, for classes and none, guidance and none, and each sampler."""
    page = new_page()
    for label, seed, steps, guidance, sampler in [
        ("cross", 0, 20, 2.0, "dpm++2"),
        ("square", 2**64 - 1, 5, 1.0, "dpm++2"),
        (None, 3, 7, None, "dpm++2"),
        ("circle", 4, 10, 3.5, "ddim"),
        ("circle", 5, 10, 0.0, "ddpm"),
    ]:
        given = {"class": label or "any class", "seed": seed, "steps": steps, "sampler": sampler}
        ready(page, address, **given, **({} if guidance is None else {"guidance": guidance}))
        arguments = {"num_inference_steps": steps, "guidance_scale": guidance, "sampler": sampler}
        difference = np.abs(drawn(page) - of_python(pipeline, label, seed, **arguments)).max()
        assert difference <= 2, (given, difference)


def test_the_pretrained_model_draws_what_python_draws(new_page, tmp_path):
    pipeline = CondDDPMPipeline.from_pretrained(ROOT / "pretrained" / "cifar10")
    pipeline.set_progress_bar_config(disable=True)
    export_page(pipeline, tmp_path / "site", "pretrained/cifar10", "cifar10", runtime=str(RUNTIME))
    weight = sum(path.stat().st_size for path in (tmp_path / "site").iterdir() if path.is_file())
    assert weight < 20e6
    page = new_page()
    with served(tmp_path / "site") as address:
        ready(page, address, **{"class": "ship", "seed": 11})
        assert np.abs(drawn(page) - of_python(pipeline, "ship", 11)).max() <= 2


def test_random_numbers_in_the_browser(address, new_page):
    page = new_page()
    page.goto(address)
    given = {"seeds": list(map(str, SEEDS)), "sizes": SIZES}
    script = f"async (given) => {{ const {{ Generator }} = await import('/random.js');{RANDOMS}; return randoms; }}"
    check_randoms(page.evaluate(script, given))


def test_the_slider_goes_through_time(pipeline, address, new_page):
    page = new_page()
    ready(page, address, **{"class": "cross", "seed": 6, "steps": 8})
    noise = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(6))
    as_pixels = ((noise + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(page, "#noisy") - as_pixels).max() <= 1  # the noise is shown before anything is drawn
    assert page.is_disabled("#time")
    picture = drawn(page)
    assert page.get_attribute("#time", "max") == "7" and page.input_value("#time") == "7"
    page.focus("#time")
    page.keyboard.press("Home")
    assert np.abs(pixels(page, "#noisy") - as_pixels).max() <= 1
    assert page.inner_text("#moment").startswith("Step 1 of 8 · t = 999 · ")
    assert page.get_attribute("#noisy", "aria-label") == "cross, seed 6: the noisy sample at step 1 of 8"
    intermediates = pipeline(["cross"], seeds=[6], num_inference_steps=8, return_intermediates=8).intermediate_predictions
    for index in (3, 4):
        page.eval_on_selector(
            "#time", "(time, index) => { time.value = index; time.dispatchEvent(new Event('input')); }", index
        )
        expected = ((intermediates[index, 0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
        assert np.abs(pixels(page) - expected).max() <= 2
    page.click("#play")
    page.wait_for_function("document.getElementById('time').value === '7'")
    page.wait_for_selector("#play[aria-label='Play the steps']")
    assert np.array_equal(pixels(page), picture)


def test_several_pictures_and_what_becomes_of_them(pipeline, address, new_page):
    page = new_page()
    ready(page, address, **{"class": "circle", "seed": 20, "steps": 4, "guidance": 1})
    page.click("summary")
    page.select_option("#count", "4")
    drawn(page)
    names = page.locator("#gallery button")
    assert names.count() == 4 and names.nth(0).inner_text().split("\n") == ["circle", "seed 23"]
    names.nth(2).click()
    assert names.nth(2).get_attribute("aria-pressed") == "true" and names.nth(0).get_attribute("aria-pressed") == "false"
    expected = of_python(pipeline, "circle", 21, num_inference_steps=4, guidance_scale=1.0)
    assert np.abs(pixels(page) - expected).max() <= 2
    lines = page.inner_text("#python")
    (call,) = [line for line in lines.split("\n\n") if "pipeline(" in line]
    assert 'from_pretrained("someone/shapes")' in call
    scope = {"pipeline": pipeline}
    code = call.partition("\n")[2].replace('.save("picture.png")', "")
    assert np.array_equal(np.asarray(eval(code, scope)).astype(int), expected)  # the lines that the page shows
    with page.expect_download() as download:
        page.click("#download")
    from PIL import Image

    assert download.value.suggested_filename == "circle-21-4-1-dpm++2.png"
    with Image.open(download.value.path()) as saved:
        assert np.array_equal(np.asarray(saved)[..., :3], pixels(page))


def test_stop_and_draw_again(address, new_page):
    page = new_page()
    ready(page, address, **{"class": "cross", "seed": 1, "sampler": "ddpm", "steps": 1000})
    page.click("#draw")
    status_becomes(page, "Drawing: step ")
    assert page.is_disabled("#draw")
    page.click("#stop")
    status_becomes(page, "Stopped.")
    assert page.locator("#gallery button").count() == 0 and page.is_enabled("#draw") and page.is_disabled("#stop")
    page.click("summary")
    page.select_option("#sampler", "dpm++2")
    assert page.inner_text("#steps-value") == "20"
    drawn(page)
    assert page.locator("#gallery button").count() == 1


def test_by_keyboard_alone(address, new_page):
    page = new_page()
    ready(page, address)
    focus = "document.activeElement.id || document.activeElement.name"
    for wanted in ("label", "seed", "dice", "steps", "guidance"):
        page.keyboard.press("Tab")
        assert page.evaluate(focus) == wanted
        if wanted == "label":
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowRight")
        elif wanted == "seed":
            page.keyboard.type("12")  # a field that is reached by Tab is selected
        elif wanted == "steps":
            page.keyboard.press("Home")
            page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # sends the form
    status_becomes(page, "took")
    assert page.locator("#gallery button").inner_text().split("\n") == ["cross", "seed 12"]
    assert page.url.endswith("#class=cross&seed=12&steps=2&guidance=2&sampler=dpm%2B%2B2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_a_phone_and_a_laptop(scheme, width, address, new_page):
    page = new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, device_scale_factor=1)
    ready(page, address, **{"class": "circle", "steps": 2})
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("scrollTo(0, 0)")
    for name in ("#noisy", "#original", "#draw"):  # on a phone, the pictures and the button are seen at the same time
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] >= 0 and box["y"] + box["height"] <= 800, name
    assert page.locator("#draw").bounding_box()["height"] >= 40
    assert page.evaluate(_CONTRAST) >= 4.5
    unnamed = page.eval_on_selector_all(
        "canvas, button, input, select, progress",
        """all => all.filter(one => one.offsetParent && one.ariaHidden !== "true" &&
           !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).map(one => one.outerHTML)""",
    )
    assert unnamed == []


# The smallest contrast between a text and what is behind it (WCAG 2), over all texts of the page.
_CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    const colour = channels(getComputedStyle(one).backgroundColor);
    return colour[3] === 0 ? behind(one.parentElement) : colour;
  };
  const texts = [...document.querySelectorAll("body *")].filter((one) => one.offsetParent &&
    !one.closest(":disabled, script") && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return Math.min(...texts.map((one) => {
    const [a, b] = [luminance(channels(getComputedStyle(one).color)), luminance(behind(one))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""


# Where it computes, and what can go wrong


def test_threads_where_the_page_is_isolated(site, address, new_page, launch):
    threads = min(4, os.cpu_count())
    with served(site, isolated=True) as isolated:
        page = new_page()
        assert ready(page, isolated, steps=2) == f"wasm {threads}"
        drawn(page)
    assert ready(new_page(), address) == "wasm 1"
    # On a host that sends no headers, and is not this machine, the page isolates itself, once.
    elsewhere = address.replace("127.0.0.1", "pages.test")
    flags = ["--host-resolver-rules=MAP pages.test 127.0.0.1"]
    page = new_page(launch(*flags, f"--unsafely-treat-insecure-origin-as-secure={elsewhere.rstrip('/')}"))
    assert ready(page, elsewhere) == f"wasm {threads}"


@pytest.fixture(scope="module")
def graphics_card(launch):
    """A browser with a graphics card, which Chromium's SwiftShader imitates on the processor."""
    return launch("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


def test_a_graphics_card_draws_what_python_draws(pipeline, address, new_page, graphics_card):
    page = new_page(graphics_card)
    # By itself the page does not choose software that imitates a graphics card.
    assert ready(page, address, **{"class": "cross", "seed": 3, "steps": 6}) == "wasm 1"
    if not page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
        pytest.skip("this Chromium has no WebGPU in software")
    page.eval_on_selector("details", "more => { more.open = true; }")
    page.select_option("#device", "webgpu")
    page.wait_for_selector("body[data-ready='webgpu 1']")
    expected = of_python(pipeline, "cross", 3, num_inference_steps=6)
    assert np.abs(drawn(page) - expected).max() <= 2


def test_a_graphics_card_that_computes_wrongly_is_not_used(site, new_page, graphics_card, tmp_path):
    """The page compares an answer of the network with Python's. Here Python's answer is changed instead of the card's."""
    shutil.copytree(site, tmp_path / "site")
    model = json.loads((tmp_path / "site" / "model.json").read_text())
    model["check"]["prediction"] = [value + 0.05 for value in model["check"]["prediction"]]
    (tmp_path / "site" / "model.json").write_text(json.dumps(model))
    page = new_page(graphics_card)
    with served(tmp_path / "site") as address:
        ready(page, address)
        page.eval_on_selector("details", "more => { more.open = true; }")
        page.evaluate("() => delete document.body.dataset.ready")
        page.select_option("#device", "webgpu")
        page.wait_for_selector("body[data-ready]")
        assert page.get_attribute("body", "data-ready") == "wasm 1"


def answer(status, body):
    return lambda route: route.fulfill(status=status, body=body, content_type="text/html")


PAGE = "<!doctype html><title>Not here</title>" + "x" * 100
PROBLEMS = {
    "model.json missing": ("**/model.json", answer(404, PAGE), "model.json is missing beside this page."),
    "model.json is a page": ("**/model.json", answer(200, PAGE), "model.json is not what the export wrote."),
    "worker.js missing": ("**/worker.js", answer(404, PAGE), "worker.js could not be started."),
    "network missing": ("**/unet.onnx*", answer(404, PAGE), "is missing: the server answered 404. Is the whole folder"),
    "network is a page": ("**/unet.onnx*", answer(200, PAGE), "is not the file that was exported. It looks like a web page."),
    "runtime unreachable": ("**/runtime/*.wasm", lambda route: route.abort(), ".wasm could not be loaded."),
    "runtime is another": ("**/runtime/*.mjs", answer(200, "x" * 73054), "is not the file that was exported."),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_missing_is_said_in_words(problem, address, new_page):
    pattern, spoil, words = PROBLEMS[problem]
    page = new_page()
    page.context.route(pattern, spoil)
    page.goto(address)
    page.wait_for_selector("#state.problem")
    assert words in page.inner_text("#status") and page.is_disabled("#draw")
    if page.is_visible("#again"):  # once it is there, the reader can try again
        page.context.unroute(pattern)
        page.click("#again")
        page.wait_for_selector("body[data-ready]")


def test_a_page_that_takes_the_runtime_from_elsewhere_names_that_host(site, new_page, tmp_path):
    shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("runtime"))
    about = json.loads((tmp_path / "site" / "model.json").read_text())
    about["runtime"]["url"] = "https://runtime.invalid/dist/"
    (tmp_path / "site" / "model.json").write_text(json.dumps(about))
    page = new_page()
    with served(tmp_path / "site") as address:
        page.goto(address)
        page.wait_for_selector("#state.problem")
        assert "Is there a connection to runtime.invalid?" in page.inner_text("#status")


def test_browsers_and_places_where_it_cannot_work(site, address, new_page):
    page = new_page()
    page.goto((site / "index.html").as_uri())
    assert "This page was opened as a file" in page.inner_text("#status") and page.is_disabled("#draw")
    page = new_page(java_script_enabled=False)
    page.goto(address)
    assert "JavaScript, which is switched off" in page.inner_text("body")
    page = new_page()
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(address)
    assert "This browser has no WebAssembly" in page.inner_text("#status") and page.is_disabled("#draw")


def test_a_seed_that_is_none(address, new_page):
    page = new_page()
    ready(page, address)
    for text in ("-1", "1.5", "", "x", str(2**64)):
        page.fill("#seed", text)
        assert page.inner_text("#seed-hint") == "Expected a whole number from 0 to 18446744073709551615."
        page.click("#draw")
        assert page.is_enabled("#draw") and page.locator("#gallery button").count() == 0
    page.click("#dice")
    assert page.inner_text("#seed-hint") == "The same seed gives the same picture."


def test_a_model_without_names_or_null_label(new_page, tmp_path):
    """The page shows ids, and neither offers guidance nor pictures of no class."""
    pipeline = CondDDPMPipeline(make_unet("simple", in_channels=1, out_channels=1), DDPMScheduler(), class_dropout_prob=0.0)
    pipeline.scheduler = pipeline.make_scheduler(DEFAULT_SAMPLER)
    pipeline.set_progress_bar_config(disable=True)
    export_page(pipeline, tmp_path / "site", "grey", "grey", runtime=str(RUNTIME))
    page = new_page()
    with served(tmp_path / "site") as address:
        ready(page, address, **{"class": "class 2", "seed": 5, "steps": 6})
        assert page.locator(".chip").all_inner_texts() == ["class 0", "class 1", "class 2"]
        assert page.is_disabled("#guidance") and "cannot be guided" in page.inner_text("#guidance-hint")
        expected = of_python(pipeline, 2, 5, num_inference_steps=6)[..., None]
        assert np.abs(drawn(page) - expected).max() <= 2
        assert "class_labels=[2]" in page.inner_text("#python")
