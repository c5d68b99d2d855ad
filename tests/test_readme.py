"""What README, CONTRIBUTING, Makefile and the pages of docs/ that took parts of the README promise is there."""

import re

import pytest
from conftest import ROOT

from cond_ddpm.cli import COMMANDS, parse_train
from cond_ddpm.config.settings import names_of
from cond_ddpm.config.training import TrainCommandConfig

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
HOW_TO = ROOT / "docs" / "how_to"


def test_paths_named_in_the_tables_exist():
    table = CONTRIBUTING.partition("## Where things are")[2].partition("## Rules")[0]
    paths = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(paths) > 10 and [path for path in paths if not (ROOT / path).exists()] == []
    contributing = CONTRIBUTING.partition("## Where do I add")[2].partition("## Where things are")[0]
    paths = re.findall(r"`([\w/]+/(?:\w+\.\w+)?)[^`]*`", contributing)
    assert len(paths) > 20 and [path for path in paths if not (ROOT / path).exists()] == []


def test_training_commands_and_flags_parse():
    page = (HOW_TO / "training.md").read_text()
    commands = re.findall(r"accelerate launch train_cond_ddpm.py( [^`\n]*)", page + README)
    assert len(commands) >= 4
    for command in commands:
        parse_train(command.replace("configs/", f"{ROOT}/configs/").split())
    settings = names_of(TrainCommandConfig)
    flags = re.findall(r"`--(\w+)`", page.partition("The flags that matter")[2].partition("## The run")[0])
    assert len(flags) > 20
    for flag in flags:
        assert flag in settings, flag


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^ +make (\w+)", README, re.MULTILINE) + re.findall(r"`make ([\w-]+)", README + CONTRIBUTING)
    assert {"quickstart", "test", "docs"} <= set(targets)
    for target in targets:
        assert f"\n{target}:" in makefile


def test_arguments_and_names_of_the_sampling_table():
    import inspect

    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.pipelines.pipeline_cond_ddpm import SAMPLERS, SPACINGS

    page = (HOW_TO / "sampling.md").read_text()
    table = page.partition("## The settings")[2].partition("| sampler |")[0]
    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", table, re.MULTILINE)
    arguments = {name for row, _ in rows for name in re.findall(r"`(\w+)`", row)}
    assert arguments <= set(inspect.signature(CondDDPMPipeline.__call__).parameters) and len(arguments) > 8
    text = dict(rows)
    assert re.findall(r"`([^`]+)`", text["`sampler`"])[: len(SAMPLERS)] == list(SAMPLERS)
    assert re.findall(r"`([^`]+)`", text["`num_inference_steps`, `timestep_spacing`"]) == list(SPACINGS)


def test_every_command_and_kind_of_picture_is_in_the_readme():
    from cond_ddpm.cli import KINDS

    for name in COMMANDS:
        assert f"cond-ddpm {name}" in README, name
    for kind in KINDS:
        assert f"`{kind}`" in README or f"visualize {kind}" in README, kind


def test_every_variable_of_the_environment_is_in_the_reference():
    files = "".join(path.read_text() for path in (ROOT / "cond_ddpm").rglob("*.py"))
    page = (ROOT / "docs" / "reference" / "command_line.md").read_text()
    assert set(re.findall(r"COND_DDPM_[A-Z_]+", files)) == set(re.findall(r"`(COND_DDPM_[A-Z_]+)`", page))


def test_the_readme_is_a_front_page():
    """Short; its pictures are small, and its relative links lead to files."""
    assert len(README.splitlines()) <= 110
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)#]+)[^)]*\)", README)
    local = [(mark, ROOT / target) for mark, target in links if "://" not in target]
    assert len(local) > 20 and [path for _, path in local if not path.is_file()] == []
    pictures = {path for mark, path in local if mark}
    pictures |= {path for folder in ("images", "pictures") for path in (ROOT / "docs" / folder).iterdir()}
    assert sum(path.stat().st_size for path in pictures) < 3_000_000


def test_the_files_in_the_picture_of_the_data_flow_exist():
    names = re.findall(r'class="file"[^>]*>([^<]+)<', (ROOT / "docs" / "images" / "data_flow.svg").read_text())
    paths = [part.strip() for name in names for part in name.split(",") if not name.startswith("RUN")]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / "cond_ddpm" / path.removeprefix("cond_ddpm/")).exists()] == []


@pytest.mark.parametrize(("page", "least"), [("docs/reliability.md", 40), ("SECURITY.md", 10)])
def test_the_tests_that_a_page_names_exist(page, least):
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text()))
    there = {
        name for file in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert len(named) > least and named - there == set()
