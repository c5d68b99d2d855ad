"""Change small valid files of every kind that is read from outside, and see that each is read or refused in one line.

    python benchmarks/fuzz.py [--minutes 10] [--seed 0] [--only picture weights ...] [--output_dir runs/fuzz]

Each trial copies a folder of valid files, changes one of them (bytes, or values of its JSON or YAML), and runs the command
that reads it in a fork. It may succeed, or end with one line of error. Anything else is a fault, above all a traceback, a
signal, more than 10 seconds, or weights other than those that were saved. The changed file is kept. Needs Linux. Trials are
the same for the same seed. Prints JSON and Markdown rows; the exit code is 1 if there are faults.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork

MOST_SECONDS = 10  # of the processor, so that a busy machine makes no difference; a process that waits has six times as many
MOST_MEMORY = 4 * 2**30  # bytes, beyond what the process has when it starts

OTHER_VALUES = (None, True, [], {}, [[]], {"a": 1}, "", "x", "a" * 3000, "../../x", "\x1b[2J", "NaN", -1, 0, 1, 0.5, -0.0, 7)
OTHER_VALUES += (
    2**31,
    2**63,
    2**70,
    -(2**70),
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    [1, 2],
    ["a", "b"],
    [None],
    255,
    1000,
)
OTHER_BYTES = (
    b"\0",
    b"\xff" * 4,
    b"-1",
    b"1e999",
    b"9" * 30,
    b"null",
    b"NaN",
    b"{",
    b"]",
    b'"',
    b"\n",
    b": ",
    b"\xed\xa0\x80",
)


@dataclass(frozen=True)
class Target:
    """Files of one kind, which `make` makes in a folder and `read` reads; those that match `pattern` are changed."""

    make: Callable[[Path], None]
    pattern: str
    read: Callable[[Path], None]


def targets() -> dict[str, Target]:
    """By the names that `--only` takes."""
    model = lambda folder: _pipeline().save_pretrained(folder / "model")  # noqa: E731
    few = ["--num_images_per_class", "1", "--num_inference_steps", "2"]
    sample = lambda folder: _main("sample", "--model", folder / "model", *few, "--output", folder / "x.npz")  # noqa: E731
    data = lambda folder: _main("data", "--dataset", folder / "set", "--resolution", 8)  # noqa: E731
    return {
        "picture": Target(_pictures, "set/*/*", data),
        "parquet": Target(_parquet, "set/*.parquet", data),
        "classes.json": Target(_samples, "made/classes.json", lambda folder: _main("data", "--dataset", folder / "made")),
        "npz": Target(_npz, "*.npz", _read_npz),
        "weights": Target(model, "model/unet/*.safetensors", _read_weights),
        "snapshot": Target(_snapshots, "ema/*", _read_snapshots),
        "model_index.json": Target(model, "model/model_index.json", sample),
        "unet/config.json": Target(model, "model/unet/config.json", sample),
        "scheduler_config.json": Target(model, "model/scheduler/*.json", sample),
        "results.json": Target(_measured, "model/results.json", _read_card),
        "card": Target(_measured, "model/README.md", _read_card),
        "export.json": Target(_exported, "out/export.json", _read_exported),
        "onnx": Target(_exported, "out/unet.onnx", _read_exported),
        "yaml": Target(_yaml, "*.yaml", lambda folder: _settings("train", folder / "train.yaml")),
        "study.yaml": Target(_study_yaml, "*.yaml", lambda folder: _settings("study", folder / "study.yaml")),
        "run": Target(_run, "run/*.json*", lambda folder: _main("report", "--run", folder / "run")),
        "checkpoint": Target(_checkpoint, "run/checkpoint-5/*", _read_checkpoint),
    }


# The files


def _pipeline():
    from conftest import make_pipeline, make_unet

    return make_pipeline(make_unet("simple"))


def _pictures(folder: Path) -> None:
    from conftest import shapes
    from PIL import Image

    kinds = ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm")
    for index, (image, label) in enumerate(zip(*shapes(2 * len(kinds)))):
        path = folder / "set" / "abc"[label] / f"{index}.{kinds[index % len(kinds)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def _parquet(folder: Path) -> None:
    from conftest import shapes, write_parquet

    (folder / "set").mkdir()
    write_parquet(folder / "set", *shapes(12))


def _samples(folder: Path) -> None:
    from cond_ddpm.sampling import save_samples

    save_samples(_pipeline(), [0, 1, 2] * 4, range(12), folder / "made", num_inference_steps=1)


def _npz(folder: Path) -> None:
    from cond_ddpm.sampling import save_samples

    save_samples(_pipeline(), [0, 1, 2], range(3), folder / "samples.npz", num_inference_steps=1)


def _snapshots(folder: Path) -> None:
    import torch

    from cond_ddpm.ema import PowerEMA, save_snapshot

    for step in (5, 10):
        save_snapshot(PowerEMA([torch.ones(4, 4)], [0.05, 0.1]), ["weight"], folder / "ema", step)


def _measured(folder: Path) -> None:
    shutil.copytree(ROOT / "pretrained" / "cifar10", folder / "model", ignore=lambda *_: ["unet", "scheduler"])
    pipeline = _pipeline()
    pipeline.companions = {
        name: (folder / "model" / name).read_bytes() for name in ("results.json", "README.md", "samples.png")
    }
    pipeline.save_pretrained(folder / "model")


def _exported(folder: Path) -> None:
    from cond_ddpm.export import export

    export(_pipeline(), "onnx", folder / "out")


def _yaml(folder: Path) -> None:
    import dataclasses

    import yaml

    from cond_ddpm.config import TrainConfig

    settings = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))
    (folder / "train.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def _study_yaml(folder: Path) -> None:
    shutil.copyfile(ROOT / "configs" / "study.yaml", folder / "study.yaml")


def _run(folder: Path) -> None:
    import dataclasses

    from cond_ddpm.config import TrainConfig

    run = folder / "run"
    run.mkdir()
    _pipeline().save_pretrained(run / "pipeline")
    shutil.copyfile(ROOT / "pretrained" / "cifar10" / "results.json", run / "pipeline" / "results.json")
    resolved = {"num_images": 96, "num_validation_images": 16, "class_names": ["a", "b", "c"], "device": "cpu"}
    (run / "config.json").write_text(json.dumps({"config": dataclasses.asdict(TrainConfig()), "resolved": resolved}))
    rows = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3, "elapsed_seconds": step} for step in range(1, 9)]
    rows.append({"epoch": 1, "step": 8, "train_loss": 0.5, "val_loss": 0.5, "elapsed_seconds": 8})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _checkpoint(folder: Path) -> None:
    import torch

    from cond_ddpm.training.checkpoint import save_checkpoint
    from cond_ddpm.training.state import Progress

    (folder / "run").mkdir()
    weights = {"weight": torch.ones(4, 4)}
    states = {"optimizer": {"state": weights}}
    save_checkpoint(folder / "run", {"unet": weights, "ema": weights}, states, Progress(step=5), {"seed": 0})


# What reads them. A fault is an error that is not one of the user's (`cond_ddpm.cli.guarded`), or an assertion of these.


def _main(*arguments) -> None:
    from cond_ddpm.cli import main

    raise SystemExit(main([str(argument) for argument in arguments]))


def _settings(command: str, file: Path) -> None:
    from cond_ddpm.cli import COMMANDS, settings_of

    settings_of(COMMANDS[command], ["--config", str(file)])


def _read_npz(folder: Path) -> None:
    from cond_ddpm.evaluation.external_samples import load_samples

    images = load_samples(folder / "samples.npz", 8).images
    assert images.shape[0] < 10**6


def _read_weights(folder: Path) -> None:
    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.fingerprints import weights_checksum

    found = CondDDPMPipeline.from_pretrained(folder / "model")
    intact = b'"sha256"' in next((folder / "model" / "unet").glob("*.safetensors")).read_bytes()[:100_000]
    assert not intact or weights_checksum(found.unet) == weights_checksum(_pipeline().unet), "other weights"


def _read_card(folder: Path) -> None:
    """As publishing does, before it checks in another process that the folder loads."""
    from cond_ddpm.hub import complete

    complete(folder / "model", "a/b")


def _read_snapshots(folder: Path) -> None:
    from cond_ddpm.ema import combine_snapshots

    combine_snapshots(folder / "ema", 0.07)


def _read_exported(folder: Path) -> None:
    from cond_ddpm.export import load_exported

    load_exported(folder / "out")([0, 1], num_inference_steps=2)


def _read_checkpoint(folder: Path) -> None:
    from cond_ddpm.training.checkpoint import find_checkpoint, load_checkpoint

    load_checkpoint(find_checkpoint(folder / "run", "checkpoint-5"))


# Changes


def change(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """The content with one to three changes: of values, where it is JSON or YAML, or of bytes."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        content = _change_values(content, suffix, rng) if rng.random() < 0.7 else _change_bytes(content, rng)
    return content


def _change_values(content: bytes, suffix: str, rng: random.Random) -> bytes:
    import yaml

    try:
        if suffix == ".json":
            return json.dumps(_change_value(json.loads(content), rng)).encode()
        if suffix == ".jsonl":
            lines = content.splitlines()
            index = rng.randrange(len(lines))
            lines[index] = json.dumps(_change_value(json.loads(lines[index]), rng)).encode()
            return b"\n".join(lines)
        if suffix == ".yaml":
            return yaml.safe_dump(_change_value(yaml.safe_load(content), rng)).encode()
    except Exception:  # bytes were changed before, so that it is neither
        pass
    return _change_bytes(content, rng)


def _change_value(value, rng: random.Random):
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        if rng.random() < 0.15:
            del value[key]
        elif isinstance(value, dict) and rng.random() < 0.1:
            value[str(rng.choice(OTHER_VALUES))] = value.pop(key)
        else:
            value[key] = _change_value(value[key], rng)
        return value
    return rng.choice(OTHER_VALUES)


def _change_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    start = rng.randrange(len(changed) + 1) if rng.random() < 0.5 else min(rng.randrange(64), len(changed))
    stop = min(start + rng.choice([1, 1, 2, 8, 100]), len(changed))
    kind = rng.randrange(6)
    if kind == 0 and start < len(changed):
        changed[start] ^= 1 << rng.randrange(8)
    elif kind == 1 and start < len(changed):
        changed[start] = rng.randrange(256)
    elif kind == 2:
        del changed[start:stop]
    elif kind == 3:
        changed[start:start] = changed[start:stop] * rng.choice([1, 2, 50])
    elif kind == 4:
        del changed[start:]
    else:
        changed[start:stop] = rng.choice(OTHER_BYTES)
    return bytes(changed)


# Trials


def run(read: Callable[[Path], None], folder: Path, most_seconds: int = MOST_SECONDS) -> str | None:
    """Read the folder in a fork; what was wrong, or None. Its output goes to `folder/log`."""
    process = os.fork()
    if not process:
        code = 70
        try:
            output = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1), os.dup2(output, 2)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_MEMORY,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (most_seconds, most_seconds))
            code = _guarded_read(read, folder)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + 6 * most_seconds
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return f"more than {6 * most_seconds} seconds"
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(ended[1])
    if code in (0, 1, 2):
        return None
    last = [line for line in (folder / "log").read_text(errors="replace").splitlines() if line.strip()][-1:]
    return f"exit code {code}: {' '.join(last)[:200]}"


def _guarded_read(read: Callable[[Path], None], folder: Path) -> int:
    import warnings

    import datasets

    from cond_ddpm.cli import guarded

    warnings.simplefilter("ignore")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            code = guarded(read, folder)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    errors = [line for line in said.getvalue().splitlines() if "error: " in line]
    print(said.getvalue())
    assert code == 0 or len(errors) == 1, f"expected one line of error, got {len(errors)}"
    assert "Traceback" not in said.getvalue()
    return code


def fuzz(minutes: float, seed: int, only: list[str], output_dir: Path) -> list[dict]:
    """The rows of the table."""
    import datasets  # noqa: F401  # imports, before the forks
    import machine  # noqa: F401

    import cond_ddpm.commands
    import cond_ddpm.hub
    import cond_ddpm.training
    import cond_ddpm.visualize  # noqa: F401

    shutil.rmtree(output_dir, ignore_errors=True)
    folder = (output_dir / "trial").resolve()
    every = {name: target for name, target in targets().items() if not only or name in only}
    for name, target in every.items():
        whole = (output_dir / "whole" / name.replace("/", "-")).resolve()
        whole.mkdir(parents=True)
        problem = run(target.make, whole, 300) or run(target.read, shutil.copytree(whole, folder, dirs_exist_ok=True))
        said = (whole / "log").read_text() + (folder / "log").read_text()
        if problem or "error: " in said:
            raise SystemExit(f"{name}, unchanged: {problem}\n{said}")
        shutil.rmtree(folder)
    rows = {name: {"file": name, "trials": 0, "refused": 0, "faults": 0} for name in every}
    deadline, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < deadline:
        for name, target in every.items():
            rng = random.Random(f"{seed} {name} {number}")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(output_dir / "whole" / name.replace("/", "-"), folder)
            file = rng.choice(sorted(folder.glob(target.pattern)))
            file.write_bytes(change(file.read_bytes(), file.suffix, rng))
            changed = file.read_bytes()
            problem = run(target.read, folder)
            rows[name]["trials"] += 1
            rows[name]["refused"] += "error: " in (folder / "log").read_text(errors="replace")
            if problem:
                rows[name]["faults"] += 1
                print(f"{name}, trial {number}: {problem}", flush=True)
                kept = output_dir / "faults" / f"{name.replace('/', '-')}-{number}"
                kept.mkdir(parents=True)
                (kept / file.name).write_bytes(changed)
                shutil.copyfile(folder / "log", kept / "log")
        number += 1
    return list(rows.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/fuzz"))
    rows = fuzz(**vars(parser.parse_args()))
    print(json.dumps(rows, indent=1))
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    sys.exit(any(row["faults"] for row in rows))
