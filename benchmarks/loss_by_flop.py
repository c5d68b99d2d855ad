"""The training loss of several recipes against their training FLOP, each as the mean of its seeds, as a picture.

    python benchmarks/loss_by_flop.py --output losses.png --runs attention RUN RUN RUN --runs simple RUN RUN RUN

A point is the mean over 50 steps. The runs of experiments are in `runs/` of the laboratory (`benchmarks/experiments/run.py`).
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WINDOW = 50  # steps


def curve(run: Path):
    """FLOP and mean losses of a finished run, (N,) each."""
    import numpy as np

    from cond_ddpm.files import read_lines

    training = json.loads((run / "pipeline" / "results.json").read_text())["training"]
    losses = np.array([row["loss"] for row in read_lines(run / "metrics.jsonl") if "loss" in row])
    losses = losses[: len(losses) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)
    return (np.arange(len(losses)) + 1) * WINDOW * training["training_flop"] / training["step"], losses


def main(runs: list[list[str]], output: Path) -> None:
    import numpy as np

    from cond_ddpm.visualize.drawing import figure, lettering

    with figure(output, (7, 4), 150, lettering([name for name, *_ in runs])) as drawn:
        axes = drawn.add_subplot()
        for name, *folders in runs:
            curves = [curve(Path(folder)) for folder in folders]
            losses = np.array([losses for _, losses in curves])  # seeds of a recipe have equally many steps
            axes.plot(curves[0][0], losses.mean(axis=0), label=f"{name} ({len(folders)} seeds)")
            axes.fill_between(curves[0][0], losses.min(axis=0), losses.max(axis=0), alpha=0.2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("training FLOP")
        axes.set_ylabel("training loss")
        axes.grid(alpha=0.3, which="both")
        axes.legend()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", action="append", required=True, metavar=("NAME", "RUN"))
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    main(given.runs, given.output)
