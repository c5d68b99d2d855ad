"""What README and Makefile promise is there."""

import re

from conftest import ROOT

from cond_ddpm.cli import parse_train

README = (ROOT / "README.md").read_text()


def test_paths_named_in_the_tables_exist():
    table = README.partition("## Where things are")[2]
    paths = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(paths) > 10 and [path for path in paths if not (ROOT / path).exists()] == []


def test_training_commands_and_flags_parse():
    commands = re.findall(r"accelerate launch train_cond_ddpm.py( .*)", README)
    assert len(commands) >= 2
    for command in commands:
        parse_train(command.replace("configs/", f"{ROOT}/configs/").split())
    settings = parse_train([])
    for flag in re.findall(r"`--(\w+)`", README.partition("The flags that matter")[2].partition("## Where")[0]):
        assert flag == "dry_run" or hasattr(settings, flag), flag


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^ +make (\w+)", README, re.MULTILINE)) | {"quality", "style"}:
        assert f"\n{target}:" in makefile
