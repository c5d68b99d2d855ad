"""A training step's time of several recipes, alone and in turn, as ratios to the first.

    python benchmarks/step_time.py FILE.yaml [FILE.yaml ...] --dataset PATH [--rounds 9] [--seconds 4] [--threads 2]

A file is what `train_cond_ddpm.py --config` takes, with the run's own batch size, precision and compilation. All are started,
then stopped by SIGSTOP, and go on one at a time, round after round, so that the machine's drift meets all alike. Nothing else
should run. The queue of experiments compares recipes at equal steps; this says what a step costs.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def main(files: list[str], dataset: str, rounds: int, seconds: float, threads: int) -> None:
    import machine
    import neighbours

    programs, rates = [], [[] for _ in files]
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, file in enumerate(files):
                flags = ["--dataset", dataset, "--num_cpu_threads", str(threads)]
                programs.append(neighbours.Program(str(Path(file).resolve()), flags, {}, Path(folder) / str(number)))
            for _ in range(rounds):
                for found, program in zip(rates, programs):
                    found.append(neighbours.rate([program], seconds))
        finally:
            for program in programs:
                program.child.kill()
                program.child.wait()
    rows = []
    for file, found in zip(files, rates):
        ratios = sorted(first / mine for mine, first in zip(found, rates[0]))
        spread = f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}"
        rows.append({"recipe": Path(file).stem, "step over the first": statistics.median(ratios), "quartiles": spread})
    machine.show(rows, versions=machine.versions(), seconds=seconds, rounds=rounds, threads=threads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE.yaml")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--threads", type=int, default=2)
    main(**vars(parser.parse_args()))
