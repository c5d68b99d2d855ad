"""What README and the pages of docs/ say: their commands parse, their Python runs, the files that they name are written."""

import contextlib
import inspect
import io
import re
import shlex

import pytest
import yaml
from conftest import NAMES as NAMES_OF_SHAPES
from conftest import ROOT, TINY_HYBRID, make_unet, shapes
from markdown_it import MarkdownIt
from PIL import Image

from cond_ddpm.cli import COMMANDS, KINDS, settings_class, settings_of
from cond_ddpm.config.settings import names_of
from cond_ddpm.evaluation import classifier

# The log is of the past, and the reference of the commands is written from their settings.
PAGES = sorted(
    {*(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md", ROOT / "README.md"} - {ROOT / "docs" / "LOG.md"}
)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
_EXTRAS = re.compile(r"cond_ddpm\[([\w,]+)\]|\.\[([\w,]+)\]")


def _tokens(path, kinds):
    """The parts of a page that are of these kinds, also those inside lines of text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text())
    return [one for token in tokens for one in [token, *(token.children or ())] if one.type in kinds]


def _is_python(token):
    return token.info == "python" or (not token.info and bool(re.match(r"(from|import) \w", token.content)))


def _blocks(path):
    return _tokens(path, ("fence", "code_block"))


def _command_lines(path):
    """Each command of the blocks of a page, as words; a comment after it is left out."""
    for token in _blocks(path):
        if not _is_python(token) and token.info.split()[:1] in ([], ["bash"]):
            for line in token.content.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield words


def _check_cond_ddpm(arguments):
    """Parse the arguments of `cond-ddpm`; SystemExit or ValueError, if a user would see an error."""
    name, *rest = arguments
    command = COMMANDS[name]
    if command.kinds is not None:
        command, rest = command.kinds[rest[0]], rest[1:]
    _check_settings(command, rest)


def _check_settings(command, arguments):
    if {"--help", "--print_config"} & set(arguments):
        with pytest.raises(SystemExit) as exit, contextlib.redirect_stdout(io.StringIO()):
            settings_of(command, arguments)
        assert not exit.value.code
    else:
        settings_of(command, arguments)


def _check(words, folder):
    """A command that a page tells its reader to type."""
    if words[0] == "cond-ddpm":
        _check_cond_ddpm(words[1:])
    elif words[0] in ("accelerate", "torchrun"):
        program = next(i for i, word in enumerate(words) if word in ("train_cond_ddpm.py", "cond_ddpm.cli"))
        rest = [word for word in words[program + 1 :] if word != "..."]
        _check_settings(COMMANDS["train"], rest) if words[program].endswith(".py") else _check_cond_ddpm(rest)
        if "--config_file" in words:
            assert (folder / words[words.index("--config_file") + 1]).is_file()
    elif words[0] == "python":
        # A page that `export --format web` writes has the files of this folder.
        assert (ROOT / words[1]).is_file() or (ROOT / "cond_ddpm" / "web" / words[1]).is_file()
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        text = (ROOT / "setup.cfg").read_text()
        for found in _EXTRAS.finditer(" ".join(words)):
            assert all(re.search(rf"^{extra} =$", text, re.MULTILINE) for extra in (found[1] or found[2]).split(","))
    else:
        assert words[:2] in (["hf", "auth"], ["tensorboard", "--logdir"], ["pytest", "-m"]), f"not known: {words}"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Where a reader stands who has typed what the pages say before: in a checkout, with a file of settings of their own."""
    for name in ("benchmarks", "configs", "docs", "train_cond_ddpm.py", "pretrained"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs" / "tune").mkdir(parents=True)
    (tmp_path / "runs" / "tune" / "best.yaml").write_text("learning_rate: 0.001\n")
    study, _ = _settings_files()
    (tmp_path / "my_study.yaml").write_text(study)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _settings_files():
    """The files of settings that the page on studies and searches shows."""
    page = ROOT / "docs" / "how_to" / "study_and_tuning.md"
    return [token.content for token in _blocks(page) if token.info == "yaml"]


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_commands_parse(path, reader):
    for words in _command_lines(path):
        try:
            _check(words, reader)
        except (SystemExit, KeyError, StopIteration) as error:
            pytest.fail(f"{path.name}: {shlex.join(words)}: {error!r}")


_OF_ACCELERATE = {"num_processes", "num_cpu_threads", "quiet", "machine_rank", "cpu"}


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_commands_and_flags_within_the_text_exist(path):
    commands = [command for command in [*COMMANDS.values(), *KINDS.values()] if command.kinds is None]
    known = {name for command in commands for name in names_of(settings_class(command))} | _OF_ACCELERATE
    known |= {"help", "config", "print_config", "version"}
    for token in _tokens(path, ("code_inline",)):
        words = token.content.split() + [""]
        if words[0] == "cond-ddpm" and words[1].isalpha() and words[1].islower():
            assert words[1] in COMMANDS, token.content
        if words[0] == "cond-ddpm" or words[0].startswith("--"):
            unknown = set(re.findall(r"--(\w+)", token.content)) - known
            assert not unknown, f"{token.content}: {unknown}"


def test_every_command_and_kind_of_picture_is_in_the_pages():
    text = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    assert [name for name in COMMANDS if f"cond-ddpm {name}" not in text] == []
    assert [kind for kind in KINDS if f"cond-ddpm visualize {kind}" not in text] == []


def test_settings_files_are_taken(reader):
    study, search = _settings_files()
    runs = settings_of(COMMANDS["study"], ["--config", "my_study.yaml"]).runs()
    assert runs.keys() == yaml.safe_load(study)["models"].keys()
    (reader / "my_search.yaml").write_text(search)
    settings_of(COMMANDS["tune"], ["--config", "my_search.yaml"])


@pytest.mark.end_to_end
def test_the_files_of_a_run_are_in_the_reference(shapes_parquet, tmp_path):
    from cond_ddpm import TrainConfig, train

    run = train(
        TrainConfig(
            dataset=str(shapes_parquet),
            resolution=8,
            unet=TINY_HYBRID,
            batch_size=16,
            num_validation_images=16,
            max_train_steps=2,
            num_inference_steps=2,
            num_images_per_class=1,
            output_dir=str(tmp_path / "run"),
        )
    )
    page = (ROOT / "docs" / "reference" / "folders.md").read_text()
    of_run, of_pipeline, *_ = (set(re.findall(r"^\| `([^`]+)`", part, re.MULTILINE)) for part in page.split("\n## ")[1:])
    written = {re.sub(r"\d+$", "N", path.name) for path in run.iterdir() if not path.name.startswith(".")}
    assert {name.partition("/")[0] for name in of_run} == written | {"abandoned-STEP-N", "guidance.png"}
    files = {path.relative_to(run / "pipeline").as_posix() for path in (run / "pipeline").rglob("*") if path.is_file()}
    assert of_pipeline - {"results-confusion.png"} == files


# Python


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs of a reader who has followed the tutorials, with tiny networks that were never trained."""
    from diffusers import DDPMScheduler

    from cond_ddpm import CondDDPMPipeline

    folder = tmp_path_factory.mktemp("runs")
    for run, names in {"quickstart": "0123456789", "shapes": ("circle", "square", "triangle")}.items():
        pipeline = CondDDPMPipeline(
            make_unet("hybrid", num_classes=len(names), in_channels=1, out_channels=1),
            DDPMScheduler(prediction_type="v_prediction"),
            dict(enumerate(names)),
            class_dropout_prob=0.1,
        )
        pipeline.scheduler = pipeline.make_scheduler("dpm++2")
        pipeline.save_pretrained(folder / run / "pipeline")
    return folder


def _pictures(folder):
    """A data set of the reader's own: a folder of pictures for each of three classes."""
    for row, (image, label) in enumerate(zip(*shapes(150, 16))):
        (folder / NAMES_OF_SHAPES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / NAMES_OF_SHAPES[label] / f"{row}.png")


PYTHON = [path for path in PAGES if any(map(_is_python, _blocks(path)))]


@pytest.mark.end_to_end
@pytest.mark.parametrize("path", PYTHON, ids=[path.relative_to(ROOT).as_posix() for path in PYTHON])
def test_python_runs(path, runs, tmp_path, monkeypatch):
    """All blocks of a page, one after the other, as a reader would type them."""
    (tmp_path / "runs").symlink_to(runs)
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    _pictures(tmp_path / "path" / "to" / "folder")
    (tmp_path / "USER").mkdir()
    (tmp_path / "USER" / "digits").symlink_to(runs / "quickstart" / "pipeline")  # found before a repository on the Hub
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classifier, "RECIPE", classifier.Recipe(epochs=0, min_images_seen=640))  # judges of a few seconds
    names: dict = {}
    for token in _blocks(path):
        if _is_python(token):
            lines = "\n" * (token.map[0] + (token.type == "fence"))  # so that an error names the line of the page
            exec(compile(lines + inspect.cleandoc(token.content), str(path), "exec"), names)
