"""The published folder, its card and its check; publishing to a Hub on loopback, and the errors that can occur there."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import NAMES, ROOT, make_unet
from hub_server import TOKEN, HubServer

from cond_ddpm import CondDDPMPipeline, hub
from cond_ddpm.cli import main
from cond_ddpm.fingerprints import weights_checksum
from cond_ddpm.pipelines.pipeline_cond_ddpm import COMPANIONS

NAME = "someone/shapes"


def results_of(pipeline) -> dict:
    """As `cond-ddpm evaluate` writes them, made up, of a run that is made up too."""
    classes = {name: {"num_images": 10, "frechet_distance": 1.5, "accuracy": 0.75} for name in NAMES}
    figures = {"num_images": 30, "frechet_distance": 12.5, "frechet_distance_infinite": None, "kernel_distance": 0.25}
    figures |= {"precision": 0.5, "recall": 0.375, "label_accuracy": 0.75, "nearest_training_distance": 0.125}
    return {
        "training": {
            "dataset": "shapes",
            "dataset_on_hub": False,
            "num_images": 80,
            "num_validation_images": 16,
            "random_flip": True,
            "epoch": 4,
            "step": 20,
            "train_loss": 0.3,
            "val_loss": 0.25,
            "images_seen": 320,
            "training_flop": 1.5e9,
            "minutes": 2.5,
            "num_processes": 1,
            "device": "cpu",
            "mixed_precision": "bf16",
            "config": {
                "train_split": "train",
                "min_snr_gamma": 5.0,
                "use_ema": True,
                "ema_std": 0.05,
                "seed": 0,
                "timestep_sampling": "uniform",
                "class_dropout_prob": 0.1,
                "optimizer": "muon",
                "learning_rate": 6e-4,
                "lr_scheduler": "linear",
                "batch_size": 16,
                "guidance_scale": 2.0,
            },
        },
        "protocol": {
            "dataset": "shapes",
            "split": "train",
            "test_split": "test",
            "features": "classifier",
            "num_samples": 30,
            "split_images": 80,
            "seeds": [0, 29],
            "scheduler": "DDPMScheduler",
            "num_inference_steps": 3,
            "guidance_scale": 3.0,
            "repeats": 1,
            "weights_checksum": weights_checksum(pipeline.unet),
            "feature_extractor": {"backend": "ours", "version": "1", "checksum": "abc", "held_out_accuracy": 0.9},
        },
        "samples": {**figures, "classes": classes},
        "samples_std": None,
        "held_out_real": {**figures, "frechet_distance": 0.5, "label_accuracy": 0.9, "classes": classes},
        "warnings": ["30 samples are few."],
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """As training leaves it."""
    from diffusers import DDPMScheduler

    folder = tmp_path_factory.mktemp("published") / "pipeline"
    scheduler = DDPMScheduler(num_train_timesteps=20, timestep_spacing="trailing")
    pipeline = CondDDPMPipeline(
        make_unet("hybrid"), scheduler, dict(enumerate(NAMES)), class_dropout_prob=0.1, guidance_scale=2.0
    )
    results = {"training": results_of(pipeline)["training"]}
    pipeline.companions = {"results.json": json.dumps(results).encode()}
    pipeline.save_pretrained(folder)
    hub.complete(folder)
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return Path(shutil.copytree(published, tmp_path / "pipeline"))


@pytest.fixture
def server(monkeypatch):
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(hub.upload.time, "sleep", lambda seconds: None)
        yield server


@pytest.fixture
def quick_check(monkeypatch):
    """Skip loading in a separate process, which has its own tests."""
    monkeypatch.setattr(hub.checks, "load_without_package", lambda folder: [])


def _files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# The folder


@pytest.mark.end_to_end
def test_the_whole_folder_comes_back_from_loading_and_saving(folder, tmp_path):
    assert set(_files(folder)) == {
        *("model_index.json", "pipeline_cond_ddpm.py", "README.md", "results.json", "samples.png"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/cond_unet.py"),
        "scheduler/scheduler_config.json",
    }
    CondDDPMPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert _files(tmp_path / "again") == _files(folder)
    script = f"""
import sys
sys.modules["cond_ddpm"] = None
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
pipeline.save_pretrained({str(tmp_path / "without")!r})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _files(tmp_path / "without") == _files(folder)
    with pytest.raises(ValueError, match=r"companions: expected names among README.md"):
        CondDDPMPipeline.from_pretrained(folder).companions = {"notes.txt": b""}


def test_completing_again_changes_nothing(folder):
    before = _files(folder)
    hub.complete(folder)
    assert _files(folder) == before


# The card


def test_the_card_says_what_is_known_and_what_is_not(folder):
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    text = card.text
    assert card.data.library_name == "diffusers" and card.data.license is None and card.data.datasets is None
    assert {"diffusers", "class-conditional-image-generation", "ddpm"} <= set(card.data.tags)
    assert card.data.eval_results is None
    assert "The samples have not been measured." in text and "Not measured: Fréchet distance" in text
    assert (
        "| seed | 0 |" in text
        and "| compute | 2 minutes on 1 process(es), cpu, bf16; 320 images, about 1.5e+09 FLOP |" in text
    )
    assert "![samples](samples.png)" in text and "| 1 | square |" in text
    assert not re.search(r"TODO|\[More Information|None\b(?! means no particular class)|\{\{|nan", text)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, "README.md", "exec")
        assert 'revision="main"' in code


def test_measured_figures_are_in_the_metadata_with_their_protocol(folder):
    from huggingface_hub import ModelCard

    pipeline = CondDDPMPipeline.from_pretrained(folder)
    results = results_of(pipeline)
    (folder / "results.json").write_text(json.dumps(results))
    hub.complete(folder, NAME)
    card = ModelCard.load(folder / "README.md")
    figures = {result.metric_type: result for result in card.data.eval_results}
    assert figures["frechet_distance"].metric_value == 12.5 and figures["accuracy"].metric_value == 0.75
    assert "fid" not in figures  # that is Inception's
    config = figures["kid"].metric_config
    for words in ("30 samples", "seeds 0 to 29", "3 steps", "guidance 3", "weights abc", "90.0% accuracy on unseen"):
        assert words in config
    assert "| Fréchet distance | 12.5 | 0.5 |" in card.text and "| square | 0.75 | 0.75 | 1.5 | 1.5 |" in card.text
    assert "FID with Inception-v3" in card.text.partition("Not measured:")[2]
    assert "30 samples are few.\n\nThe whole protocol" in card.text  # a list ends at an empty line
    assert "the classifier takes 25% of them for another class" in card.text and f'from_pretrained("{NAME}"' in card.text
    assert "The default is 2.\n" in card.text  # the pipeline's own, whatever was measured
    assert card.data.model_name == "shapes"

    results["protocol"]["features"] = "inception"
    card = hub.model_card(pipeline, results, set(), NAME)
    assert "type: fid" in card and "FID with Inception-v3, as" not in card


def test_a_card_without_training_or_names_or_null_label():
    from diffusers import DDPMScheduler

    pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler(), class_dropout_prob=0.0)
    text = hub.model_card(pipeline, {}, set(), NAME)
    assert "not recorded" in text and "trained without a null label" in text and "class_labels=[0]" in text


def test_the_card_names_no_betas_that_the_schedule_has_not():
    from diffusers import DDPMScheduler

    for schedule, words in (("linear", "| linear, beta 0.0001 to 0.02, 20"), ("squaredcos_cap_v2", "| squaredcos_cap_v2, 20")):
        pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler(20, beta_schedule=schedule))
        assert words in hub.model_card(pipeline, {"training": results_of(pipeline)["training"]}, set(), NAME)


def test_a_note_on_the_training_images_is_in_the_card():
    from diffusers import DDPMScheduler

    pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler())
    training = {**results_of(pipeline)["training"], "dataset_note": "Photographs of one <b> street."}
    text = hub.model_card(pipeline, {"training": training}, set(), NAME)
    assert "\n\nPhotographs of one &#60;b&#62; street.\n\nAll settings" in text.partition("## Training")[2]


def test_a_card_with_text_of_its_owner_is_kept(folder):
    card = (folder / "README.md").read_text()
    own = card.replace(hub.MARKER, "").replace("## Training", "## Own")
    (folder / "README.md").write_text(own)
    hub.complete(folder, NAME)
    assert (folder / "README.md").read_text() == own


# The check


@pytest.mark.end_to_end
def test_a_good_folder_passes(folder):
    assert hub.check(folder) == []


def _spoil(folder, what):
    if what == "foreign":
        (folder / "optimizer.pt").write_bytes(b"")
    elif what == "missing":
        (folder / "unet" / "cond_unet.py").unlink()
    elif what == "token":
        with (folder / "README.md").open("a") as file:
            file.write(f"token: {TOKEN}")
    elif what in ("path", "json path"):
        name = {"path": "README.md", "json path": "results.json"}[what]
        text = {"path": "/home/me/data", "json path": '"weights": "/data/inception/fid.pt",'}[what]
        content = (folder / name).read_text()
        (folder / name).write_text(content.replace("{", "{" + text, 1) if what == "json path" else content + text)
    elif what == "own folder":
        with (folder / "README.md").open("a") as file:
            file.write(f"made in {folder}/x")
    elif what == "infinite":
        pipeline = CondDDPMPipeline.from_pretrained(folder)
        next(pipeline.unet.parameters()).data.flatten()[0] = float("inf")
        pipeline.save_pretrained(folder.with_name("other"))
        weights = "unet/diffusion_pytorch_model.safetensors"
        (folder / weights).write_bytes((folder.with_name("other") / weights).read_bytes())
    elif what == "code":
        (folder / "unet" / "cond_unet.py").write_text("import cond_ddpm")
    elif what == "other weights":
        results = results_of(CondDDPMPipeline.from_pretrained(folder))
        results["protocol"]["weights_checksum"] = "0" * 16
        (folder / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    "what, words",
    [
        ("foreign", "optimizer.pt does not belong in a pipeline folder"),
        ("missing", "unet/cond_unet.py is missing"),
        ("token", "README.md contains a token"),
        ("path", "README.md contains a path on this machine, /home/me"),
        ("json path", "results.json contains a path on this machine"),
        ("own folder", "README.md contains a path on this machine"),
        ("infinite", "its weights have values that are not finite, in positions"),
        pytest.param("code", "it does not load and sample without this package", marks=pytest.mark.end_to_end),
        ("other weights", "results.json was measured with other weights"),
    ],
)
def test_what_keeps_a_folder_from_being_published(folder, server, what, words, capsys, request):
    _spoil(folder, what)
    if what != "code":
        request.getfixturevalue("quick_check")
    assert words in "\n".join(hub.check(folder))
    (folder / "README.md").write_text((folder / "README.md").read_text().replace(hub.MARKER, ""))  # else it is overwritten
    if what not in ("missing", "code"):  # which completing makes good
        assert main(["publish", "--model", str(folder), "--repo_id", NAME]) == 1
        assert words in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize("at", range(1, 9))
def test_completing_a_folder_that_is_killed_leaves_one_that_loads(folder, monkeypatch, at):
    """At each file that is copied or put in its place."""
    calls = []

    def killed(original):
        def counted(*arguments, **named):
            calls.append(arguments)
            if len(calls) == at:
                raise KeyboardInterrupt  # nothing is cleaned up, as after a kill
            return original(*arguments, **named)

        return counted

    monkeypatch.setattr(os, "replace", killed(os.replace))
    monkeypatch.setattr(shutil, "copyfile", killed(shutil.copyfile))
    with pytest.raises(KeyboardInterrupt):
        hub.complete(folder)
    CondDDPMPipeline.from_pretrained(folder)
    monkeypatch.undo()
    hub.complete(folder)
    assert not folder.with_name(f"{folder.name}.partial").exists()


def test_what_is_no_pipeline_folder(tmp_path, server, capsys):
    for model in (tmp_path / "nowhere", tmp_path):
        assert main(["publish", "--model", str(model), "--repo_id", NAME]) == 1
        assert "expected a pipeline folder with a model_index.json" in capsys.readouterr().err


# Publishing


@pytest.mark.integration
def test_published_and_loaded_with_and_without_this_package(folder, server, tmp_path):
    """In fresh processes with fresh caches, and the same images; the command line tells nothing of the token."""
    env = {**os.environ, "HF_HOME": str(tmp_path / "publisher"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "cond_ddpm.cli", "publish", "--model", str(folder), "--repo_id", NAME, "--space"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    repo, space = server.repos[f"models/{NAME}"], server.repos[f"spaces/{NAME}"]
    assert len(repo.commits) == 2 and len(space.commits) == 2  # the first one creates the repository
    published = {name: content for name, content in repo.files.items() if name != ".gitattributes"}
    assert published == _files(folder)
    assert f"{server.url}/{NAME}\n" in done.stdout and TOKEN not in done.stdout + done.stderr
    assert not any(TOKEN.encode() in content for files in (repo.files, space.files) for content in files.values())
    lines = done.stdout[done.stdout.index("from diffusers") :].splitlines()[:3]
    assert f'revision="{repo.commits[-1][0]}"' in lines[1]
    assert repo.commits[-1][0].encode() in space.files["app.py"] and b"sdk: gradio" in space.files["README.md"]
    for name in [name for name in space.files if name.endswith(".py")]:
        compile(space.files[name], name, "exec")
    assert {"app.py", "cond_ddpm/demo/__init__.py", "cond_ddpm/demo/style.css"} < set(space.files)
    assert b"cond_ddpm" not in space.files["requirements.txt"]

    expected = CondDDPMPipeline.from_pretrained(folder)(["cross", 0], seeds=[0, 1], output_type="np").images
    whole = _files(folder)
    calls = {
        "without": (
            "DiffusionPipeline.from_pretrained(NAME, trust_remote_code=True)",
            f"DiffusionPipeline.from_pretrained(NAME, revision={repo.commits[-1][0]!r}, trust_remote_code=True)",
            "DiffusionPipeline.from_pretrained(snapshot_download(NAME), trust_remote_code=True)",
        ),
        "with": ("CondDDPMPipeline.from_pretrained(NAME)",),
    }
    for who, ways in calls.items():
        script = f"""
import sys, numpy
{"from cond_ddpm import CondDDPMPipeline" if who == "with" else 'sys.modules["cond_ddpm"] = None'}
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
NAME = {NAME!r}
for index, pipeline in enumerate(({", ".join(ways)},)):
    numpy.save(f"{who}{{index}}.npy", pipeline(["cross", 0], seeds=[0, 1], output_type="np").images)
    pipeline.save_pretrained(f"{who}{{index}}")
"""
        home = {**env, "HF_HOME": str(tmp_path / f"{who} home"), "HF_TOKEN": "", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=home, capture_output=True, text=True)
        assert done.returncode == 0, f"{who}: {done.stderr}"
        code = list((tmp_path / f"{who} home").rglob("modules/**/pipeline_cond_ddpm.py"))
        assert bool(code) == (who == "without")  # diffusers copies there what it is about to run
        for index, way in enumerate(ways):
            np.testing.assert_array_equal(np.load(tmp_path / f"{who}{index}.npy"), expected, err_msg=way)
            # Of a repository, diffusers does not fetch the card and the pictures.
            rest = {name: content for name, content in whole.items() if name not in COMPANIONS}
            assert _files(tmp_path / f"{who}{index}") == (whole if way.startswith("Cond") or "snapshot" in way else rest), way


def test_dry_run_uploads_nothing(folder, server, quick_check, capsys):
    assert hub.publish(folder, NAME, dry_run=True, space=True) is None
    shown = capsys.readouterr().out
    assert server.requests == [] and "nothing was uploaded" in shown
    assert "unet/diffusion_pytorch_model.safetensors" in shown and "app.py" in shown and "MB" in shown


@pytest.mark.end_to_end
@pytest.mark.skipif(tuple(map(int, version("torch").split(".")[:2])) < (2, 13), reason="torch 2.9 exports the hybrid wrongly")
def test_a_space_of_static_files(folder, server, quick_check, capsys):
    """The page that draws in the browser: shown by a dry run, uploaded after the model, and with the headers for threads."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason='pip install ".[onnx]"')
    arguments = ["publish", "--model", str(folder), "--repo_id", NAME, "--space", "static"]
    assert main([*arguments, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert server.requests == [] and f"Space {NAME}: " in shown and "unet.onnx" in shown and "index.html" in shown
    assert main(arguments) == 0
    assert f"{server.url}/spaces/{NAME}\n" in capsys.readouterr().out
    files = server.repos[f"spaces/{NAME}"].files
    assert {"index.html", "page.js", "model.json", "unet.onnx"} <= set(files) and not {"serve.py", "app.py"} & set(files)
    card = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert card["sdk"] == "static" and card["app_file"] == "index.html" and card["models"] == [NAME]
    assert card["custom_headers"] == {
        "cross-origin-embedder-policy": "require-corp",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "cross-origin",
    }
    assert json.loads(files["model.json"])["source"] == NAME
    assert not any(TOKEN.encode() in content or str(folder).encode() in content for content in files.values())


def test_publishing_again_replaces_and_removes(folder, server, quick_check):
    (folder / "loss.png").write_bytes(b"picture")
    hub.publish(folder, NAME)
    (folder / "loss.png").unlink()
    hub.publish(folder, NAME)
    assert "loss.png" not in server.repos[f"models/{NAME}"].files
    assert len(server.repos[f"models/{NAME}"].commits) == 3


def test_own_files_in_the_repository_are_kept(folder, server, quick_check):
    hub.publish(folder, NAME)
    repo = server.repos[f"models/{NAME}"]
    repo.commit({**repo.files, "LICENSE": b"mine", "use.ipynb": b"{}"})
    (folder / "notes.md").write_text("hello")
    hub.publish(folder, NAME)
    assert (repo.files["LICENSE"], repo.files["use.ipynb"], repo.files["notes.md"]) == (b"mine", b"{}", b"hello")


def test_private(folder, server, quick_check):
    hub.publish(folder, NAME, private=True)
    assert server.repos[f"models/{NAME}"].private
    with pytest.raises(ValueError, match="space: expected a public model"):
        hub.publish(folder, NAME, private=True, space=True)
    server.create("someone/open")
    with pytest.raises(ValueError, match="exists and is public"):
        hub.publish(folder, "someone/open", private=True)
    assert len(server.repos["models/someone/open"].commits) == 1


@pytest.mark.parametrize("files", [{"adapter.bin": b""}, {"model_index.json": b"{}", "unet/config.json": b"{}"}])
def test_a_repository_of_something_else_is_not_touched(folder, server, quick_check, files):
    repo = server.create(NAME, files=files)
    with pytest.raises(ValueError, match="expected a new repository, or one with such a pipeline"):
        hub.publish(folder, NAME)
    assert len(repo.commits) == 1


@pytest.mark.parametrize("name", ["shapes", "a/b/c", "someone/sha pes", "someone/-x", "some one/x", "someone/a..b"])
def test_names_that_are_not_allowed(folder, server, quick_check, name, capsys):
    assert main(["publish", "--model", str(folder), "--repo_id", name]) == 1
    assert "error: repo_id: expected USER/NAME" in capsys.readouterr().err
    assert server.requests == []


def _once(method, word, what):
    """A fault at the first such request."""
    left = [what]
    return lambda m, path: left.pop() if left and m == method and word in path else None


def _always(method, word, what):
    return lambda m, path: what if m == method and word in path else None


@pytest.mark.parametrize("word", ["create", "validate", "preupload", "commit"])
@pytest.mark.parametrize("what", [500, 503, "cut"])
def test_a_fault_that_passes_is_got_over(folder, server, quick_check, word, what):
    server.fault = _once("POST", word, what)
    hub.publish(folder, NAME)
    assert len(server.repos[f"models/{NAME}"].commits) == 2


@pytest.mark.parametrize(
    "method, word, what, error, words",
    [
        ("POST", "create", 401, PermissionError, "does not know this token (401); `hf auth login`"),
        ("POST", "create", 403, PermissionError, "may not write there (403)"),
        ("POST", "commit", 401, PermissionError, "does not know this token (401)"),
        ("POST", "commit", 403, PermissionError, "may not write there (403)"),
        ("POST", "commit", 409, OSError, "being changed by someone else just now (409)"),
        ("POST", "commit", 412, OSError, "being changed by someone else just now (412)"),
        ("POST", "commit", 500, OSError, "the Hub answered 500; repeat the command later. The Hub says: fault 500"),
        ("POST", "commit", "cut", ConnectionError, "it was cut"),
        ("GET", "api/models", "cut", ConnectionError, "it was cut"),
        ("POST", "commit", 413, OSError, "the Hub answered 413; nothing was published"),
    ],
)
def test_a_fault_that_stays_publishes_nothing_and_can_be_repeated(
    folder, server, quick_check, method, word, what, error, words, caplog, capsys
):
    server.fault = _always(method, word, what)
    with pytest.raises(error) as raised:
        hub.publish(folder, NAME)
    assert words in str(raised.value)
    repo = server.repos.get(f"models/{NAME}")
    assert repo is None or len(repo.commits) == 1  # at most an empty repository
    printed = capsys.readouterr()
    assert TOKEN not in str(raised.value) + caplog.text + printed.out + printed.err
    server.fault = lambda method, path: None
    hub.publish(folder, NAME)
    assert set(server.repos[f"models/{NAME}"].files) == {".gitattributes", *_files(folder)}


def test_an_answer_that_was_lost_after_the_commit_is_no_second_commit_of_other_files(folder, server, quick_check):
    """The commit is made, but the connection is cut before the answer: repeating changes nothing."""
    repo = server.create(NAME)
    seen = []

    def fault(method, path):
        if method == "POST" and "commit" in path and not seen:
            seen.append(repo.commit({".gitattributes": b"", **_files(folder)}))
            return "cut"
        return None

    server.fault = fault
    hub.publish(folder, NAME)
    assert {name: c for name, c in repo.files.items() if name != ".gitattributes"} == _files(folder)


def test_a_commit_of_someone_else_in_between_is_not_lost(folder, server, quick_check):
    repo = server.create(NAME)

    def fault(method, path):
        if method == "POST" and "preupload" in path:
            repo.commit({"README.md": b"theirs"})

    server.fault = fault
    with pytest.raises(OSError, match=r"being changed by someone else just now \(412\)"):
        hub.publish(folder, NAME)
    assert repo.files == {"README.md": b"theirs"}


def test_another_owner_and_no_token(folder, server, quick_check, monkeypatch, tmp_path):
    with pytest.raises(PermissionError, match=r"may not write there \(403\).*namespace other"):
        hub.publish(folder, "other/shapes")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "unknown" * 5)
    with pytest.raises(PermissionError, match=r"does not know this token \(401\)"):
        hub.publish(folder, NAME)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(PermissionError, match="uploads to the Hub need a token, and there is none"):
        hub.publish(folder, NAME)
    assert server.repos == {}


def test_no_connection(folder, quick_check, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub.upload.time, "sleep", lambda seconds: None)
    with pytest.raises(ConnectionError, match=r"no connection to http://127.0.0.1:9"):
        hub.publish(folder, NAME)


# From training


@pytest.mark.end_to_end
def test_training_pushes_when_it_is_over(server, quick_check, shapes_parquet, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train", "--dataset", str(shapes_parquet), "--resolution", "8", "--batch_size", "16", "--model", "simple"]
    arguments += ["--unet.block_out_channels", "[8,16]", "--unet.pos_dim", "16", "--num_validation_images", "16"]
    arguments += ["--num_train_timesteps", "20", "--max_train_steps", "3", "--report_to", "none", "--output_dir", str(run)]
    arguments += ["--save_images_epochs", "0", "--num_inference_steps", "2", "--guidance_scale", "2"]
    with pytest.raises(SystemExit):
        main([*arguments, "--push_to_hub", "true"])
    assert "push_to_hub, hub_model_id: expected both or neither" in capsys.readouterr().err
    server.fault = _always("GET", "whoami", 401)
    assert main([*arguments, "--push_to_hub", "true", "--hub_model_id", NAME]) == 1  # before any step
    assert "does not know this token (401)" in capsys.readouterr().err and not (run / "metrics.jsonl").exists()
    server.fault = lambda method, path: None
    assert main([*arguments, "--push_to_hub", "true", "--hub_model_id", NAME, "--hub_private_repo", "true"]) == 0
    repo = server.repos[f"models/{NAME}"]
    assert repo.private and {"README.md", "results.json", "samples.png", "loss.png"} <= set(repo.files)
    record = json.loads(repo.files["results.json"])["training"]
    assert record["step"] == 3 and record["images_seen"] == 48 and record["config"]["guidance_scale"] == 2
    assert str(tmp_path) not in json.dumps(record) and record["dataset"] == shapes_parquet.name
    assert not record["dataset_on_hub"]
    assert json.loads(repo.files["model_index.json"])["guidance_scale"] == 2


# What others have named


NAMES_OF_OTHERS = ["<!-- c", "a|b", "![x](http://evil)"]


@pytest.mark.hostile(20)
def test_names_of_others_are_text_in_the_card(tmp_path):
    """Of classes, the data set and the folder; metadata and code are still whole."""
    import ast

    from diffusers import DDPMScheduler
    from huggingface_hub import ModelCard

    hostile = [
        *NAMES_OF_OTHERS,
        "[x](javascript:a)",
        "{{ jinja }}",
        "`b`",
        "two\nlines",
        "<script>",
        'q"',
        "\x1b[31m",
        "---\nx: 1\n---",
    ]
    for first in range(len(hostile)):
        names = [hostile[(first + place) % len(hostile)] for place in range(3)]
        pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler(20), dict(enumerate(names)))
        results = results_of(pipeline)
        for what in ("samples", "held_out_real"):
            results[what]["classes"] = dict(zip(names, results[what]["classes"].values()))
        results["protocol"]["dataset"] = results["training"]["dataset"] = results["protocol"]["split"] = names[0]
        results["warnings"] = [f"at most 3 of {', '.join(names)}"]
        card = hub.model_card(pipeline, results, set(), names[1])
        text = card.partition("\n---\n")[2].replace(hub.MARKER, "")
        code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        prose = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL).replace("![samples](samples.png)", "")
        assert not re.search(r"<|\]\(|\{\{|\x1b|://|javascript:", prose)
        assert len(re.findall(r"^\| \d \| [^|\n]* \|$", prose, re.MULTILINE)) == 3
        assert len(re.findall(r"^\| [^|\n]* \| 0\.75 \| 0\.75 \| 1\.5 \| 1\.5 \|$", prose, re.MULTILINE)) == 3
        assert len(code) == 2 and names[1] in [n.value for n in ast.walk(ast.parse(code[0])) if isinstance(n, ast.Constant)]
        (tmp_path / "README.md").write_text(card)
        read = ModelCard.load(tmp_path / "README.md")
        assert read.data.library_name == "diffusers" and len(read.data.eval_results) > 3


@pytest.mark.hostile(7)
def test_figures_in_the_features_of_a_judge_that_is_not_trusted_are_not_metadata(folder):
    """The Hub would show them beside those of other models; the text of the card has them, with the warning."""
    pipeline = CondDDPMPipeline.from_pretrained(folder)
    results = results_of(pipeline)
    assert "model-index:" in hub.model_card(pipeline, results, set(), NAME)
    results["protocol"]["judges_not_trusted"] = "the convolutional classifier recognises 92% of 12 real images"
    text = hub.model_card(pipeline, results, set(), NAME)
    assert "model-index:" not in text and "| Fréchet distance | 12.5 |" in text
    results["protocol"]["features"] = "inception"  # which are not the judge's
    assert "model-index:" in hub.model_card(pipeline, results, set(), NAME)


@pytest.mark.hostile(7)
def test_the_card_says_how_many_images_of_each(folder):
    pipeline = CondDDPMPipeline.from_pretrained(folder)
    results = results_of(pipeline)
    assert "equally many of each class" in hub.model_card(pipeline, results, set(), NAME)
    results["samples"] = {**results["samples"], "num_images": 61}
    results["samples"]["classes"] = {
        name: {**row, "num_images": number} for (name, row), number in zip(results["samples"]["classes"].items(), (21, 20, 20))
    }
    text = hub.model_card(pipeline, results, set(), NAME)
    assert "equally many" not in text and "61 samples, 20 to 21 of each class" in text
    assert "30 held-out real images (split: test) are reported as the reference" in text
    assert "these two distances cannot be compared" in text
    assert "| Fréchet distance | 12.5 (of 61) | 0.5 (of 30) |" in text
    assert "| square | 0.75 | 0.75 | 1.5 (of 20) | 1.5 (of 10) |" in text


@pytest.mark.hostile(6)
@pytest.mark.parametrize(
    "sample_value, reference_value, words",
    [
        (4.0, 0.0, "that of held-out real images has not been measured"),  # as was written of images compared with themselves
        (4.0, None, "that of held-out real images has not been measured"),
        (4.0, 5.0, "copies would be much nearer"),
        (0.5, 5.0, "many samples may be copies"),
    ],
)
def test_the_card_says_of_copies_only_what_is_known(folder, sample_value, reference_value, words):
    pipeline = CondDDPMPipeline.from_pretrained(folder)
    results = results_of(pipeline)
    results["samples"] = {**results["samples"], "nearest_training_distance": sample_value}
    results["held_out_real"] = {**results["held_out_real"], "nearest_training_distance": reference_value}
    text = hub.model_card(pipeline, results, set(), NAME)
    assert words in text and ("much nearer" in text) == (reference_value == 5.0 and sample_value == 4.0)


def _broken(results):
    """JSON of other things, and results of other types in each place."""
    yield from (b"null", b"[]", b"3", b"{", b"\xff\xfe", b'{"samples": []}', b'{"warnings": "few"}', b'{"protocol": null}')
    for path in (
        ("samples", "classes"),
        ("samples", "nearest_training_distance"),
        ("protocol", "seeds"),
        ("protocol", "feature_extractor"),
        ("held_out_real", "classes"),
        ("training", "config"),
        ("training", "minutes"),
    ):
        for value in (None, [], "x"):
            changed = json.loads(json.dumps(results))
            changed[path[0]][path[1]] = value
            if (path[1], value) != ("nearest_training_distance", None):
                yield json.dumps(changed).encode()


@pytest.mark.hostile(22)
def test_results_of_something_else_are_said_in_one_line(folder, server, quick_check, capsys):
    pipeline = CondDDPMPipeline.from_pretrained(folder)
    for content in _broken(results_of(pipeline)):
        (folder / "results.json").write_bytes(content)
        code = main(["publish", "--model", str(folder), "--repo_id", NAME, "--dry_run"])
        printed = capsys.readouterr().err
        if code == 0:  # what is not used as it is
            assert b"config" in content
            continue
        assert code == 1 and printed.startswith("error: results.json: expected") and printed.count("\n") == 1, content
    assert server.requests == []


@pytest.mark.hostile(22)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(
    "content", [b"null", b"[]", b"3", b"\xff", b"{", b'{"_class_name": 3, "num_classes": "x", "num_train_timesteps": []}']
)
def test_settings_of_something_else_are_said_in_one_line(folder, server, quick_check, name, content, capsys):
    (folder / name).write_bytes(content)
    assert main(["publish", "--model", str(folder), "--repo_id", NAME, "--dry_run"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.hostile(22)
@pytest.mark.parametrize("start", [b"---\nlicense: \x1amit\n---\n", b"---\nlicense: mit\nlib\ntags: x\n---\n", b"\xff"])
def test_a_damaged_card_is_said_in_one_line(folder, server, quick_check, start, capsys):
    (folder / "README.md").write_bytes(start + (folder / "README.md").read_bytes())
    assert main(["publish", "--model", str(folder), "--repo_id", NAME, "--dry_run"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: README.md: expected the first lines of a model card") and printed.count("\n") == 1


@pytest.mark.hostile(23)
@pytest.mark.parametrize(
    "text",
    [
        *(
            "/mnt/corp/alice/data",
            "see /srv/models.",
            "(/data/x/y.npz)",
            "D:\\data\\corp",
            "d:/corp/x",
            "\\\\server\\share\\x",
            "~/data/x",
        ),
        *(
            "~alice/runs",
            "file:///etc/x",
            "weights=/opt/w.pt/x",
            "path:/scratch/u/alice",
            "//server/share/x",
            "`/workspace/me/run`",
        ),
    ],
)
@pytest.mark.parametrize("name", ["README.md", "results.json"])
def test_paths_of_a_machine_are_found(folder, name, text):
    content = (folder / name).read_text()
    if name == "results.json":
        content = json.dumps({**json.loads(content), "note": f"from {text} on"})
        content = content.replace("/", "\\/")  # which is the same in JSON
    (folder / name).write_text(content if name == "results.json" else f"{content}\nfrom {text} on\n")
    assert [line for line in hub.check(folder) if f"{name} contains a path on this machine" in line]


@pytest.mark.hostile(23)
def test_what_is_no_path_of_a_machine_passes(folder, quick_check):
    """URLs, relative paths, links of a site, ratios, HTML; and the code that is published with a model."""
    texts = [
        "https://huggingface.co/user/model/blob/main/x.py",
        "http://127.0.0.1:9/a/b?c=/d/e",
        "s3://bucket/a/b",
        "./runs/x/y",
    ]
    texts += [
        "../a/b/c",
        "runs/quickstart/pipeline",
        "and/or/else",
        "1/2/3",
        "[x](/user/model)",
        "</b></i>",
        "<br/>",
        "a / b / c",
    ]
    texts += [
        "2024/01/02",
        "images/s",
        "~5 images/s",
        "~~old/new~~",
        "uoft-cs/cifar10",
        "note a:\nb",
        "I/O",
        "https://x.org/~me/y",
    ]
    texts += ["9:30", "a: b", "hf_hub_download", "sk-learn", "ghp_", "hf_transfer"]
    with (folder / "README.md").open("a") as file:
        file.write("\n".join(texts))
    (folder / "results.json").write_text(json.dumps({**json.loads((folder / "results.json").read_text()), "notes": texts}))
    assert hub.check(folder) == []


@pytest.mark.hostile(23)
@pytest.mark.parametrize(
    "token",
    [
        *("hf_" + "a1B2" * 9, "hf_oauth_eyJhbGci" + "a1B2" * 9 + ".b-c_d", "api_org_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
        *("github_pat_" + "a1B2_" * 9, "AKIA" + "A1B2" * 4, "-----BEGIN RSA PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----"),
        *("gho_" + "a1B2" * 9, "glpat-" + "a1B2" * 5, "xoxb-" + "1234-" * 5, "-----BEGIN OPENSSH PRIVATE KEY-----"),
    ],
)
def test_tokens_are_found(folder, token):
    for name in ("README.md", "results.json"):
        before = (folder / name).read_bytes()
        note = f"x={token} " if name == "README.md" else json.dumps({**json.loads(before), token: "x"})
        (folder / name).write_text(before.decode() + note if name == "README.md" else note)
        assert f"{name} contains a token" in "\n".join(hub.check(folder))
        (folder / name).write_bytes(before)
