"""Bad input on the command line: exit code 2 or 1, one clear message, no traceback."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_pipeline, make_unet

from cond_ddpm import install_hint, quickstart
from cond_ddpm.cli import COMMANDS, guarded, main, parse_train, settings_of
from cond_ddpm.config import TrainConfig
from cond_ddpm.config.presets import presets
from cond_ddpm.data.load import _all_digits
from cond_ddpm.evaluation.extractors import make_extractor
from cond_ddpm.processes import make_accelerator


@pytest.mark.parametrize(
    "arguments, code", [(["--help"], 0), ([], 2), (["paint"], 2), (["--version"], 0), (["train", "--help"], 0)]
)
def test_top_level(arguments, code, capsys):
    try:
        found = main(arguments)
    except SystemExit as exit:
        found = exit.code
    assert found == code
    printed = capsys.readouterr()
    if arguments == ["paint"]:
        commands = "quickstart, presets, data, train, sample, visualize, report, evaluate, demo, study, tune, publish"
        assert f"expected one of {commands}, export, ema, got 'paint'" in printed.err
    if arguments == ["train", "--help"]:
        assert "--learning_rate" in printed.out and "Images in an optimizer step" in printed.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["--host", "0.0.0.0"],
            "host: expected 127.0.0.1, or --password or --no_password beside it, because others can reach",
        ),
        (["--password", "x", "--no_password"], "no_password: expected no --password beside it"),
        (["--password", ""], "password: expected one that is not empty"),
        (["--port", "70000"], "port: expected from 0 to 65535, got 70000"),
    ],
)
def test_a_demo_for_others_needs_a_password_or_a_flag(arguments, words, capsys, monkeypatch):
    monkeypatch.delenv("COND_DDPM_PASSWORD", raising=False)
    with pytest.raises(SystemExit) as exit:
        main(["demo", *arguments])
    assert exit.value.code == 2 and words in capsys.readouterr().err


def test_a_demo_without_gradio_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("cond_ddpm.demo")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["demo"]) == 1
    words = 'pip install "cond_ddpm[demo]" (in a checkout: pip install ".[demo]").'
    assert f"error: demo: expected gradio, which is not installed; {words}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--bach_size", "8"], "unrecognized arguments: --bach_size 8; did you mean --batch_size?"),
        (["--num-epochs=8"], "unrecognized arguments: --num-epochs=8; did you mean --num_epochs?"),
        (["8"], "unrecognized arguments: 8; --help lists the flags."),
        (["--batch_size", "many"], "batch_size"),
        (["--batch_size", "0"], "batch_size: expected 1 or more, got 0"),
        (["--model", "large"], "model"),
        (["--config", "nowhere.yaml"], "File does not exist"),
        (["--max_train_steps", "1.5"], "max_train_steps"),
    ],
)
def test_flags_that_cannot_be_taken(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", *arguments])
    assert exit.value.code == 2
    assert words in capsys.readouterr().err


def test_a_setting_in_a_file_that_is_none(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("bach_size: 8\n")
    with pytest.raises(SystemExit) as exit:
        main(["train", "--config", str(tmp_path / "run.yaml")])
    assert exit.value.code == 2 and "got bach_size; did you mean batch_size?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dataset", "./nowhere"], "error: dataset: expected a Hub id, mnist5k or an existing path, got ./nowhere"),
        (["--label_column", "kind"], "error: label_column: expected 'kind', got the columns img (Image), label (ClassLabel)"),
        (["--train_split", "valid"], "split 'valid'"),
        (["--batch_size", "500"], "error: batch_size: expected at most the 80 training images, got 500"),
        (["--num_validation_images", "90"], "error: num_validation_images: expected at most half of the 96"),
        (["--unet.pos_dm", "16"], "error: unet.pos_dm: expected an argument of HybridUNet2DModel"),
        (["--unet.pos_dim", "wide"], "pos_dim"),
        (["--resolution", "9"], "error: sample_size: expected a multiple of 4"),
        (
            ["--report_to", "wandb"],
            "error: report_to: expected an installed tracker, got wandb, which is not; pip install wandb",
        ),
        (["--output_dir", "/dev/null/run"], "error: output_dir: expected a folder that can be written, got /dev/null/run"),
    ],
)
def test_settings_that_do_not_fit(arguments, words, shapes_parquet, tmp_path, capsys):
    common = ["--dataset", str(shapes_parquet), "--resolution", "8", "--batch_size", "8", "--num_validation_images", "16"]
    common += ["--max_train_steps", "1", "--num_inference_steps", "1"]  # should one of them be taken after all
    assert main(["train", *common, "--output_dir", str(tmp_path / "run"), *arguments]) == 1
    printed = capsys.readouterr().err
    assert words in printed and "Traceback" not in printed
    assert sum(line.startswith("error:") for line in printed.splitlines()) == 1


@pytest.mark.end_to_end
def test_the_script_says_it_in_one_line_too(tmp_path):
    command = [sys.executable, str(ROOT / "train_cond_ddpm.py"), "--dataset", "./nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: dataset: expected a Hub id")
    assert "Traceback" not in done.stderr


def test_a_traceback_when_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("COND_DDPM_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["train", "--dataset", "./nowhere", "--output_dir", str(tmp_path)])


def test_a_file_after_flags_would_override_them_and_is_refused(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"config": {"batch_size": 8}}')
    for arguments, words in (
        (["--batch_size", "8", "--config", "x.yaml"], "--config: expected it first"),
        (["--config", "x.yaml", "--config", "y.yaml"], "--config: expected it first and only once"),
        (["--config", str(tmp_path / "run.json")], "--config: expected a YAML file of settings"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["train", *arguments])
        assert exit.value.code == 2 and words in capsys.readouterr().err


def test_a_preset_is_taken_by_its_name_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder cannot be meant
    for name in ("quickstart", "hybrid_cifar10_cpu"):
        assert parse_train(["--config", name]) == parse_train(["--config", str(ROOT / f"configs/{name}.yaml")])
    for name in ("study", "tune"):
        with pytest.raises(SystemExit) as exit:
            main([name, "--config", name, "--print_config"])
        assert exit.value.code == 0 and f"output_dir: runs/{name}\n" in capsys.readouterr().out
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("seed: 5\n")
    assert parse_train(["--config", "quickstart", "--model", "simple"]) == TrainConfig(seed=5, model="simple")


def test_a_preset_that_is_none_is_one_line_that_lists_them(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", "--config", "hybrid"])
    usage, error = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and usage.startswith("usage: ")
    assert f"or a preset ({', '.join(presets())}), got hybrid. File does not exist." in error


def test_a_model_that_is_neither_here_nor_reachable_is_one_line_at_once(tmp_path):
    """The endpoint is read when huggingface_hub is imported, so it needs a process of its own."""
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "cond_ddpm.cli", "sample", "--output", "x.png", "--model"]
    done = subprocess.run([*command, "user/digits"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: model: there is no folder 'user/digits' here; as a Hub id it is not in the cache, and"
    )
    assert done.stderr.count("\n") == 1 and "--model cifar10" in done.stderr


def test_a_path_of_a_model_that_does_not_exist(tmp_path, capsys):
    for path in ("./runs/mine", str(tmp_path / "nowhere"), "runs/mine/pipeline", "nowhere/"):
        assert main(["sample", "--model", path, "--output", str(tmp_path / "x.png")]) == 1
        assert f"got {path}, which does not exist" in capsys.readouterr().err


def test_a_reader_that_has_enough_of_the_output_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "cond_ddpm.cli", "presets"], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_list_of_presets_is_what_their_heads_say(capsys):
    assert main(["presets"]) == 0
    first, *rows = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert first.split() == ["preset", "command", "cost", "result"]
    ends = [first.index(word) for word in ("command", "cost", "result")]
    assert all(row[end - 2 : end] == "  " and row[end] != " " for row in rows for end in ends)
    assert [row.split()[:2] for row in rows] == [[n, n if n in ("study", "tune") else "train"] for n in presets()]
    assert max(map(len, rows)) <= 120 and "not known" not in "".join(rows)
    (row,) = (row for row in rows if row.startswith("hybrid_cifar10_cpu "))
    head = (ROOT / "configs" / "hybrid_cifar10_cpu.yaml").read_text()
    assert f"# Cost: {row[ends[1] : ends[2]].strip()}. " in head and f"# Result: {row[ends[2] :]}. " in head


def test_a_quickstart_without_its_extra_is_one_line_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert main(["quickstart"]) == 1 and list(tmp_path.iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: quickstart: expected mlxtend (the digits)") and install_hint("mnist5k") in line


def test_a_quickstart_ends_with_commands_that_are_taken():
    lines = quickstart._next(Path("runs/my digits")).splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("  cond-ddpm ")]
    assert len(commands) == 5 and "runs/my digits/report.html" in lines[0]
    for name, *arguments in commands:
        command = COMMANDS[name]
        if command.kinds is not None:
            command, arguments = command.kinds[arguments[0]], arguments[1:]
        settings_of(command, arguments)


def test_a_quickstart_that_was_stopped_continues_as_its_advice_says(monkeypatch):
    def train(settings):
        raise ValueError(f"{settings.resume_from_checkpoint} of {settings.output_dir}")

    monkeypatch.setattr(quickstart, "find_spec", lambda name: name)
    monkeypatch.setattr("cond_ddpm.training.train", train)
    config = settings_of(COMMANDS["quickstart"], ["--resume_from_checkpoint", "latest"])
    with pytest.raises(ValueError, match="latest of runs/quickstart"):
        quickstart.quickstart(config)


@pytest.mark.hostile(20)
def test_an_error_does_not_command_the_terminal(capsys):
    def fails():
        raise ValueError("class_labels: expected \x1b[2J, got x\nsecond line")

    assert guarded(fails) == 1
    assert capsys.readouterr().err == "error: class_labels: expected \\x1b[2J, got x\nsecond line\n"


@pytest.mark.hostile(22)
def test_ctrl_c_before_training_has_begun_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert guarded(interrupted) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_help_of_every_command_costs_no_torch():
    """Each of its own program would take a while: in one, torch would be there from the first command that imports it."""
    script = """
import contextlib, sys
from cond_ddpm.cli import COMMANDS, KINDS, main
for words in (*([name] for name in COMMANDS), *(["visualize", kind] for kind in KINDS)):
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
print(sorted({"torch", "diffusers", "numpy", "yaml"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_command_takes_a_file_of_its_settings(tmp_path, shapes_parquet, capsys):
    (tmp_path / "x.yaml").write_text(f"model: {tmp_path}/nowhere\ndataset: {shapes_parquet}\noutput: {tmp_path}/x.png\n")
    (tmp_path / "nowhere").mkdir()
    assert main(["visualize", "neighbours", "--config", str(tmp_path / "x.yaml"), "--columns", "3"]) == 1
    assert "expected a pipeline folder" in capsys.readouterr().err


def _without(monkeypatch, *packages):
    """As if these packages were not installed."""
    for name in packages:
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
    _all_digits.cache_clear()  # a test before may have read them


@pytest.mark.parametrize(
    "packages, command, extra",
    [
        (["mlxtend"], ["quickstart"], "mnist5k"),
        (["mlxtend"], ["train", "--dataset", "mnist5k", "--output_dir", "{}/run"], "mnist5k"),
        (["optuna"], ["tune", "--config", f"{ROOT}/configs/tune.yaml"], "tune"),
        (["onnx", "onnxscript"], ["export", "--model", "{}/model", "--format", "onnx", "--output", "{}/out"], "onnx"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_a_command_whose_extra_is_missing_says_which_in_one_line(packages, command, extra, tmp_path, monkeypatch, capsys):
    make_pipeline(make_unet("simple")).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    _without(monkeypatch, *packages)
    assert main([argument.format(tmp_path) for argument in command]) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == lines[-1] and f"cond_ddpm[{extra}]" in errors[0]


@pytest.mark.parametrize(
    "features, package", [("dinov2", "transformers"), ("imagenet", "efficientnet_lite_pytorch"), ("fid", "torchmetrics")]
)
def test_an_extractor_whose_extra_is_missing_says_which(features, package, tmp_path, monkeypatch):
    _without(monkeypatch, package)
    backend = "inception" if features == "fid" else features
    with pytest.raises(ValueError, match=rf"^features: '{backend}' needs .*cond_ddpm\[{features}\]"):
        make_extractor(backend, None, None, None, tmp_path, torch.device("cpu"))


def test_the_default_tracker_that_is_missing_is_a_warning(monkeypatch):
    monkeypatch.setattr("cond_ddpm.processes.get_available_trackers", list)
    with pytest.warns(UserWarning, match="tensorboard is not installed, so nothing is logged to it; pip install tensorboard"):
        accelerator = make_accelerator(TrainConfig(batch_size=16))
    assert accelerator.log_with == []
