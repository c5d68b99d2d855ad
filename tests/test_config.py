import dataclasses

import pytest
import yaml
from conftest import ROOT

from cond_ddpm.cli import parse_train
from cond_ddpm.config import TrainConfig, checked_arguments, may_change_at_resume, setting
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


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"class_dropout_prob": 1.5}, "class_dropout_prob: expected from 0 to 1, got 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"model": "large"}, "model: expected one of simple, attention, hybrid, got 'large'"),
        ({"prediction_type": "noise"}, "prediction_type: expected one of epsilon, sample, v_prediction, got 'noise'"),
        ({"mixed_precision": "fp8"}, "mixed_precision: expected one of no, fp16, bf16"),
        ({"use_ema": None}, "use_ema: expected true or false, got None"),
        ({"batch_size": None}, "batch_size: expected a whole number, 1 or more, got None"),
        ({"batch_size": True}, "batch_size: expected a whole number, 1 or more, got True"),
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


def test_a_new_setting_is_a_flag_in_yaml_in_help_and_in_the_record(tmp_path):
    """It is said once: nothing but its field is added here."""
    import jsonargparse

    class More(TrainConfig):
        sharpness: float = setting(1.5, "How sharp.", at_least=0, may_change=True)

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(More)
    (tmp_path / "run.yaml").write_text("sharpness: 2.5\n")
    for arguments, value in ((["--sharpness", "3"], 3.0), (["--config", str(tmp_path / "run.yaml")], 2.5), ([], 1.5)):
        given = parser.parse_args(arguments).as_dict()
        given.pop("config")
        assert dataclasses.asdict(More(**given))["sharpness"] == value
    assert "How sharp. (type: float, default: 1.5)" in " ".join(parser.format_help().split())
    assert "sharpness" in may_change_at_resume(More)
    with pytest.raises(ValueError, match="sharpness: expected 0 or more, got -1"):
        More(sharpness=-1.0)


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
        ({"pos_dim": "wide"}, "unet: .*pos_dim.*wide"),
        ({"attention_resolutions": [8]}, "attention_resolutions: expected an argument of SimpleUNet2DModel"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            check(**given)
        assert error.match(words)
