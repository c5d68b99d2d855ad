"""What a setting of OpenMP's waiting threads costs a training that is alone, and what it gives two that share the cores.

    python benchmarks/neighbours.py --dataset PATH [--rounds 4] [--pair_rounds 1] [--seconds 20] [--only quickstart hour]

OpenMP's threads spin while they wait for each other, so two programs on the same cores keep each other from working.
Each setting is an environment of child processes that run `train_cond_ddpm.py` with a preset as it is (without samples,
checkpoints and logs). The settings are measured in turn, round after round, alone and in pairs; the steps a second of a pair
are its two programs' together. Prints JSON and Markdown rows; `over alone` is the ratio to the first setting alone.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

SETTINGS = {
    "GNU's default": {"GOMP_SPINCOUNT": "300000"},  # named, so that no default of ours takes its place
    "spin 100000": {"GOMP_SPINCOUNT": "100000"},
    "spin 30000": {"GOMP_SPINCOUNT": "30000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 3000": {"GOMP_SPINCOUNT": "3000"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
PRESETS = {"quickstart": "quickstart.yaml", "hour": "hybrid_cifar10_cpu.yaml"}
QUIET = ["--save_images_epochs", "0", "--checkpointing_steps", "0", "--num_ema_snapshots", "0", "--report_to", "none"]
QUIET += ["--num_validation_images", "64", "--max_train_minutes", "60", "--max_train_steps", "1000000"]
WARM_STEPS, PATIENCE_SECONDS = 4, 600


def start(preset: str, dataset: str, environment: dict[str, str], run: Path) -> subprocess.Popen:
    command = [sys.executable, "train_cond_ddpm.py", "--config", f"configs/{PRESETS[preset]}", "--output_dir", str(run), *QUIET]
    command += ["--dataset", dataset] if preset != "quickstart" else []
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    with run.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, env={**inherited, **environment}, stdout=log, stderr=log)


def steps_done(run: Path) -> int:
    """Rows of metrics.jsonl that are steps; a last line may be half written."""
    file = run / "metrics.jsonl"
    return sum('"loss"' in line for line in file.read_text().splitlines()) if file.exists() else 0


def end_of_a_step(run: Path) -> tuple[int, float]:
    """Waits for the next step to end: the steps done then, and the time."""
    before = steps_done(run)
    while (now := steps_done(run)) == before:
        time.sleep(0.01)
    return now, time.monotonic()


def rates(preset: str, dataset: str, environment: dict[str, str], programs: int, seconds: float) -> list[float]:
    """Steps a second of each of so many programs that train at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / str(number) for number in range(programs)]
        children = [start(preset, dataset, environment, run) for run in runs]
        try:
            began = time.monotonic()
            while min(map(steps_done, runs)) < WARM_STEPS:  # imported, compiled
                time.sleep(0.2)
                if time.monotonic() - began > PATIENCE_SECONDS or any(child.poll() is not None for child in children):
                    raise SystemExit("a program did not start:\n" + runs[0].with_suffix(".log").read_text()[-2000:])
            before = [end_of_a_step(run) for run in runs]
            time.sleep(seconds)
            after = [end_of_a_step(run) for run in runs]
            return [(late[0] - early[0]) / (late[1] - early[1]) for early, late in zip(before, after)]
        finally:
            for child in children:
                child.send_signal(signal.SIGKILL)
                child.wait()


def main(dataset: str, rounds: int, pair_rounds: int, seconds: float, only: list[str], settings: list[str]) -> None:
    import machine

    rows = []
    for preset in only:
        measured = {(name, programs): [] for name in settings for programs in (1, 2)}
        for programs, times in ((1, rounds), (2, pair_rounds)):
            for number in range(times):
                for name in settings if number % 2 == 0 else settings[::-1]:
                    found = rates(preset, dataset, SETTINGS[name], programs, seconds)
                    measured[name, programs].append(found)
                    print(json.dumps([preset, name, programs, found]), flush=True)
        alone = statistics.median(sum(found) for found in measured[settings[0], 1])
        for name in settings:
            row = {"preset": preset, "setting": name}
            for programs in (1, 2):
                totals = [sum(found) for found in measured[name, programs]]
                row["alone" if programs == 1 else "pair"] = statistics.median(totals) if totals else float("nan")
            rows.append({**row, "alone over alone": row["alone"] / alone, "pair over alone": row["pair"] / alone})
    machine.show(rows, versions=machine.versions(), seconds=seconds, rounds=rounds, pair_rounds=pair_rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pair_rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    main(**vars(parser.parse_args()))
