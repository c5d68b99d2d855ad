"""What a setting of OpenMP's threads costs a training that is alone, and what it gives two that share the cores.

    python benchmarks/neighbours.py --dataset PATH [--rounds 12] [--seconds 3] [--only quickstart hour] [--settings NAME ...]

OpenMP's threads spin while they wait for each other. Each setting here is the environment and the flags of two child
processes that run `train_cond_ddpm.py` with a preset as it is (without samples, checkpoints and logs). All are started, then
stopped by SIGSTOP; round after round each setting's first process goes on by itself for a few seconds, and every third round
both together, so that the machine's drift meets all settings alike. A pair's steps a second are its two programs' together.
Prints JSON and Markdown rows: medians over the rounds of the ratio to the first setting alone.
"""

import argparse
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

SETTINGS = {  # name -> environment, flags
    "GNU's default": ({"GOMP_SPINCOUNT": "300000"}, []),
    "spin 100000": ({"GOMP_SPINCOUNT": "100000"}, []),
    "spin 30000": ({"GOMP_SPINCOUNT": "30000"}, []),
    "spin 10000": ({"GOMP_SPINCOUNT": "10000"}, []),
    "spin 3000": ({"GOMP_SPINCOUNT": "3000"}, []),
    "passive": ({"OMP_WAIT_POLICY": "passive"}, []),
    "one thread": ({}, ["--num_cpu_threads", "1"]),
}
PRESETS = {"quickstart": "quickstart.yaml", "hour": "hybrid_cifar10_cpu.yaml"}
QUIET = ["--save_images_epochs", "0", "--checkpointing_steps", "0", "--num_ema_snapshots", "0", "--report_to", "none"]
QUIET += ["--num_validation_images", "8", "--max_train_minutes", "600", "--max_train_steps", "1000000"]
WARM_STEPS, LIMIT_SECONDS = 3, 600


class Program:
    """A training that is started, and stopped after its first steps."""

    def __init__(self, config: str, flags: list[str], environment: dict[str, str], run: Path):
        command = [sys.executable, "train_cond_ddpm.py", "--config", config, "--output_dir", str(run), *QUIET, *flags]
        inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        self.log, self.metrics, self.offset, self.steps = run.with_suffix(".log"), run / "metrics.jsonl", 0, 0
        with self.log.open("w") as log:
            self.child = subprocess.Popen(command, cwd=ROOT, env={**inherited, **environment}, stdout=log, stderr=log)
        began = time.monotonic()
        while self.count() < WARM_STEPS:  # imported, compiled
            time.sleep(0.1)
            if time.monotonic() - began > LIMIT_SECONDS or self.child.poll() is not None:
                raise SystemExit("a program did not start:\n" + self.log.read_text()[-2000:])
        self.child.send_signal(signal.SIGSTOP)

    def count(self) -> int:
        """Steps done so far: the rows of metrics.jsonl that are no epoch's; only what is new is read."""
        if self.metrics.exists():
            with self.metrics.open("rb") as file:
                file.seek(self.offset)
                lines = file.read().rpartition(b"\n")[0]
            self.offset += len(lines) + 1 if lines else 0
            self.steps += lines.count(b'"loss"')
        return self.steps

    def next_step(self) -> tuple[int, float]:
        """Waits for a step to end: the steps done then, and the time."""
        before = self.count()
        while (now := self.count()) == before:
            time.sleep(0.004)
        return now, time.monotonic()


def rate(programs: list[Program], seconds: float) -> float:
    """Steps a second of these programs together, nothing else going on; each between two ends of its steps."""
    for program in programs:
        program.child.send_signal(signal.SIGCONT)
    before = [program.next_step() for program in programs]
    time.sleep(seconds)
    after = [program.next_step() for program in programs]
    for program in programs:
        program.child.send_signal(signal.SIGSTOP)
    return sum((late[0] - early[0]) / (late[1] - early[1]) for early, late in zip(before, after))


def main(dataset: str, rounds: int, seconds: float, only: list[str], settings: list[str]) -> None:
    import machine

    rows = []
    for preset in only:
        programs, alone, pairs = {}, {name: [] for name in settings}, {name: [] for name in settings}
        with tempfile.TemporaryDirectory() as folder:
            try:
                for name in settings:
                    runs = [Path(folder) / f"{name} {number}" for number in range(2)]
                    environment, flags = SETTINGS[name]
                    flags = [*flags, *(["--dataset", dataset] if preset != "quickstart" else [])]
                    programs[name] = [Program(f"configs/{PRESETS[preset]}", flags, environment, run) for run in runs]
                for number in range(rounds):
                    for name in settings[:: 1 if number % 2 == 0 else -1]:
                        alone[name].append(rate(programs[name][:1], seconds))
                    if number % 3 == 0:
                        for name in settings:
                            pairs[name].append(rate(programs[name], 2 * seconds))
            finally:
                for program in (one for pair in programs.values() for one in pair):
                    program.child.kill()
                    program.child.wait()
        for name in settings:
            ratios = sorted(mine / first for mine, first in zip(alone[name], alone[settings[0]]))
            together = [both / first for both, first in zip(pairs[name], alone[settings[0]][::3])]
            spread = f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}"
            row = {"preset": preset, "setting": name, "steps/s alone": statistics.median(alone[name])}
            row |= {"alone over the first": f"{statistics.median(ratios):.3f}", "quartiles": spread}
            rows.append({**row, "two together over one alone": statistics.median(together)})
            print(rows[-1], flush=True)
    machine.show(rows, versions=machine.versions(), seconds=seconds, rounds=rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--only", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    main(**vars(parser.parse_args()))
