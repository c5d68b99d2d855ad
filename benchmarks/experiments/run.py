"""A queue of experiments: train, sample, measure, append a row; one after the other, at the lowest priority.

    python benchmarks/experiments/run.py --dataset PATH [--lab DIR] [--commit REV] [--threads 1] [--watch]
    python benchmarks/experiments/run.py --keep [--lab DIR]     # copy the laboratory's rows into this checkout, to commit
    python benchmarks/experiments/run.py --table [NAME ...]     # the rows: mean and deviation over the seeds, in Markdown

An experiment is a YAML file beside this one (or in `--queue DIR`):

    order: 10                       # the queue's order; then by name
    config: first_hour              # what it starts from: a file of bases/, or else a preset; the defaults, if none is named
    train: {max_train_steps: 700}   # the settings in which it differs; recipes are compared at equal steps and FLOP
    seeds: [0, 1]                   # a trial each
    dtype: bf16                     # optional: measure the pipeline as it is after its weights were stored in this type
    evaluate:                       # name -> flags of `cond-ddpm evaluate`, a row each; the samples are kept
      guidance4: {num_samples: 2000, subset: 2000, guidance_scale: 4, num_inference_steps: 10, fast: true}
      guidance4-imagenet: {samples_of: guidance4, features: imagenet, subset: 2000}     # the same samples, judged otherwise

An experiment that has begun is not edited, but for further seeds and evaluations, and for the length of its training, as
long as that goes on; give the next idea another name.

Samples are judged anew (`samples_of`) by the code of `--commit`, so that a later judge can be asked about earlier samples.

The laboratory (`--lab`, or COND_DDPM_LAB, or ~/cond_ddpm_lab) is outside any checkout, so that work on the code neither
disturbs nor deletes what runs: `code-COMMIT/`, a git worktree; `venv-HASH/`, by what is installed; `runs/TRIAL/`,
`evaluations/TRIAL/`, `logs/` and `results.jsonl`. A trial stays at the commit at which it began. The runner can be killed
at any time and started again: training goes on from its last checkpoint, and what has a row is done.

Start one runner for each core, each with one thread (the default): they take different trials, and programs of one thread each
do not wait for each other, while OpenMP's threads do, at every operation, once there are more of them than cores
(docs/LOG.md, 2026-11-25). Seconds are not compared here, since the queue shares the machine: `benchmarks/step_time.py`
measures a step, alone and in turn.
"""

import argparse
import contextlib
import ctypes
import datetime
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FIGURES = (
    "frechet_distance",
    "kernel_distance",
    "label_accuracy",
    "recognised_as_no_class",
    "precision",
    "recall",
    "nearest_training_distance",
)
STORE_AS = """
import sys, torch
from cond_ddpm import CondDDPMPipeline
pipeline = CondDDPMPipeline.from_pretrained(sys.argv[1])
pipeline.unet.to({"bf16": torch.bfloat16, "fp16": torch.float16}[sys.argv[3]])
pipeline.companions.pop("samples.png", None)  # of the weights before
pipeline.save_pretrained(sys.argv[2])
"""


class Failed(Exception):
    """A command of a trial ended with an error; its log says why."""


def experiments(queue: Path) -> list[tuple[str, dict]]:
    """(name, settings), in the queue's order; read anew each time, so that the queue can be filled while it is worked on."""
    read = {file.stem: yaml.safe_load(file.read_text()) for file in queue.glob("*.yaml")}
    return sorted(read.items(), key=lambda pair: (pair[1]["order"], pair[0]))


def rows(*files: Path) -> list[dict]:
    """All rows, each once; the last line of a killed runner may be half written."""
    found = {}
    for file in files:
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found[row["experiment"], row["seed"], row["evaluation"]] = row
    return list(found.values())


def open_trials(queue: Path, lab: Path) -> list[tuple[str, dict, int, list[str]]]:
    """Experiments and seeds that lack rows, and the evaluations that they lack, in the queue's order."""
    known = rows(queue / "results.jsonl", lab / "results.jsonl")
    done = {(row["experiment"], row["seed"], row["evaluation"]) for row in known}
    found = []
    for name, settings in experiments(queue):
        for seed in settings["seeds"]:
            missing = [key for key in settings["evaluate"] if (name, seed, key) not in done]
            found += [(name, settings, seed, missing)] if missing else []
    return found


def prepare(lab: Path, commit: str) -> tuple[Path, Path]:
    """The worktree of a commit, and the Python of an environment with what that commit installs."""
    import filelock

    if commit == ".":
        return ROOT, Path(sys.executable)
    code = lab / f"code-{commit[:12]}"
    with filelock.FileLock(lab / "prepare.lock"):  # by one runner; the others then find it
        if not code.with_suffix(".complete").exists():
            shutil.rmtree(code, ignore_errors=True)  # what a kill has left
            subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
            subprocess.run(["git", "worktree", "add", "--force", "--detach", str(code), commit], cwd=ROOT, check=True)
            code.with_suffix(".complete").touch()
        wanted = (code / "setup.cfg").read_bytes() + (code / "constraints.txt").read_bytes()
        venv = lab / f"venv-{hashlib.sha256(wanted).hexdigest()[:8]}"
        if not (venv / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
            install = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt"]
            subprocess.run([*install, ".[test]"], cwd=code, check=True)
            (venv / "complete").touch()
    return code, venv / "bin" / "python"


def last_in_line(priority: str) -> None:
    """In the child, before the command: only what of the machine nobody else wants, and not without the runner.

    On Linux with autogroups a nice value counts among the processes of one session only: the child has one of its own.
    """
    if priority == "last":
        os.nice(19)
    if priority == "last" and sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError):  # a kernel without autogroups
            Path("/proc/self/autogroup").write_text("19")
    if sys.platform == "linux":  # a child of a runner that was killed does not go on beside the next runner's
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def call(command: list, code: Path, log: Path, given: argparse.Namespace) -> None:
    # Threads that wait must not spin: the machine belongs to others first.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(given.threads)}
    environment["PYTHONPATH"] = str(code)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        command = [str(part) for part in command]
        last = {"start_new_session": True, "preexec_fn": lambda: last_in_line(given.priority)}
        done = subprocess.run(command, cwd=code, env=environment, stdout=file, stderr=file, **last)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: exit {done.returncode}; {log}")


def run(given: argparse.Namespace, commit: str, name: str, settings: dict, seed: int, missing: list[str]) -> None:
    """One trial, from wherever it was left, to its rows."""
    lab, dataset = given.lab, given.dataset
    trial, began = f"{name}-seed{seed}", lab / "runs" / f"{name}-seed{seed}.json"
    asked = {key: settings.get(key) for key in ("config", "train", "dtype")}
    if not began.exists():
        partial = began.with_suffix(".partial")
        partial.write_text(json.dumps({"commit": commit, **asked}))
        os.replace(partial, began)
    before = json.loads(began.read_text())
    commit_now, commit = commit, before.pop("commit")
    if lasting(before) != lasting(asked):
        raise Failed(f"{trial} began with other settings, {before}; give the experiment another name")
    code, python = prepare(lab, commit)
    folder, log = lab / "runs" / trial, lab / "logs" / f"{trial}.log"

    preset = settings.get("config")
    base = given.queue / "bases" / f"{preset}.yaml"
    if not base.exists():
        base = code / "configs" / base.name
    config = yaml.safe_load(base.read_text()) if preset else {}
    config |= settings.get("train") or {}
    config |= {"dataset": dataset, "seed": seed, "output_dir": str(folder), "resume_from_checkpoint": "latest"}
    config["num_cpu_threads"] = given.threads
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    if not (folder / "trained").exists():
        call([python, "train_cond_ddpm.py", "--config", file], code, log, given)
        (folder / "trained").touch()
    model, dtype = folder / "pipeline", settings.get("dtype")
    if dtype:
        model = folder / f"pipeline-{dtype}"
        call([python, "-c", STORE_AS, folder / "pipeline", model, dtype], code, log, given)
    for key in sorted(
        missing, key=lambda key: "samples_of" in settings["evaluate"][key]
    ):  # first the samples, then other judges
        results = lab / "evaluations" / trial / f"{key}.json"
        results.parent.mkdir(parents=True, exist_ok=True)
        flags = dict(settings["evaluate"][key])
        made = results.with_stem(flags.pop("samples_of", key))
        source, judge, judging = ["--samples", made.with_suffix(".npz")], commit_now, (code, python)
        if made == results:
            source, judge = ["--model", model, "--save_samples", made.with_suffix(".npz")], commit
        else:
            judging = prepare(lab, commit_now)
        command = [judging[1], "-m", "cond_ddpm.cli", "evaluate", *source, "--dataset", dataset, "--output", results]
        for flag, value in flags.items():
            command += [f"--{flag}"] if value is True else [f"--{flag}", value]
        call(command, judging[0], log, given)
        append(lab / "results.jsonl", row(name, seed, key, judge, results, made))


def lasting(asked: dict) -> dict:
    """What a trial was begun with, without the length of its training, which may change at a resume."""
    length = ("num_epochs", "max_train_steps", "max_train_minutes")
    return {**asked, "train": {key: value for key, value in (asked["train"] or {}).items() if key not in length}}


def row(name: str, seed: int, evaluation: str, commit: str, results: Path, made: Path) -> dict:
    """What is kept of an evaluation.

    Args:
        commit: of the code that judged.
        results: its results.json.
        made: that of the evaluation whose samples were judged, which knows how they came to be.
    """
    found, source = json.loads(results.read_text()), json.loads(made.read_text())
    training, protocol = source["training"], source["protocol"]
    kept = {"experiment": name, "seed": seed, "evaluation": evaluation, "commit": commit[:12]}
    kept |= {key: training[key] for key in ("step", "images_seen", "training_flop", "val_loss")}
    judge = found["protocol"]["feature_extractor"]
    kept |= {"features": found["protocol"]["features"], "judge": judge.get("checksum", judge["backend"])}
    kept |= {key: protocol[key] for key in ("num_samples", "guidance_scale", "num_inference_steps")}
    kept |= {key: found["samples"].get(key) for key in (*FIGURES, "label_accuracies")}
    return kept | {"finished": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}"}


def append(file: Path, row: dict) -> None:
    """On a line of its own, also after a line that was cut, and on the disk before it counts."""
    with file.open("a+") as opened:
        opened.write(("" if opened.tell() == 0 else "\n") + json.dumps(row))
        opened.flush()
        os.fsync(opened.fileno())


def work(given: argparse.Namespace) -> None:
    import filelock

    queue, lab, commit = given.queue, given.lab, given.commit
    (lab / "runs").mkdir(parents=True, exist_ok=True)
    if commit != ".":
        commit = subprocess.check_output(["git", "rev-parse", commit], cwd=ROOT, text=True).strip()
    failed = set()

    def one_trial() -> bool:
        """Work on the first trial that no other runner works on; whether there was one."""
        for name, settings, seed, _ in open_trials(queue, lab):
            if (name, seed) in failed:
                continue
            try:
                with filelock.FileLock(lab / "runs" / f"{name}-seed{seed}.lock", timeout=0):
                    # Looked for again: another runner may have ended this trial since.
                    missing = next((trial[3] for trial in open_trials(queue, lab) if (trial[0], trial[2]) == (name, seed)), [])
                    if not missing:
                        return True
                    print(f"{datetime.datetime.now():%H:%M} {name}, seed {seed}: {', '.join(missing)}", flush=True)
                    run(given, commit, name, settings, seed, missing)
            except filelock.Timeout:
                continue
            except (Failed, subprocess.CalledProcessError) as error:  # not again before the next start
                failed.add((name, seed))
                print(f"failed: {error}", flush=True)
            return True
        return False

    while (worked := one_trial()) or given.watch:
        if not worked:
            time.sleep(30)
    print("nothing is left to do" + (f", but {len(failed)} trials failed" if failed else ""))


def table(names: list[str], queue: Path, lab: Path) -> None:
    """A row for each experiment and evaluation: mean, and standard deviation where there are several seeds."""
    known = rows(queue / "results.jsonl", lab / "results.jsonl")
    found = [row for row in known if not names or row["experiment"] in names]
    columns = ("val_loss", *FIGURES)
    print(
        "| experiment | evaluation | seeds | steps | training FLOP | "
        + " | ".join(c.replace("_", " ") for c in columns)
        + " |"
    )
    print("|" + "---|" * (5 + len(columns)))
    for key in dict.fromkeys((row["experiment"], row["evaluation"]) for row in found):
        group = [row for row in found if (row["experiment"], row["evaluation"]) == key]
        cells = [*key, str(len(group)), str(group[0]["step"]), f"{group[0]['training_flop']:.2g}"]
        for column in columns:
            values = [row[column] for row in group if row.get(column) is not None]
            if not values:  # such as the accuracy of labels by a network that does not know the classes
                cells.append("")
                continue
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4g}{spread}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", type=Path, default=Path(os.environ.get("COND_DDPM_LAB", Path.home() / "cond_ddpm_lab")))
    parser.add_argument("--queue", type=Path, default=HERE, help="folder of the experiments (default: this file's)")
    parser.add_argument("--dataset", help="CIFAR-10, by its Hub id or a local folder")
    parser.add_argument(
        "--commit", default="HEAD", help="of trials that have not begun; . is this checkout and Python as they are"
    )
    parser.add_argument("--threads", type=int, default=1, help="of this runner (default: 1)")
    parser.add_argument("--priority", choices=["last", "normal"], default="last", help="on this machine (default: last)")
    parser.add_argument("--watch", action="store_true", help="when nothing is left, wait for new files")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--table", nargs="*", metavar="NAME")
    given = parser.parse_args()
    if given.table is not None:
        table(given.table, given.queue, given.lab)
    elif given.keep:
        kept = given.queue / "results.jsonl"
        kept.write_text("".join(json.dumps(row) + "\n" for row in rows(kept, given.lab / "results.jsonl")))
        print(kept)
    elif given.dataset is None:
        parser.error("--dataset: expected CIFAR-10's Hub id or folder")
    else:
        work(given)
