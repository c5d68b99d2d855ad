"""Kill and stop every command at chosen moments, above all in the middle of a write, run it again, and compare.

    python benchmarks/torture.py [--trials 300] [--minutes 60] [--seed 0] [--only train sample ...] [--output_dir runs/torture]

A trial runs a command on tiny data, stops it, runs the same command again and compares what is then in its folders with what
two undisturbed runs left: every file and folder, tensor by tensor where they hold tensors and else byte by byte, without
measured times. Files in which two undisturbed runs differ are named and only checked to be there. A training that goes back to
a checkpoint keeps what it had done since in `abandoned-STEP-N/`, which is left out. A search by `tune` goes another way after
an interruption, so of it only the last result and the absence of litter are compared. What can happen to a command:

- `killed in SYSCALL`: SIGKILL at the entry of one of its calls of the system that write, truncate, rename, remove, flush or
  make a file or folder in its folders. strace injects it. Which calls there are is known from an undisturbed run, so that each
  has its chance, and not only those that take long.
- `full disk in SYSCALL`: the same call fails because the disk is full. The command must end with one line of error, and not by
  a signal or with a traceback.
- `killed`, `SIGTERM`, `Ctrl-C`: at a random moment of its course.

The commands run in forks of one process that has imported torch already; so a trial takes a second or two and not half a
minute. Needs strace and Linux. Trials are the same for the same seed. They end after `--trials`, or after `--minutes` if that
is earlier. Prints JSON and Markdown rows: how many trials, and how many of them went wrong; what went wrong is kept in the
folder.
"""

import argparse
import collections
import csv
import faulthandler
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
os.environ["TQDM_MININTERVAL"] = "3600"  # progress bars would write a different number of times in each run

# Calls that change what is on the disk; each is counted by itself, as strace counts them.
WRITES = ("write", "pwrite64", "writev", "ftruncate", "fsync", "fdatasync", "fallocate", "copy_file_range", "sendfile")
NAMES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "link", "linkat", "symlink")
MEASURED = ("elapsed_seconds", "images_per_second", "memory_gb", "seconds", "minutes", "since", "process", "created")
TIMES = re.compile(rf'"?({"|".join(MEASURED)})"?: *("[^"]*"|[-+.\deE]+|\{{[^}}]*\}})'.encode())
MOST_SECONDS = 300  # longer, and a command hangs


# A command's arguments, given the folder that it is run in.
Scenario = Callable[[Path], list[str]]


def scenarios(shared: Path) -> dict[str, Scenario]:
    """The commands; `shared` holds the data set, a run and its pipeline, which they only read."""
    data, run, pipeline = (str(shared / name) for name in ("data", "run", "run/pipeline"))
    train = ["train", "--config", str(shared / "train.yaml"), "--dataset", data, "--resume_from_checkpoint", "latest"]
    few = ["--num_inference_steps", "2"]
    sample = ["sample", "--model", pipeline, "--num_images_per_class", "4", *few, "--output"]
    evaluate = ["evaluate", "--model", pipeline, "--dataset", data, "--num_samples", "24", "--subset", "24", *few]
    export = ["export", "--model", pipeline, "--format", "torch", "--output"]
    return {
        "train": lambda folder: [*train, "--output_dir", f"{folder}/run"],
        "sample": lambda folder: [*sample, f"{folder}/samples.npz"],
        "sample to a folder": lambda folder: [*sample, f"{folder}/samples"],
        "evaluate": lambda folder: [*evaluate, "--save_samples", f"{folder}/kept.npz", "--output", f"{folder}/results.json"],
        "study": lambda folder: ["study", "--config", str(shared / "study.yaml"), "--output_dir", f"{folder}/study"],
        "tune": lambda folder: ["tune", "--config", str(shared / "tune.yaml"), "--output_dir", f"{folder}/tune"],
        "ema": lambda folder: ["ema", "--run", run, "--std", "0.1", "--output", f"{folder}/averaged"],
        "export": lambda folder: [*export, f"{folder}/exported"],
        "publish": lambda folder: ["publish", "--repo_id", "a/shapes", "--dry_run", "--model", f"{folder}/pipeline"],
    }


def prepare(shared: Path) -> int:
    """Tiny data and a tiny run; 0 if that worked."""
    import yaml
    from conftest import TINY, shapes, write_parquet

    (shared / "data").mkdir(parents=True)
    write_parquet(shared / "data", *shapes(96))
    base = {
        "resolution": 8,
        "model": "attention",
        "unet": {**TINY, "block_out_channels": [8, 16]},
        "batch_size": 16,
        "num_validation_images": 16,
        "max_train_steps": 12,
        "num_inference_steps": 2,
        "num_images_per_class": 1,
        "report_to": "none",
        "checkpointing_steps": 4,
        "save_images_epochs": 1,
    }
    (shared / "train.yaml").write_text(yaml.safe_dump(base))
    models = {"plain": {"model": "simple", "max_train_steps": 6}, "attention": {"model": "attention", "max_train_steps": 6}}
    protocol = {"evaluate": {"num_samples": 12, "subset": 12}, "sampling": {"num_inference_steps": 2}, "evaluations": 1}
    base["dataset"] = str(shared / "data")
    (shared / "study.yaml").write_text(yaml.safe_dump({"base": base, "models": models, **protocol}))
    search = {"base": {**base, "max_train_steps": 6}, "search": {"learning_rate": [1e-4, 1e-3]}, "trials": 2}
    (shared / "tune.yaml").write_text(yaml.safe_dump(search))
    arguments = ["train", "--config", str(shared / "train.yaml"), "--dataset", str(shared / "data")]
    return invoke([*arguments, "--output_dir", str(shared / "run")], shared / "cache")


# One command


def invoke(arguments: list[str], cache: Path) -> int:
    """Run the command in this process; its exit code."""
    import datasets

    from cond_ddpm.cli import main
    from cond_ddpm.evaluation import classifier

    datasets.config.HF_DATASETS_CACHE = cache
    classifier.RECIPE = classifier.Recipe(min_steps=2, epochs=0, min_images_seen=64)  # judges of seconds, not of quality
    return main(arguments)


def start(action: Callable[[], int], log: Path) -> int:
    """The action in a fork, which waits for SIGCONT before it begins; returns the number of its process."""
    process = os.fork()
    if process:
        os.waitpid(process, os.WUNTRACED)
        return process
    code = 70
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        faulthandler.register(signal.SIGUSR1)  # where it hangs
        os.kill(os.getpid(), signal.SIGSTOP)
        code = action()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(process: int, tracer: subprocess.Popen | None = None, signal_at: tuple[int, float] | None = None) -> int:
    """Let it go on, and wait for its end; its exit code, or minus the signal that ended it."""
    os.kill(process, signal.SIGCONT)
    began = time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        seconds = time.monotonic() - began
        if signal_at is not None and seconds >= signal_at[1]:
            os.kill(process, signal_at[0])
            signal_at = None
        if seconds > MOST_SECONDS:
            os.kill(process, signal.SIGUSR1)
            time.sleep(1)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise TimeoutError(f"it had not ended after {MOST_SECONDS} seconds")
        time.sleep(0.005)
    if tracer is not None:
        tracer.wait()
    return os.waitstatus_to_exitcode(status)


def command(arguments: list[str], cache: Path, log: Path) -> tuple[int, str]:
    """Run it; its exit code and its output."""
    code = end(start(lambda: invoke(arguments, cache), log))
    return code, log.read_text(errors="replace")


def traced(arguments: list[str], cache: Path, log: Path, calls: Path, *injected: str) -> int:
    """Run it under strace, which writes `calls` and injects what it is told to; its exit code."""
    process = start(lambda: invoke(arguments, cache), log)
    kinds = ",".join((*WRITES, *NAMES))
    options = ["-y", "-qq", "-o", str(calls), "-e", f"trace={kinds}", *(f"--inject={what}" for what in injected)]
    tracer = subprocess.Popen(["strace", *options, "-p", str(process)], stderr=subprocess.DEVNULL)
    while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text():
        if tracer.poll() is not None:
            os.kill(process, signal.SIGKILL)
            raise SystemExit("strace may not attach to a process here")
        time.sleep(0.002)
    return end(process, tracer)


# What it left


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file below the folder, without the seconds in text files; '' for a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith(".lock") or "/abandoned-" in str(path):
            continue
        found[name] = "" if path.is_dir() else hashlib.sha256(_content(path, folder)).hexdigest()
    return found


def _content(path: Path, folder: Path) -> bytes:
    """What a file says, or its bytes, if it cannot be read, since it was half written."""
    try:
        return _meaning(path, folder)
    except Exception:
        return path.read_bytes()


def _meaning(path: Path, folder: Path) -> bytes:
    """The tensors by their names, the settings without measured times and without the folder's name."""
    import torch
    from safetensors import safe_open

    if path.suffix == ".safetensors":
        with safe_open(path, "np") as opened:
            arrays = {name: opened.get_tensor(name) for name in sorted(opened.keys()) if name not in MEASURED}
            return b"".join(_bytes(part) for part in (sorted((opened.metadata() or {}).items()), arrays))
    if path.suffix == ".pt":
        return _bytes(torch.load(path, map_location="cpu", weights_only=True))
    content = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
    if path.name == "manifest.json":  # checksums of files, whose contents are compared; so only whether they hold
        from cond_ddpm.training.checkpoint import fault

        return _bytes([sorted(json.loads(content)), fault(path.parent)])
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
        return _bytes([{name: value for name, value in row.items() if name not in MEASURED} for row in rows])
    if path.suffix in (".json", ".jsonl", ".yaml", ".md"):
        return TIMES.sub(b"", content)
    return re.sub(rb"minutes of training\D*[\d.]+", b"", content) if path.suffix == ".html" else content


def _bytes(value) -> bytes:
    """The same for equal values, whatever their place in memory and the order of a dict."""
    if isinstance(value, dict):
        return b"{" + b"".join(_bytes(part) for item in sorted(value.items(), key=repr) for part in item) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b"".join(map(_bytes, value)) + b"]"
    if hasattr(value, "numpy"):
        value = value.contiguous().view(-1).numpy() if value.dim() else value.numpy()
    if hasattr(value, "tobytes"):
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    return TIMES.sub(b"", repr(value).encode())  # also of the text of a results.json


def calls_of(file: Path, folder: Path) -> list[tuple[str, int]]:
    """(syscall, its number among the calls of that name, from 1) of the calls that concern something in the folder."""
    counted: collections.Counter = collections.Counter()
    found = []
    for line in file.read_text(errors="replace").splitlines():
        call = re.match(r"(\w+)\(", line)
        if call:
            counted[call[1]] += 1
            if str(folder) in line:
                found.append((call[1], counted[call[1]]))
    return found


# Trials


@dataclass
class Known:
    """What undisturbed runs of a scenario showed."""

    contents: dict[str, str]
    vary: set[str]
    calls: list[tuple[str, int]]
    seconds: float


def undisturbed(name: str, scenario: Scenario, folder: Path, shared: Path) -> Known:
    """Run it twice."""
    made = []
    for number in range(2):
        run = fresh(folder, shared)
        began = time.monotonic()
        code = traced(scenario(run), run / "cache", folder / "log", folder / "calls")
        seconds = time.monotonic() - began
        if code != 0:
            raise SystemExit(f"undisturbed, run {number}: exit code {code}\n{(folder / 'log').read_text()}")
        made.append(contents(run))
    shutil.copytree(run, folder.parent / "undisturbed" / name, symlinks=True)  # to compare with by hand
    one, two = made
    if one.keys() != two.keys():
        raise SystemExit(f"two undisturbed runs leave different files: {sorted(one.keys() ^ two.keys())}")
    vary = {name for name in one if one[name] != two[name]}
    vary |= one.keys() & {"study/study.md", "study/study.png"}  # minutes in a table and along an axis
    return Known(two, vary, calls_of(folder / "calls", folder / "work"), seconds)


def fresh(folder: Path, shared: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shared / "run" / "pipeline", folder / "work" / "pipeline")
    return folder / "work"


def trial(name: str, scenario: Scenario, known: Known, how: str, rng: random.Random, folder: Path, shared: Path) -> str | None:
    """One trial; what went wrong, or None."""
    run = fresh(folder, shared)
    log = folder / "log"
    arguments = scenario(run)
    if how in ("killed in", "full disk in"):
        call, number = rng.choice(known.calls)
        what = f"{call}:signal=KILL:when={number}" if how == "killed in" else f"{call}:error=ENOSPC:when={number}"
        code = traced(arguments, run / "cache", log, folder / "calls", what)
        where = f"{how} {call} {number}"
    else:
        number = {"killed": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}[how]
        at = rng.uniform(0, known.seconds)
        code = end(start(lambda: invoke(arguments, run / "cache"), log), signal_at=(number, at))
        where = f"{how} after {at / known.seconds:.0%}"
    text = log.read_text(errors="replace") if log.exists() else ""
    if "Traceback" in text and how != "Ctrl-C":
        return f"{where}: a traceback, exit code {code}"
    if how == "full disk in" and code not in (0, 1):
        return f"{where}: exit code {code}"
    if contents(run).items() ^ known.contents.items() and code != 0:
        code, text = command(arguments, run / "cache", folder / "log-again")
        if code != 0:
            return f"{where}: again: exit code {code}: {text.strip().splitlines()[-1:]}"
    found = contents(run)
    missing, more = known.contents.keys() - found.keys(), found.keys() - known.contents.keys()
    other = {name for name in known.contents.keys() & found.keys() if known.contents[name] != found[name]} - known.vary
    if name == "tune":  # which trials there are depends on where it was interrupted
        missing &= {"tune/best.yaml"}
        more = {file for file in more if ".partial" in file or "/.tmp" in file}
        other = set()
    if missing or more or other:
        return f"{where}: missing {sorted(missing)}, left over {sorted(more)}, different {sorted(other)}"
    return None


def campaign(trials: int, minutes: float, seed: int, only: list[str], output_dir: Path) -> list[dict]:
    """The rows of the table."""
    import machine  # noqa: F401  # imports torch, before the forks

    import cond_ddpm.commands
    import cond_ddpm.evaluation.evaluate
    import cond_ddpm.experiments.study
    import cond_ddpm.experiments.tune
    import cond_ddpm.hub
    import cond_ddpm.training  # noqa: F401

    folder = (output_dir / "trial").resolve()
    shared = (output_dir / "shared").resolve()
    shutil.rmtree(output_dir, ignore_errors=True)
    shared.mkdir(parents=True)
    # In a fork, because the libraries that write parquet files start threads.
    if end(start(lambda: prepare(shared), output_dir / "prepare.log")) != 0:
        raise SystemExit((output_dir / "prepare.log").read_text())
    every = {name: scenario for name, scenario in scenarios(shared).items() if not only or name in only}
    known = {name: undisturbed(name, scenario, folder, shared) for name, scenario in every.items()}
    rows = {name: {"command": name, "calls that write": len(known[name].calls)} for name in every}
    deadline = time.monotonic() + 60 * minutes
    wrong: list[str] = []
    for name, how, number in plan(list(every), trials):
        if time.monotonic() > deadline:
            break
        rng = random.Random(f"{seed} {name} {how} {number}")
        try:
            problem = trial(name, every[name], known[name], how, rng, folder, shared)
        except TimeoutError as error:
            problem = f"{how}: {error}"
        print(f"{name}, trial {number}: {how}", file=sys.stderr, flush=True)
        rows[name][how] = rows[name].get(how, 0) + 1
        rows[name].setdefault("went wrong", 0)
        if problem:
            rows[name]["went wrong"] += 1
            wrong.append(f"{name}, trial {number}: {problem}")
            print(wrong[-1], flush=True)
            shutil.copytree(folder, output_dir / "wrong" / f"{len(wrong)}", symlinks=True)
    for name in every:
        rows[name]["vary undisturbed"] = ", ".join(sorted(known[name].vary)) or "-"
    return list(rows.values())


HOW = ("killed in", "full disk in", "killed", "SIGTERM", "Ctrl-C")


def plan(names: list[str], trials: int) -> Iterator[tuple[str, str, int]]:
    """(command, how, number): each command and each way in turn; half of the trials are kills in a call."""
    ways = [HOW[0], HOW[1], HOW[0], HOW[2], HOW[0], HOW[3], HOW[0], HOW[4]]
    for number in range(trials):
        round_of_ways, index = divmod(number, len(names))
        yield names[index], ways[round_of_ways % len(ways)], round_of_ways


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/torture"))
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        raise SystemExit("torture.py needs strace; on Debian: apt-get install strace")
    rows = campaign(**vars(arguments))
    print(json.dumps(rows, indent=1))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for row in rows:
        print("| " + " | ".join(str(row.get(key, 0)) for key in keys) + " |")
    sys.exit(any(row.get("went wrong") for row in rows))
