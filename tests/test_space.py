"""The demo Space, run: in a fresh environment with the packages that it pins, from a Hub on loopback, without this package."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import NAMES, ROOT, make_pipeline, make_unet
from hub_server import TOKEN, HubServer

from cond_ddpm import hub
from cond_ddpm.hub import upload

NAME = "someone/shapes"


@pytest.fixture
def space(tmp_path, monkeypatch):
    """The Hub, and the files of the Space of a tiny model that is published there."""
    pipeline = make_pipeline(make_unet("hybrid"))
    pipeline.scheduler = pipeline.make_scheduler("dpm++2")
    pipeline.save_pretrained(tmp_path / "model")
    hub.complete(tmp_path / "model")
    monkeypatch.setattr(upload, "check", lambda folder: [])  # another test runs it
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.publish(tmp_path / "model", NAME, space=True, say=lambda line: None)
        yield server, pipeline


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_pins_are_those_that_were_tried(hardware):
    files = upload._space_files(NAME, "COMMIT", hardware)
    tried = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)
    assert all(tried[name] == version for name, version in upload.SPACE_PINS.items())
    assert f"gradio[mcp]=={upload.SPACE_GRADIO}" in (ROOT / "Makefile").read_text()
    card = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert card["sdk"] == "gradio" and card["sdk_version"] == upload.SPACE_GRADIO and card["app_file"] in files
    assert (
        card["python_version"] == "3.12.12"
        and card["suggested_hardware"] == {"cpu": "cpu-basic", "gpu": "zero-a10g"}[hardware]
    )
    lines = files["requirements.txt"].decode().splitlines()
    (torch,) = (line for line in lines if line.startswith("torch=="))
    assert ("+cpu" in torch) == (hardware == "cpu") and ("spaces" in lines) == (hardware == "gpu")
    assert tuple(map(int, re.findall(r"\d+", torch)[:2])) <= (2, 13)  # the newest that ZeroGPU has


@pytest.mark.integration
def test_the_space_runs_with_its_pins(space, tmp_path):
    server, pipeline = space
    folder = tmp_path / "space"
    for name, content in server.repos[f"spaces/{NAME}"].files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, env=kept)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "0"]
    done = subprocess.run([*install, "-r", folder / "requirements.txt"], capture_output=True, text=True, env=kept)
    assert done.returncode == 0, done.stderr

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**kept, "HF_HOME": str(tmp_path / "home"), "GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen([python, "app.py"], cwd=folder, env=env, stdout=file, stderr=file) as app:
        try:
            script = f"""
import json, time, numpy, gradio_client
from PIL import Image
for wait in range(300):
    try:
        client = gradio_client.Client("http://127.0.0.1:{port}", verbose=False)
        break
    except Exception:
        time.sleep(1)
path = client.predict(class_names=["cross"], number=2, seed=4, steps=3, guidance_scale=2, sampler="", api_name="/generate")
facts = json.loads(client.predict(api_name="/model_facts"))
print(json.dumps([numpy.asarray(Image.open(path)).tolist(), facts]))
"""
            done = subprocess.run([python, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        finally:
            app.terminate()
    assert done.returncode == 0, done.stderr + log.read_text()
    sheet, facts = json.loads(done.stdout)
    wanted = pipeline(
        ["cross"], num_images_per_label=2, seeds=[4, 5], num_inference_steps=3, guidance_scale=2.0, output_type="np"
    )
    width = wanted.images.shape[2]
    for number, image in enumerate(wanted.images):
        rows = [row[number * width : (number + 1) * width] for row in sheet]
        assert abs(image * 255 - rows).max() <= 1
    assert facts["classes"] == NAMES and facts["model"] == NAME
    found = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, env=kept).stdout
    assert "cond_ddpm" not in found and "cond-ddpm" not in found
    assert not list(Path(tmp_path / "venv").rglob("nvidia*")), "CPU hardware got torch with CUDA"
