"""Kills in the middle of a write, and writes that find no room; `benchmarks/torture.py` does hundreds of both."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, make_pipeline, make_unet

from cond_ddpm.cli import main
from cond_ddpm.data import load_images
from cond_ddpm.files import remove

# Each action is ended by the system in the middle of a write, in a fork, and is then done again without a limit.
LIMITED = """
import json, os, resource, signal, sys
from pathlib import Path
import torch
from conftest import NAMES, make_pipeline, make_unet, shapes
from cond_ddpm.data import LabelledImages
from cond_ddpm.ema import PowerEMA, save_snapshot
from cond_ddpm.evaluation import classifier, real_images
from cond_ddpm.evaluation.extractors import Extractor
from cond_ddpm.export import export
from cond_ddpm.files import NotWritten

torch.set_num_threads(1)
folder, device = Path(sys.argv[1]), torch.device("cpu")
images, labels = shapes(96)
data = LabelledImages(images.transpose(0, 3, 1, 2), labels, NAMES)
judge = classifier.Judge(classifier._new_network("convolutional", data), 0.5, 96, None)
classifier.new_judge = lambda *_: judge
extractor = Extractor("stub", lambda images: (torch.from_numpy(images).float().flatten(1), None), 192, (), {})
actions = {
    "snapshot": lambda path: save_snapshot(PowerEMA([torch.zeros(9999)], [0.1]), ["a"], path, 1),
    "classifier": lambda path: classifier.train_classifier("convolutional", data, data, path, device),
    "real": lambda path: real_images.real_tally(data, 96, extractor, 96, path),
}
left = {}
for name, act in actions.items():
    process = os.fork()
    if not process:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        act(folder / name)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    act(folder / name)
    left[name] = [code, [path.suffix for path in (folder / name).iterdir() if path.suffix != ".lock" and path.name != ".lock"]]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    export(make_pipeline(make_unet("simple")), "torch", folder / "exported")
except NotWritten as error:
    left["export"] = [str(error), [path.name for path in folder.glob("exported*")]]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(left))
"""


@pytest.mark.hostile(14)
@pytest.mark.end_to_end
def test_a_write_that_is_ended_in_its_middle_leaves_nothing_once_it_is_done_again(tmp_path):
    """A kill of `safetensors.save_file` would leave a temporary file with a name of its own; torch's exporter would abort."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout.splitlines()[-1])
    text, files = left.pop("export")
    assert "could not be written: File too large" in text and "\n" not in text and not files
    assert left == {name: [-25, [".safetensors"]] for name in ("snapshot", "classifier", "real")}


# A file, a folder, and the files of a folder are written anew, in a fork that the system ends in the middle of the write.
ENDED = """
import os, resource, signal, sys
from pathlib import Path
from cond_ddpm.files import replacing, replacing_files, write

def inside(function):
    def act(path, content):
        with function(path) as partial:
            partial.mkdir(exist_ok=True)
            for name in "ab":
                (partial / name).write_bytes(content)
    return act

for name, act in {"write": write, "replacing": inside(replacing), "replacing_files": inside(replacing_files)}.items():
    path = Path(sys.argv[1], name)
    act(path, b"before")
    process = os.fork()
    if not process:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        act(path, b"x" * 9999)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(name, code, {file.read_bytes()[:9] for file in ([path] if path.is_file() else path.iterdir())})
"""


@pytest.mark.hostile(14)
def test_what_was_there_outlives_a_write_that_is_ended_in_its_middle(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ENDED, tmp_path], env=environment, capture_output=True, text=True)
    expected = [f"{name} -25 {{b'before'}}" for name in ("write", "replacing", "replacing_files")]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.hostile(14)
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, shapes_parquet, capsys):
    """Of a disk that is mounted so, because permissions mean nothing to root."""
    make_pipeline(make_unet("simple")).save_pretrained(tmp_path / "model")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a file system is not allowed here")
    sample = ["sample", "--model", tmp_path / "model", "--num_inference_steps", "2", "--num_images_per_class", "1", "--output"]
    train = ["train", "--dataset", shapes_parquet, "--resolution", "8", "--output_dir"]
    try:
        for command in ([*sample, disk / "x"], [*sample, disk / "x.npz"], [*sample, disk / "x.png"], [*train, disk / "run"]):
            assert main([str(argument) for argument in command]) == 1
            errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
            assert len(errors) == 1 and "Read-only file system" in errors[0] and str(disk) in errors[0]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.hostile(14)
def test_caches_that_are_deleted_are_made_again(tmp_path, shapes_parquet, monkeypatch):
    """All of them, those of this package, or the tables of `datasets`: what is read is the same."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    before = load_images(str(shapes_parquet), resolution=8)
    pixels, labels = before.images.copy(), before.labels.copy()
    for name in (
        ".",
        "cond_ddpm",
        "cond_ddpm/links",
        "cond_ddpm/*.npy",
        "cond_ddpm/*.json",
        "*/default",
    ):
        found = [tmp_path / "cache"] if name == "." else list((tmp_path / "cache").glob(name))
        assert found, name
        for path in found:
            remove(path)
        again = load_images(str(shapes_parquet), resolution=8)
        assert (again.images == pixels).all() and (again.labels == labels).all()


@pytest.mark.integration
def test_a_short_campaign_goes_well(tmp_path):
    """Eight trials of the commands that are quickest, the same each time: kills and full disks in calls that write."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace, which stops a command in the middle of a write")
    arguments = ["--trials", "8", "--only", "sample to a folder", "ema", "--output_dir", str(tmp_path / "torture")]
    command = [sys.executable, ROOT / "benchmarks" / "torture.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if "strace may not attach" in done.stderr:
        pytest.skip("strace may not attach to another process here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| sample to a folder | " in done.stdout
