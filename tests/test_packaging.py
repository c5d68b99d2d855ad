"""What `python -m build` makes, a wheel that works where there is no checkout; and the checks that a change must pass."""

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest
import yaml
from conftest import ROOT

import cond_ddpm
from cond_ddpm.hub.card import TRIED


def _run(command, cwd, **env):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**kept, **env}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as for an index, from the source archive, which so must be whole; of a copy, for the build writes beside."""
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source") / "cond_ddpm", tmp_path_factory.mktemp("dist")
    leave = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "tests")
    shutil.copytree(ROOT, source, ignore=leave)
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source], out)
    assert len(list(out.glob("cond_ddpm-*.tar.gz"))) == 1
    return next(out.glob("cond_ddpm-*.whl"))


@pytest.mark.integration
def test_the_wheel_has_what_is_needed_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert {name.partition("/")[0] for name in names} == {"cond_ddpm"}  # no top-level `pipelines`, no tests
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cond_ddpm").rglob("*.py")}
    ours |= {f"cond_ddpm/{name}" for name in ("demo/style.css", "hub/model_card.md", "visualize/report.html")}
    ours |= {f"cond_ddpm/{name}" for name in ("py.typed", "pipelines/__init__.py")}
    ours |= {"cond_ddpm/pipelines/pipeline_cond_ddpm.py", "cond_ddpm/configs/__init__.py"}
    ours |= {f"cond_ddpm/web/site/{path.name}" for path in (ROOT / "cond_ddpm" / "web" / "site").iterdir() if path.is_file()}
    ours |= {f"cond_ddpm/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    trained = (path.relative_to(ROOT / "pretrained") for path in (ROOT / "pretrained").rglob("*") if path.is_file())
    ours |= {f"cond_ddpm/pretrained_data/{path.as_posix()}" for path in trained if path.suffix != ".pyc"}
    assert names == ours
    assert re.search(r"^License(-Expression)?: Apache-2.0$", metadata, re.MULTILINE) and len(licences) == 1
    assert f"Version: {cond_ddpm.__version__}\n" in metadata and "Description-Content-Type: text/markdown\n" in metadata
    text = metadata.partition("\n\n")[2]
    assert "# cond_ddpm\n" in text and _relative(text) == []


@pytest.mark.integration
def test_the_wheel_works_without_a_checkout(wheel, tmp_path, shapes_parquet):
    """In an environment with this one's dependencies but not its cond_ddpm: train by a preset, load, sample, quickstart."""
    _run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = _run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], tmp_path).strip()
    # Paths in a .pth file are searched, but .pth files in them are not read: an editable cond_ddpm there is out of sight.
    with open(f"{site}/dependencies.pth", "w") as file:
        file.write(sysconfig.get_paths()["purelib"] + "\n")
    _run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel], tmp_path)
    command = tmp_path / "venv" / "bin" / "cond-ddpm"
    assert _run([command, "--version"], tmp_path).strip() == cond_ddpm.__version__
    script = """
import cond_ddpm, cond_ddpm.configs
from cond_ddpm.config import TrainConfig
from cond_ddpm.pipelines import pipeline_cond_ddpm
for module in (cond_ddpm, cond_ddpm.configs, pipeline_cond_ddpm):
    print(module.__file__)
print(cond_ddpm.pretrained("cifar10") / "model_index.json")
"""
    files = _run([python, "-c", script], tmp_path).split()
    assert all(file.startswith(site) for file in files) and len(files) == 4 and os.path.isfile(files[3])
    arguments = ["--dataset", shapes_parquet, "--resolution", "8", "--batch_size", "16", "--num_validation_images", "16"]
    arguments += ["--unet.size", "tiny", "--num_train_timesteps", "20", "--max_train_steps", "2", "--report_to", "none"]
    arguments += ["--save_images_epochs", "0", "--num_inference_steps", "2", "--output_dir", "run"]
    _run([command, "train", "--config", "hybrid_cifar10_cpu", *arguments, "--compile", "false"], tmp_path)
    assert (tmp_path / "run" / "pipeline" / "README.md").is_file()
    _run([command, "sample", "--model", "run/pipeline", "--num_images_per_class", "1", "--output", "out.png"], tmp_path)
    assert (tmp_path / "out.png").is_file()
    assert "hybrid_cifar10_cpu  train " in _run([command, "presets"], tmp_path)
    printed = _run([command, "quickstart", "--max_train_steps", "2", "--num_images_per_class", "1"], tmp_path)
    last = printed.partition("\n\nOpen ")[0].splitlines()[-5:]
    assert re.fullmatch(r"held-out real digits that the classifier recognises: 9\d\.\d% of 1000", last[0])
    assert re.fullmatch(r"samples recognised as the requested digit: \d+\.\d% of 10", last[1])
    pictures = [tmp_path / line.partition(":")[2].strip() for line in last[2:]]
    assert pictures == [tmp_path / "runs/quickstart" / name for name in ("digits.png", "loss.png", "report.html")]
    assert all(picture.is_file() for picture in pictures) and (tmp_path / "runs/quickstart/pipeline/README.md").is_file()


def _relative(text):
    """The pictures and links of a description that a page elsewhere would not find."""
    return re.findall(r"""\]\((?!https?://|\#)[^)]*\)|src="(?!https?://)[^"]*\"""", text)


def test_the_description_for_pypi_names_the_repository():
    """With an address, pictures and links are those of the version's tag; without one, pictures are left out."""
    spec = importlib.util.spec_from_file_location("setup_of_ours", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    assert setup.constant("REPOSITORY") == cond_ddpm.REPOSITORY and setup.constant("__version__") == cond_ddpm.__version__
    readme = (ROOT / "README.md").read_text() + '\n[costs](docs/results.md) <img alt="a" src="docs/b.png" width="9">\n'
    assert len(_relative(readme)) >= 4
    for address in ("https://host.example/user/name", ""):
        text = setup.description(readme, address, "1.2")
        assert _relative(text) == [] and "## Begin" in text
        assert ("](https://host.example/user/name/raw/v1.2/docs/pictures/demo-draw.png)" in text) == bool(address)
        assert ("[costs](https://host.example/user/name/blob/v1.2/docs/results.md)" in text) == bool(address)
        assert ('src="https://host.example/user/name/raw/v1.2/docs/b.png" width' in text) == bool(address)


def test_the_address_of_the_repository_and_the_version_are_in_one_place():
    """What names them must agree with cond_ddpm/__init__.py; other addresses of the repository are nowhere."""
    address = re.compile(r"[\w-]+\.(?:com|org|io|net|dev)/[\w./-]*cond[_-]ddpm(?![\w-]*/resolve)", re.IGNORECASE)
    leave = {".git", ".venv", ".venv-demo", "build", "dist", "runs", "fixtures", "__pycache__"}
    files = [path for path in ROOT.rglob("*") if path.is_file() and not leave & set(path.relative_to(ROOT).parts[:-1])]
    kinds = {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".cff", ".html", ".js", ".ipynb", ".txt", ""}
    found = {
        f"{path.relative_to(ROOT)}: {one}"
        for path in files
        if path.suffix in kinds and not any(part.endswith(("cache", "egg-info")) for part in path.parts)
        for one in address.findall(path.read_text(encoding="utf-8", errors="ignore"))
        if one != cond_ddpm.REPOSITORY.partition("//")[2] and "/USER/" not in one
    }
    assert found == set()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == cond_ddpm.__version__
    assert citation.get("repository-code", "") == cond_ddpm.REPOSITORY and not cond_ddpm.REPOSITORY.endswith("/")
    assert f"## {cond_ddpm.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_a_release_is_a_tag_of_the_version():
    """The workflow's check of tag, version and address, run here; it publishes what it has built and checked."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert list(jobs) == ["build", "publish"] and jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}  # trusted publishing: no token is kept anywhere
    (check,) = (step["run"] for step in jobs["build"]["steps"] if step.get("name") == "The tag is the version's")
    tag, server, name = f"v{cond_ddpm.__version__}", "https://host.example", "user/name"
    for variables, said in (
        ({"GITHUB_REF_NAME": "v9.9", "GITHUB_REPOSITORY": name}, "expected the tag"),
        ({"GITHUB_REF_NAME": tag, "GITHUB_REPOSITORY": "someone/else"}, "expected the repository's address"),
    ):
        env = {**os.environ, "GITHUB_SERVER_URL": server, **variables}
        done = subprocess.run(["bash", "-ec", check], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 1 and said in done.stderr


def test_the_checks_before_a_commit_and_on_github_are_those_here():
    (ruff,) = re.findall(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["repo"].rpartition("/")[2]: hook["rev"] for hook in hooks}["ruff-pre-commit"] == f"v{ruff}"
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["ci"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    assert all(re.search(r"@v\d+$", step["uses"]) for step in steps[:-1])
    makefile, ci = ((ROOT / name).read_text() for name in ("Makefile", ".ci/run"))
    targets = re.findall(r"^make (.*)$", ci, re.MULTILINE)
    assert targets == ["quality", "docs", "test", "integration"] and all(f"\n{target}:" in makefile for target in targets)


def test_the_table_of_versions_is_of_todays_bounds():
    """`make compat` has run with the lower bounds of setup.cfg, it passed, and the card names the versions that it tried."""
    cells = [
        line.strip("|").split("|") for line in (ROOT / "docs" / "compatibility.md").read_text().splitlines() if line[:1] == "|"
    ]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells if len(row) == 3}
    if not table:
        pytest.skip("`make compat` has not written its table yet")
    bounds = dict(re.findall(r"^ +([\w-]+)>=([\w.]+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE))
    assert {name: table[name][0] for name in bounds if name in table} == {n: bounds[n] for n in bounds if n in table}
    assert {"torch", "diffusers", "datasets", "huggingface_hub", "numpy"} <= bounds.keys() & table.keys()
    assert {name: tuple(table[name]) for name in TRIED} == TRIED
    assert not re.search(r"[Ff]ailed|FAILED|error", str(table))


def test_the_base_has_no_upper_bounds_and_all_has_no_torchvision():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert "<" not in config["options"]["install_requires"]
    assert "fid" not in config["options.extras_require"]["all"]
