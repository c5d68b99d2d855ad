"""What README, CONTRIBUTING and Makefile promise is there."""

import re

from conftest import ROOT

from cond_ddpm.cli import parse_train
from cond_ddpm.config.settings import names_of
from cond_ddpm.config.training import TrainCommandConfig

README = (ROOT / "README.md").read_text()


def test_paths_named_in_the_tables_exist():
    table = README.partition("## Where things are")[2]
    paths = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(paths) > 10 and [path for path in paths if not (ROOT / path).exists()] == []
    contributing = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where do I add")[2].partition("## Rules")[0]
    paths = re.findall(r"`([\w/]+/(?:\w+\.\w+)?)[^`]*`", contributing)
    assert len(paths) > 20 and [path for path in paths if not (ROOT / path).exists()] == []


def test_training_commands_and_flags_parse():
    commands = re.findall(r"accelerate launch train_cond_ddpm.py( .*)", README)
    assert len(commands) >= 2
    for command in commands:
        parse_train(command.replace("configs/", f"{ROOT}/configs/").split())
    settings = names_of(TrainCommandConfig)
    for flag in re.findall(r"`--(\w+)`", README.partition("The flags that matter")[2].partition("## Where")[0]):
        assert flag in settings, flag


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for target in set(re.findall(r"^ +make (\w+)", README, re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)", contributing)):
        assert f"\n{target}:" in makefile


def test_arguments_and_names_of_the_sampling_table():
    import inspect

    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.pipelines.pipeline_cond_ddpm import SAMPLERS, SPACINGS

    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", README.partition("## Sampling")[2].partition("## Eval")[0], re.MULTILINE)
    arguments = {name for row, _ in rows for name in re.findall(r"`(\w+)`", row)}
    assert arguments <= set(inspect.signature(CondDDPMPipeline.__call__).parameters) and len(arguments) > 8
    text = dict(rows)
    assert re.findall(r"`([^`]+)`", text["`sampler`"])[: len(SAMPLERS)] == list(SAMPLERS)
    assert re.findall(r"`([^`]+)`", text["`num_inference_steps`, `timestep_spacing`"]) == list(SPACINGS)


def test_every_command_and_kind_of_picture_is_in_the_readme():
    from cond_ddpm.cli import COMMANDS, KINDS

    for name in COMMANDS:
        assert f"cond-ddpm {name}" in README, name
    for kind in KINDS:
        assert f"`{kind}`" in README or f"visualize {kind}" in README, kind


def test_the_tests_that_the_page_on_reliability_names_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    there = {
        name for file in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert len(named) > 40 and named - there == set()
