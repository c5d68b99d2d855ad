"""The demo without a browser: what is refused, the same pictures for all, a visitor who leaves, the API and MCP.

gradio is not in the environment of the other tests, because it needs an older Pillow: `make demo-tests` runs this file and
tests/test_demo_browser.py in one that has it.
"""

import asyncio
import base64
import gc
import io
import json
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from conftest import NAMES, make_pipeline, make_unet

pytest.importorskip("gradio", reason="gradio is not installed here: `make demo-tests` installs cond_ddpm[demo]")

import gradio_client
from PIL import Image

import cond_ddpm.demo.studio as studio_module
from cond_ddpm.demo import Limits, Model, Studio, launch, make_demo, markup
from cond_ddpm.demo.limits import Refusal, read_picture
from cond_ddpm.demo.measured import measured_page
from cond_ddpm.demo.studio import Step

# The server and the clients run in threads, and leave sockets and loops to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SMALL = Limits(upload_bytes=20_000, upload_pixels=10_000)
LIMITS = Limits(images=8, steps=20, forwards=2_000, waiting=4)


def new_pipeline(seed=0):
    pipeline = make_pipeline(make_unet("hybrid", seed))
    pipeline.scheduler = pipeline.make_scheduler("dpm++2")
    return pipeline


@pytest.fixture(scope="module")
def studio():
    pipelines = {"shapes": new_pipeline(), "other": new_pipeline(1)}
    lines = "pipeline = pipelines['shapes']"
    models = [Model(name, lambda pipeline=pipeline: pipeline, lines) for name, pipeline in pipelines.items()]
    studio = Studio(models, LIMITS)
    studio.pipelines = pipelines
    return studio


def drawn(studio, model="shapes", **changes):
    settings = {"steps": 3, "sampler": "", "guidance": 2.0, "low": 0, "high": 0} | changes
    arguments = studio.arguments([0, 2], [4, 5], *settings.values())
    *steps, output = studio.draw(model, **arguments)
    assert all(isinstance(step, Step) for step in steps) and [step.index for step in steps] == list(
        range(1, steps[0].total + 1)
    )
    return arguments, markup.pixels(output.images)


# What may be asked for


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps: expected a whole number from 1 to 20, got 0"),
        ({"steps": 2.5}, "got 2.5"),
        ({"steps": float("nan")}, "got nan"),
        ({"steps": None}, "got None"),
        ({"steps": "9" * 99}, "and so on"),
        ({"sampler": "euler2"}, "sampler: expected one of ddpm, ddim"),
        ({"guidance": -1}, "guidance: expected a number from 0 to 20, got -1"),
        ({"guidance": float("inf")}, "got inf"),
        ({"low": 3, "high": 2}, "the lower noise level first, got 3 and 2"),
        ({"low": -1, "high": 2}, "guide from: expected a number from 0"),
    ],
)
def test_settings_are_refused_in_words(studio, changes, words):
    settings = {"steps": 3, "sampler": "", "guidance": 2.0, "low": 0, "high": 0} | changes
    with pytest.raises(Refusal, match=words):
        studio.arguments([0], [4], *settings.values())


def test_too_much_is_refused_in_words(studio):
    with pytest.raises(Refusal, match="pictures: expected a whole number from 1 to 8, got 9"):
        studio.seeds(0, 9)
    with pytest.raises(Refusal, match="seed: expected a whole number from 0 to 2147483647"):
        studio.seeds(2**31, 1)
    with pytest.raises(Refusal, match="at most 8 altogether, got 3 classes x 4"):
        studio.arguments([0, 1, 2], [0, 1, 2, 3], 3, "", 2, 0, 0)
    call = studio.arguments([0], [0, 1, 2, 3], 20, "heun", 2, 0, 0)  # 4 pictures x 20 steps x 2 x 2
    studio.check_cost(call)
    with pytest.raises(Refusal, match="this asks for 2,240 passes through the network, and one request may take 2,000"):
        studio.check_cost(*[call] * 7)
    with pytest.raises(Refusal, match="class: expected names among circle, square, cross, got triangle"):
        studio.labels(["triangle"])
    for wrong in (True, 3, -1, None, {"path": "/etc/passwd"}, "7" * 200):
        with pytest.raises(Refusal):
            studio.labels([wrong])
    assert studio.labels([]) is None and studio.labels("cross") == [2] and studio.labels(["cross", 0, 2]) == [2, 0]


def _bytes(image, kind="PNG", **arguments):
    file = io.BytesIO()
    image.save(file, kind, **arguments)
    return file.getvalue()


def _png_of(side):
    """The beginning of a PNG file that claims to have so many pixels a side."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"x")


def test_uploads_are_decoded_safely(tmp_path):
    def read(content, name="x.png", limits=SMALL):
        (tmp_path / name).write_bytes(content)
        return read_picture(tmp_path / name, 8, 3, limits)

    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    middle = read(_bytes(wide))[:, :, 2:6]
    np.testing.assert_allclose(middle, np.broadcast_to(np.array([0, 0, 255])[:, None, None], middle.shape), atol=4)
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (read(_bytes(clear)) == 255).all()  # what is transparent is white
    grey = read_picture(tmp_path / "x.png", 8, 1, Limits())
    assert grey.shape == (1, 8, 8)
    exif = Image.Exif()
    exif[274] = 3  # upside down
    tall = Image.new("RGB", (16, 16), "white")
    tall.paste("black", (0, 0, 16, 8))
    turned = read(_bytes(tall, "JPEG", exif=exif))
    assert turned[:, 0].min() > 200 and turned[:, -1].max() < 50
    with pytest.raises(Refusal, match=r"at most 0\.01 million pixels, got 101 x 100"):
        read(_bytes(Image.new("1", (101, 100))))
    with pytest.raises(Refusal, match=r"at most 0\.02 MB"):
        read(bytes(20_001))
    for side, words in {9_000: "got 9000 x 9000", 50_000: "got many more"}.items():  # in a few bytes: never decoded
        with pytest.raises(Refusal, match=f"at most 25 million pixels, {words}"):
            read(_png_of(side), limits=Limits())
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    pdf = b"%PDF-1.4 /Type /Catalog"
    for content in (b"", svg, pdf, b"%!PS-Adobe-3.0 EPSF-3.0", _bytes(wide)[:-60], _bytes(wide, "GIF"), _bytes(wide, "TIFF")):
        with pytest.raises(Refusal, match="expected a whole PNG, JPEG, WEBP or BMP file, got one that cannot be read"):
            read(content)


# The pictures


@pytest.mark.parametrize("sampler", ["", "ddim", "heun", "dpm++sde"])
def test_the_shown_lines_draw_the_same_pictures(studio, sampler):
    arguments, images = drawn(studio, sampler=sampler, low=0.1, high=0)
    code = studio.code("shapes", arguments)
    names = {"pipelines": studio.pipelines}
    exec(code, names)
    assert "['circle', 'cross']" in code and 'guidance_interval=(0.1, float("inf"))' in code
    for ours, theirs in zip(images, names["images"], strict=True):
        np.testing.assert_array_equal(markup.picture(ours), theirs)


def test_callers_at_once_get_the_pictures_of_one_after_the_other(studio):
    wanted = {model: drawn(studio, model)[1] for model in studio.pipelines}
    found, failures = [], []

    def call(model):
        try:
            found.append((model, drawn(studio, model)[1]))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(model,)) for model in [*wanted] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(found) == 8
    for model, images in found:
        np.testing.assert_array_equal(images, wanted[model])
    assert (wanted["shapes"] != wanted["other"]).any()


def test_who_leaves_frees_the_work(studio):
    drawn(studio)  # starts tqdm's own thread
    before = threading.active_count()
    calls = studio.draw("shapes", **studio.arguments([0], [1], 20, "", 2, 0, 0))
    assert next(calls).index == 1
    assert threading.active_count() == before + 1
    calls.close()
    assert studio._turn.acquire(timeout=60)  # the call ends at its next step
    studio._turn.release()
    drawn(studio)
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_who_leaves_without_a_word_frees_the_work(studio, monkeypatch):
    monkeypatch.setattr(studio_module, "SECONDS_UNTIL_LEFT", 0.2)
    calls = studio.draw("shapes", **studio.arguments([0], [1], 20, "", 2, 0, 0))
    assert next(calls).index == 1
    assert studio._turn.acquire(timeout=60)
    studio._turn.release()
    with pytest.raises(Refusal, match="given up"):
        list(calls)


def test_an_error_of_the_pipeline_reaches_the_caller(studio):
    with pytest.raises(ValueError, match="num_inference_steps: expected 1 to 1000"):
        list(studio.draw("shapes", class_labels=["cross"], seeds=[0], num_inference_steps=1001))
    drawn(studio)


def test_models_that_differ_are_not_compared(studio):
    other = make_pipeline(make_unet("simple", num_classes=3, sample_size=16))
    both = Studio([studio.models[0], Model("wide", lambda: other, "")], LIMITS)
    with pytest.raises(Refusal, match="wide: expected the sample_size of shapes, 8, got 16"):
        list(both.draw("wide", **both.arguments([0], [1], 3, "", 2, 0, 0)))


def test_measured_panel_escapes_and_survives_any_results(studio, monkeypatch):
    pages = {}
    for name, content in {
        "none": b"",
        "broken": b"[1, 2",
        "list": b"[1]",
        "odd": b'{"samples": {"precision": "<script>", "classes": {"<b>x</b>": 3, "y": {"accuracy": NaN}}}, "protocol": 3}',
    }.items():
        monkeypatch.setattr(studio, "companion", lambda file, content=content: content if file == "results.json" else None)
        pages[name] = measured_page(studio)
    assert all("was not measured" in pages[name] for name in ("none", "broken", "list"))
    assert "<script>" not in pages["odd"] and "&lt;b&gt;x" in pages["odd"] and "not known" in pages["odd"]


def test_models_and_moments_of_the_command(tmp_path, monkeypatch):
    from cond_ddpm import commands, ema
    from cond_ddpm.config.demo import DemoConfig

    run = tmp_path / "runs" / "mine"
    pipeline = new_pipeline()
    pipeline.save_pretrained(run / "pipeline")
    parameters = dict(pipeline.unet.named_parameters())
    averages = ema.PowerEMA(parameters.values(), [0.05, 0.1])
    for step in range(1, 9):
        for parameter in parameters.values():
            parameter.data.add_(0.01)
        averages.update(parameters.values(), step)
        if step % 4 == 0:
            ema.save_snapshot(averages, parameters, run / "ema", step)
    monkeypatch.chdir(tmp_path)
    model, moment = commands._demo_models(DemoConfig(model="newest"))
    assert (model.name, moment.name) == ("runs/mine", "runs/mine, step 4")
    weights = ema.combine_snapshots(run / "ema", 0.05, 4)[0]
    loaded = moment.load().unet.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    assert "cond-ddpm ema --run runs/mine --std 0.05 --step 4" in moment.lines
    names = {}
    exec(model.lines, names)
    assert names["pipeline"].id2label == dict(enumerate(NAMES))
    (default,) = commands._demo_models(DemoConfig())
    assert default.name == "cifar10" and "pretrained('cifar10')" in default.lines
    models = commands._demo_models(DemoConfig(model="runs/mine", compare=["runs/mine/pipeline", "cifar10", "cifar10"]))
    assert [model.name for model in models] == [
        *("runs/mine", "runs/mine, step 4", "runs/mine/pipeline", "runs/mine/pipeline, step 4", "cifar10")
    ]
    monkeypatch.chdir(run)
    monkeypatch.setattr(commands, "pretrained_pipelines", dict)
    assert commands._demo_models(DemoConfig())[0].name == "."
    monkeypatch.chdir(run / "pipeline" / "unet")
    with pytest.raises(ValueError, match="found none; train one by `cond-ddpm quickstart`, or name one"):
        commands._demo_models(DemoConfig())


# Over the network

_PAGES = {}


@pytest.fixture(scope="module")
def address(studio):
    page = make_demo(studio.models, LIMITS)
    launch(page, prevent_thread_lock=True, quiet=True)
    address = page.local_url.rstrip("/")
    _PAGES[address] = page
    yield address
    page.close()
    gc.collect()  # what the server and the clients leave, while warnings of it are ignored


@pytest.fixture(scope="module")
def client(address):
    return gradio_client.Client(address, verbose=False)


def _sheet(path):
    return np.asarray(Image.open(path))


@pytest.mark.end_to_end
def test_api_gives_the_pipelines_pictures(studio, client):
    path = client.predict(
        class_names=["circle", "cross"], number=2, seed=4, steps=3, guidance_scale=2, sampler="", api_name="/generate"
    )
    _, images = drawn(studio)
    np.testing.assert_array_equal(_sheet(path), markup.sheet(images, 2))
    again = client.predict(class_names=["cross"], steps=1, api_name="/generate")
    other = client.predict(class_names=["cross"], steps=1, api_name="/generate")
    assert Image.open(again).info["request"] != Image.open(other).info["request"]  # so no file is written while it is read
    facts = json.loads(client.predict(api_name="/model_facts"))
    assert facts["classes"] == NAMES and facts["most_pictures"] == 8 and facts["model"] == "shapes"


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"class_names": ["triangle"]}, "triangle"),
        ({"number": 9}, "9|8"),
        ({"number": 8, "class_names": ["circle", "cross"]}, "at most 8 altogether"),
        ({"steps": 10**9}, "20"),
        ({"sampler": "../../etc/passwd"}, "sampler: expected one of"),
        ({"guidance_scale": 1e300}, "20"),
    ],
)
def test_api_refuses_in_words(client, arguments, words):
    with pytest.raises(Exception, match=words) as raised:
        client.predict(**{"class_names": ["cross"], "steps": 3, **arguments}, api_name="/generate")
    assert "Traceback" not in str(raised.value) and ".py" not in str(raised.value)


@pytest.mark.end_to_end
def test_a_failure_shows_neither_traceback_nor_path(studio, client, monkeypatch, caplog):
    monkeypatch.setattr(
        "cond_ddpm.demo.studio.Studio.draw", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("/secret/path.py"))
    )
    with pytest.raises(Exception, match="failed in the server") as raised:
        client.predict(class_names=["cross"], steps=3, api_name="/generate")
    assert "secret" not in str(raised.value) and "secret" in caplog.text


@pytest.mark.end_to_end
def test_only_documented_functions_and_no_files_are_reachable(client, address):
    import httpx

    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/generate", "/model_facts"}
    for path in ("/etc/passwd", "setup.cfg", "/proc/self/environ"):
        assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404)
    large = httpx.post(f"{address}/gradio_api/upload", files={"files": ("x.png", bytes(LIMITS.upload_bytes + 1))})
    assert large.status_code == 413


@pytest.mark.end_to_end
def test_a_client_that_cancels_frees_the_work(studio, client, address, monkeypatch):
    served = _PAGES[address].studio
    draw, forward, passes, left = served.draw, served.pipeline.unet.forward, [], threading.Event()

    def watched(*arguments, **named):
        try:
            yield from draw(*arguments, **named)
        finally:
            left.set()

    def slow(*arguments, **named):
        passes.append(None)
        left.wait(0.5)  # long enough for the client's word to arrive before the 20th step, and no longer than it takes
        return forward(*arguments, **named)

    monkeypatch.setattr(served, "draw", watched)
    monkeypatch.setattr(served.pipeline.unet, "forward", slow)
    jobs = [client.submit(class_names=["cross"], number=8, steps=20, api_name="/generate") for _ in range(2)]
    deadline = time.monotonic() + 60
    while len(passes) < 4 and time.monotonic() < deadline:  # then the server has asked for the second step, at the least
        time.sleep(0.01)
    for job in jobs:
        job.cancel()
    assert left.wait(60)
    with served._turn:  # the call has ended
        assert len(passes) < 20
    monkeypatch.undo()
    path = client.predict(class_names=["circle", "cross"], number=2, seed=4, steps=3, guidance_scale=2, api_name="/generate")
    np.testing.assert_array_equal(_sheet(path), markup.sheet(drawn(studio)[1], 2))


@pytest.mark.end_to_end
def test_a_full_queue_answers_in_words(studio, address):
    """Four may wait; the turn is taken meanwhile, so that the fifth or sixth finds the queue full."""
    client = gradio_client.Client(address, verbose=False)
    with _PAGES[address].studio._turn:
        jobs = [client.submit(class_names=["cross"], steps=1, api_name="/generate") for _ in range(8)]
        deadline = time.monotonic() + 60
        while sum(job.done() for job in jobs) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    outcomes = [job.exception(timeout=60) for job in jobs]
    refused = [str(error) for error in outcomes if error is not None]
    assert refused and all("queue is full" in text.lower() for text in refused)
    assert len(refused) < 8


@pytest.mark.end_to_end
def test_nothing_is_reachable_without_the_password(studio):
    import httpx

    page = make_demo(studio.models, LIMITS)
    launch(page, prevent_thread_lock=True, quiet=True, auth=("demo", "right"))
    url = page.local_url.rstrip("/")
    try:
        for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x", "/gradio_api/file=x"):
            assert httpx.get(url + path).status_code == 401, path
        assert httpx.post(f"{url}/gradio_api/upload", files={"files": ("x.png", b"x")}).status_code == 401
        call = {"data": [["cross"], 1, 0, 1, 1, ""], "fn_index": 0, "session_hash": "x"}
        assert httpx.post(f"{url}/gradio_api/queue/join", json=call).status_code == 401
        assert httpx.post(f"{url}/gradio_api/mcp/", json={}).status_code in (401, 404, 405)
        with pytest.raises(Exception, match="Could not login"):
            gradio_client.Client(url, auth=("demo", "wrong"), verbose=False)
        client = gradio_client.Client(url, auth=("demo", "right"), verbose=False)
        assert json.loads(client.predict(api_name="/model_facts"))["model"] == "shapes"
    finally:
        page.close()
        gc.collect()


@pytest.mark.end_to_end
def test_an_mcp_client_calls_it(studio, address):
    pytest.importorskip("mcp", reason='mcp is not installed; pip install "gradio[mcp]"')
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk():
        async with (
            streamable_http_client(f"{address}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            arguments = {"class_names": ["circle", "cross"], "number": 2, "seed": 4, "steps": 3, "guidance_scale": 2}
            name = next(name for name in tools if name.endswith("generate"))
            good = await session.call_tool(name, arguments)
            bad = await session.call_tool(name, {**arguments, "class_names": ["triangle"]})
            return tools, good, bad

    tools, good, bad = asyncio.run(talk())
    assert len(tools) == 2
    tool = next(tool for name, tool in tools.items() if name.endswith("generate"))
    assert "circle, square, cross" in tool.description and "Returns one PNG" in tool.description
    described = tool.inputSchema["properties"]
    assert all(described[name].get("description") for name in ("class_names", "number", "seed", "steps", "guidance_scale"))
    assert described["steps"]["type"] in ("number", "integer")
    image = next(part for part in good.content if part.type == "image")
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image.data)))), markup.sheet(drawn(studio)[1], 2)
    )
    assert bad.isError and "triangle" in bad.content[0].text and "Traceback" not in bad.content[0].text
