"""The package in throwaway environments: with the lowest versions that setup.cfg allows, and with the newest. `make compat`.

    python benchmarks/compat.py --pip_args="--extra-index-url https://download.pytorch.org/whl/cpu"
    python benchmarks/compat.py --use floors=path/to/an/environment      (one that is there already is used as it is)

In each environment the package is installed as users install it, the core of the tests runs, and a pipeline folder is saved.
Then each loads the folders of both, and those that earlier versions saved, with the package and without it. The table goes
into docs/compatibility.md. This downloads several GB and takes about half an hour on two cores.
"""

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- The table is written by `make compat`. -->", "<!-- End of the table. -->"
# Models, saving and loading, sampling, a tiny training, evaluation and publishing; and what the extras add.
CORE = ("cond_unet", "contract", "pipeline", "saved_folders", "sampling", "train", "evaluate", "hub")
OF_THE_EXTRAS = ("export", "study", "imagenet_features")
SHOWN = ("torch", "diffusers", "accelerate", "datasets", "huggingface_hub", "safetensors", "transformers", "numpy", "pillow")
EXTRAS = "mnist5k,dinov2,imagenet,tune,onnx"
# Of installed packages alone, so that it says what a user waits for.
FIRST_SAMPLE = """
import sys, time
start = time.perf_counter()
from cond_ddpm import CondDDPMPipeline
imported = time.perf_counter()
pipeline = CondDDPMPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
pipeline([7], seeds=[0])
print(f"{imported - start:.1f} s, {time.perf_counter() - imported:.1f} s")
"""
SAVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy
from conftest import NAMES, make_pipeline, make_unet
pipeline, folder = make_pipeline(make_unet("hybrid")), Path(sys.argv[2])
pipeline.save_pretrained(folder)
images = pipeline(NAMES, seeds=[0, 0, 0], num_inference_steps=4, guidance_scale=2.0, output_type="np").images
numpy.save(folder / "images.npy", (images * 255).round().astype("uint8"))
"""
LOAD = """
import sys
import numpy
if sys.argv[2] == "diffusers":
    sys.modules["cond_ddpm"] = None  # as if the package were not installed
    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
else:
    from cond_ddpm import CondDDPMPipeline
    pipeline = CondDDPMPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
names = list(pipeline.id2label.values())
images = pipeline(names, seeds=[0, 0, 0], num_inference_steps=4, guidance_scale=2.0, output_type="np").images
difference = (images * 255).round() - numpy.load(sys.argv[1] + "/images.npy").astype(float)
assert abs(difference).max() <= 1, f"the images differ by {abs(difference).max():.0f}/255"
print("the same images")
"""


def run(command, cwd=None, check=True) -> str:
    """What a command prints; it sees no checkout but the folder that it runs in."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return (done.stdout + done.stderr).strip()


def lowest() -> dict[str, list[str]]:
    """The lower bounds in setup.cfg as exact versions: those of the base under "", those of each extra under its name."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    bound = re.compile(r"^([\w-]+)>=([\w.]+)", re.MULTILINE)
    return {name: [f"{package}=={version}" for package, version in bound.findall(text)] for name, text in texts.items()}


def install(name: str, folder: Path, pip_args: list[str]) -> tuple[Path, str]:
    """A new environment; its python, and the size and the seconds of the base install."""
    bounds = lowest()
    pins = bounds[""] if name == "floors" else []
    run([sys.executable, "-m", "venv", folder])
    python = folder / "bin" / "python"
    empty, start = _bytes(folder), time.perf_counter()
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_args]
    source = folder / "source"  # a copy, because a build writes beside its sources
    leave = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=leave)
    run([*pip, *pins, source])
    base = f"{(_bytes(folder) - empty) / 1e9:.1f} GB, {time.perf_counter() - start:.0f} s"
    pins += [pin for extra in EXTRAS.split(",") for pin in bounds[extra]] if name == "floors" else []
    pytest = next(pin for pin in bounds["test"] if pin.startswith("pytest=="))
    run([*pip, *pins, f"{source}[{EXTRAS}]", pytest if name == "floors" else "pytest"])
    return python, base


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def versions(python: Path) -> dict[str, str]:
    text = run([python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"])
    found = {package["name"].lower().replace("-", "_"): package["version"] for package in json.loads(text.splitlines()[0])}
    python_version = run([python, "-c", "import platform; print(platform.python_version())"])
    return {"Python": python_version} | {name: found[name].partition("+")[0] for name in SHOWN}


def test(python: Path, names: tuple[str, ...]) -> str:
    """Run these tests. Warnings are no errors here, since only the versions of constraints.txt are held to be free of them."""
    files = [f"tests/test_{name}.py" for name in names]
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", "-m", "not slow and not integration"]
    last = run([python, "-m", "pytest", *options, *files], ROOT, check=False).splitlines()
    failed = [line for line in last if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(failed))
    return re.sub(r" in .*| \d+ (warnings?|deselected),?|=", "", last[-1]).strip(" ,")


def loads(python: Path, folder: Path, by: str) -> bool:
    said = run([python, "-I", "-c", LOAD, folder, by], folder.parent, check=False)
    good = "the same images" in said.splitlines()
    if not good:
        print(f"{folder.name} by {by}:\n{said}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pip_args", default="", help="further arguments of each pip install, such as an index")
    parser.add_argument("--use", nargs="*", default=[], metavar="NAME=FOLDER", help="environments that are there already")
    arguments = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in arguments.use)
    names = ("floors", "newest")
    rows: dict[str, list[str]] = {}

    def add(what: str, value: str) -> None:
        print(f"{what}: {value}", flush=True)
        rows.setdefault(what, []).append(value)

    with tempfile.TemporaryDirectory() as place:
        pythons, saved = {}, []
        for name in names:
            print(f"== {name}", flush=True)
            if name in given:
                pythons[name], base = Path(given[name]).absolute() / "bin" / "python", "not measured"
            else:
                pythons[name], base = install(name, Path(place, name), arguments.pip_args.split())
            for package, version in versions(pythons[name]).items():
                add(package, version)
            add("base install", base)
            seconds = run([pythons[name], "-I", "-c", FIRST_SAMPLE, ROOT / "pretrained" / "cifar10"], place)
            add("import, first picture", seconds.splitlines()[-1])
            saved.append(Path(place, f"saved by {name}"))
            run([pythons[name], "-I", "-c", SAVE, ROOT / "tests", saved[-1]], place)
            add("core of the tests", test(pythons[name], CORE))
            add("tests of the extras", test(pythons[name], OF_THE_EXTRAS))
        earlier = sorted((ROOT / "tests" / "fixtures" / "pipelines").iterdir())
        for name in names:
            for what, folders in {**{f"folder {path.name}": [path] for path in saved}, "folders of before": earlier}.items():
                for by in ("cond_ddpm", "diffusers"):
                    good = all(loads(pythons[name], folder, by) for folder in folders)
                    add(f"{what}, loaded by {by}", "the same images" if good else "FAILED")
    table = "\n".join(
        ["| | lowest | newest |", "|---|---|---|", *(f"| {what} | {' | '.join(cells)} |" for what, cells in rows.items())]
    )
    page = PAGE.read_text()
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
    if re.search(r"\d+ (failed|errors?)|FAILED", table):
        raise SystemExit("A test failed, or a folder did not load.")


if __name__ == "__main__":
    main()
