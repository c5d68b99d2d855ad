"""Settings: flags, files, presets and bounds; each is explained, and errors are one line."""

import dataclasses
import importlib
import re
from dataclasses import fields
from typing import get_args

import pytest
import yaml
from conftest import ROOT

from cond_ddpm.cli import COMMANDS, KINDS, main, parse_train
from cond_ddpm.config import TrainConfig, checked_arguments, may_change_at_resume, setting
from cond_ddpm.config.evaluation import EvaluateConfig
from cond_ddpm.config.flags import parse
from cond_ddpm.config.sampling import SampleConfig, Sampler, TimestepSpacing
from cond_ddpm.config.settings import names_of
from cond_ddpm.config.training import TrainCommandConfig
from cond_ddpm.config.visualization import GifConfig
from cond_ddpm.models import MODELS

PRESETS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem not in ("study", "tune"))


@pytest.mark.parametrize("name, epochs", [("simple", 200), ("attention", 50)])
def test_the_study_presets_have_the_studys_values(name, epochs):
    config = parse_train(["--config", str(ROOT / f"configs/{name}_cifar10.yaml")])
    assert (config.dataset, config.model, config.num_epochs) == ("cifar10", name, epochs)
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (1e-4, 0.02, "linear")
    assert (config.num_train_timesteps, config.prediction_type) == (1000, "epsilon")
    assert (config.resolution, config.channels) == (32, 3)
    assert (config.batch_size, config.learning_rate, config.weight_decay, config.patience) == (200, 3e-4, 0.0, 10)
    assert (config.optimizer, config.adam_beta2, config.lr_scheduler, config.lr_warmup_steps) == (
        "adamw",
        0.999,
        "constant",
        0,
    )
    assert (config.unet["pos_dim"], config.min_snr_gamma) == (1024, None)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_fit_their_models_and_open_with_their_command(path):
    config = parse_train(["--config", str(path)])
    by_data = {"sample_size", "in_channels", "out_channels", "num_classes"}
    MODELS[config.model](**checked_arguments(MODELS[config.model], config.unet, "unet", by_data))
    first = path.read_text().splitlines()[0]
    assert first == f"# accelerate launch train_cond_ddpm.py --config configs/{path.name}"


def test_flags_override_the_file_and_unet_arguments_merge(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"batch_size": 8, "seed": 3, "unet": {"pos_dim": 16, "dropout": 0.1}}))
    config = parse_train(["--config", str(file), "--seed", "4", "--unet.block_out_channels", "[8,16]", "--unet.dropout", "0"])
    assert (config.batch_size, config.seed) == (8, 4)
    assert config.unet == {"pos_dim": 16, "dropout": 0, "block_out_channels": [8, 16]}
    file.write_text("unet: 3\n")
    with pytest.raises(SystemExit):
        parse_train(["--config", str(file), "--unet.dropout", "0"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"class_dropout_prob": 1.5}, "class_dropout_prob: expected from 0 to 1, got 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"model": "large"}, "model: expected one of simple, attention, hybrid, or null, got 'large'"),
        ({"prediction_type": "noise"}, "prediction_type: expected one of epsilon, sample, v_prediction, got 'noise'"),
        ({"mixed_precision": "fp8"}, "mixed_precision: expected one of no, fp16, bf16"),
        ({"use_ema": None}, "use_ema: expected true or false, got None"),
        ({"num_train_timesteps": None}, "num_train_timesteps: expected a whole number, 1 or more, got None"),
        ({"batch_size": True}, "batch_size: expected a whole number, 1 or more, or null, got True"),
        ({"learning_rate": float("inf")}, "learning_rate: expected a finite number, more than 0, got inf"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number, got nan"),
        ({"beta_start": 0.03}, "beta_start: expected at most beta_end, 0.02, got 0.03"),
        ({"beta_start": 0.0, "beta_end": 0.0}, "beta_start: expected more than 0 and less than 1, got 0.0"),
        ({"beta_start": 1.0, "beta_end": 1.0}, "beta_start: expected more than 0 and less than 1, got 1.0"),
        ({"adam_epsilon": -1.0}, "adam_epsilon: expected more than 0, got -1.0"),
        ({"adam_beta1": 1.0}, "adam_beta1: expected 0 or more and less than 1, got 1.0"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma: expected more than 0, got 0.0"),
        ({"max_train_minutes": 0}, "max_train_minutes: expected more than 0, got 0"),
    ],
)
def test_values_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**arguments)


def test_every_setting_is_explained():
    documented = TrainConfig.__doc__.partition("Args:")[2]
    assert [f.name for f in dataclasses.fields(TrainConfig) if f"\n    {f.name}: {f.metadata['help']}" not in documented] == []


def test_a_new_setting_needs_no_second_place(tmp_path, capsys):
    """Only its field is added here, and it is a flag, in YAML, in --help, in the error and in the record."""

    class More(SampleConfig):
        sharpness: float = setting(default=1.5, help="How sharp.", at_least=0, may_change=True)

    given = ["--model", "m", "--output", "x.png"]
    (tmp_path / "run.yaml").write_text("sharpness: 2.5\n")
    file = ["--config", str(tmp_path / "run.yaml")]
    for arguments, value in ((given, 1.5), ([*file, *given], 2.5), ([*file, *given, "--sharpness", "3"], 3.0)):
        assert dataclasses.asdict(parse(More, arguments))["sharpness"] == value
    assert "sharpness" in may_change_at_resume(More)
    for arguments, words in (
        (["--help"], "--sharpness VALUE How sharp. (a number, 0 or more; default: 1.5)"),
        ([*given, "--print_config"], "sharpness: 1.5"),
        ([*given, "--sharpness", "-1"], "error: --sharpness: expected 0 or more, got -1.0."),
        ([*given, "--sharpness", "much"], "error: --sharpness: expected a number, 0 or more, got 'much'."),
    ):
        with pytest.raises(SystemExit):
            parse(More, arguments)
        printed = capsys.readouterr()
        assert words in " ".join((printed.out + printed.err).split())


COMMAND_CLASSES = [
    getattr(importlib.import_module(f"cond_ddpm.config.{command.settings.rpartition('.')[0]}"), command.settings.split(".")[1])
    for command in (*COMMANDS.values(), *KINDS.values())
    if command.settings
]


@pytest.mark.parametrize("class_", COMMAND_CLASSES, ids=lambda class_: class_.__name__)
def test_each_command_explains_its_settings_and_reads_the_file_that_it_prints(class_, tmp_path, capsys):
    values = {"output": "x.gif" if class_ is GifConfig else "x.png", "run": "r", "std": "0.1", "dataset": "d", "model": "m"}
    values |= {"format": "onnx", "repo_id": "a/b", "output_dir": "o", "base": "{}", "models": "{one: {}}"}
    values |= {"search": "{batch_size: [8, 16]}"}
    names = [name for name in names_of(class_) if name in values and class_ is not TrainCommandConfig]
    flags = [word for name in names for word in (f"--{name}", values[name])]
    with pytest.raises(SystemExit) as exit:
        parse(class_, ["--help"])
    assert exit.value.code == 0
    plain = lambda text: re.sub(r"\[?VALUE(\s\.\.\.)?\]?|\s", "", text)  # lines are broken at hyphens, too  # noqa: E731
    text = plain(capsys.readouterr().out)
    assert [f.name for f in fields(class_) if plain(f"--{f.name} {f.metadata['help']}") not in text] == []
    with pytest.raises(SystemExit) as exit:
        parse(class_, [*flags, "--print_config"])
    assert exit.value.code == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    assert parse(class_, ["--config", str(tmp_path / "all.yaml")]) == parse(class_, flags)


@pytest.mark.parametrize(
    "arguments, name, value",
    [
        (["--class_labels", "7", "horse"], "class_labels", ["7", "horse"]),
        (["--guidance_interval", "0.2", "8"], "guidance_interval", (0.2, 8.0)),
        (["--fast"], "fast", True),
        (["--fast", "false"], "fast", False),
        (["--seed", "18446744073709551615"], "seed", 2**64 - 1),
        (["--guidance_scale=1e-1"], "guidance_scale", 0.1),
        (["--sampler", "null"], "sampler", None),
        (["--revision", "123"], "revision", "123"),  # a text, whatever it looks like
        (["--mixed_precision", "no"], "mixed_precision", "no"),
    ],
)
def test_what_flags_say(arguments, name, value):
    assert getattr(parse(SampleConfig, ["--model", "m", "--output", "x", *arguments]), name) == value


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "which is empty; leave out --config to use the defaults"),
        ("# nothing but a comment\n", "which is empty"),
        ("- 1\n", "which is list; a run's is its config.yaml"),
        ("seed: [1\n", "which cannot be read"),
        ("seed: 1\n  batch_size: 2\n", "which cannot be read"),
        (b"\xff\xfe\x00", "which cannot be read"),
        ("? [1, 2]\n: 3\n", "which cannot be read"),
        ("[" * 5000, "which cannot be read"),
        ("1: 2\n", "got 1."),
        ("num_images_per_class: null\n", "--num_images_per_class: expected a whole number, 1 or more, got None."),
        ("adam_epsilon:\n", "--adam_epsilon: expected a number, more than 0, got None."),
        ("use_ema: null\n", "--use_ema: expected true or false, got None."),
        ("use_ema: no\n", "--use_ema: expected true or false, got 'no'."),
        ("learning_rate: .inf\n", "--learning_rate: expected a finite number, more than 0, got inf."),
        (f"learning_rate: {10**400}\n", "--learning_rate: expected a finite number"),
        ("beta_start: 0.03\n", "--beta_start: expected at most beta_end"),
        ("beta_start: 0\nbeta_end: 0\n", "--beta_start: expected more than 0 and less than 1"),
        ("beta_start: 1\nbeta_end: 1\n", "--beta_start: expected more than 0 and less than 1"),
        ("adam_epsilon: -1\n", "--adam_epsilon: expected more than 0, got -1.0."),
        ("adam_beta1: 1\n", "--adam_beta1: expected 0 or more and less than 1, got 1.0."),
        ("min_snr_gamma: 0\n", "--min_snr_gamma: expected more than 0, got 0.0."),
        ("max_train_minutes: 0\n", "--max_train_minutes: expected more than 0, got 0.0."),
        ("unet: 3\n", "--unet: expected names and values, got 3."),
    ],
)
def test_a_file_that_cannot_be_taken_is_one_line(content, words, tmp_path, capsys):
    (tmp_path / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as exit:
        main(["train", "--config", str(tmp_path / "run.yaml")])
    usage, error, *more = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and usage.startswith("usage: ") and words in error and not more


def test_yaml_has_the_bools_and_numbers_of_its_newer_version(tmp_path):
    (tmp_path / "run.yaml").write_text("mixed_precision: no\nlearning_rate: 1e-3\ncompile: True\nunet:\n")
    config = parse_train(["--config", str(tmp_path / "run.yaml")])
    assert (config.mixed_precision, config.learning_rate, config.compile, config.unet) == ("no", 1e-3, True, {})


@pytest.mark.parametrize("source", ["flag", "file"])
def test_a_home_is_the_users_in_every_path(source, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {"model": "~/m", "guide": "~/g", "samples": None, "dataset": "~/d", "features": "~/f", "output": "~/r.json"}
    values = {name: value for name, value in values.items() if value}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
    flags = [word for name, value in values.items() for word in (f"--{name}", value)]
    config = parse(EvaluateConfig, flags if source == "flag" else ["--config", "~/x.yaml"])
    assert {name: str(getattr(config, name)) for name in values} == {
        name: value.replace("~", str(tmp_path)) for name, value in values.items()
    }


def test_samplers_and_spacings_are_those_of_the_pipeline():
    from cond_ddpm.config.training import Model
    from cond_ddpm.models import MODELS
    from cond_ddpm.pipelines.pipeline_cond_ddpm import SAMPLERS, SPACINGS

    assert (get_args(Sampler), get_args(TimestepSpacing)) == (tuple(SAMPLERS), tuple(SPACINGS))
    assert set(get_args(Model)) == set(MODELS)


def test_a_home_in_a_file_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TrainConfig(output_dir="~/runs/mine").folder == tmp_path / "runs" / "mine"
    assert str(TrainConfig(output_dir="~nobody-of-that-name/x").folder) == "~nobody-of-that-name/x"


def test_unet_arguments_are_checked_against_its_signature():
    check = lambda **given: checked_arguments(MODELS["simple"], given, "unet", {"num_classes"})  # noqa: E731
    assert check(block_out_channels=[8, 16])["block_out_channels"] == (8, 16)
    assert check()["pos_dim"] == 1024
    for given, words in (
        ({"blok": 1}, "unet.blok: expected an argument of SimpleUNet2DModel, got one that is not one of"),
        ({"num_classes": 3}, "unet.num_classes: .* is set by the data"),
        ({"pos_dim": "wide"}, "unet.pos_dim: expected a whole number, got 'wide'"),
        ({"attention_resolutions": [8]}, "attention_resolutions: expected an argument of SimpleUNet2DModel"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            check(**given)
        assert error.match(words)
