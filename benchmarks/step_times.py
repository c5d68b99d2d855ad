"""Better timesteps for few steps: a coordinate search, and what its result is worth on other seeds.

    python benchmarks/step_times.py --model RUN/pipeline --dataset PATH [--steps 4 5 6 8] [--guidance 2] [--seeds 1000]
        [--samples 2000] [--output_dir runs/step_times]

The search looks for the timesteps of DPM-Solver++ of order 2 whose pictures are nearest to those of 50 steps from the same
noise (mean squared error over pixels and `--seeds` seeds). It begins at the sampler's own spacing, and moves one timestep at a
time, in turn, by strides that are halved when none helps. The first timestep stays: there the picture is noise. No classifier
takes part in it. Then `cond-ddpm evaluate` judges `--samples` samples of other seeds with both spacings.

What has been found and measured is kept in the output folder and not done again. Prints JSON and Markdown rows.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

REFERENCE_STEPS = 50
FIGURES = ("frechet_distance", "kernel_distance", "label_accuracy", "precision", "recall")


def search(start: list[int], cost, least: int = 4) -> tuple[list[int], float]:
    """The falling timesteps of least cost that coordinate moves find from `start`, whose first one is not moved."""
    best, found, stride = start, cost(start), 64
    while stride >= least:
        moved = False
        for place in range(1, len(best)):
            for change in (-stride, stride):
                tried = [*best[:place], best[place] + change, *best[place + 1 :]]
                lowest = tried[place + 1] + 1 if place + 1 < len(tried) else 0
                if lowest <= tried[place] < tried[place - 1] and (value := cost(tried)) < found:
                    best, found, moved = tried, value, True
                    break
        if not moved:
            stride //= 2
    return best, found


def main(model: str, dataset: str, steps: list, guidance: float, seeds: int, samples: int, output_dir: Path) -> None:
    import machine
    import torch

    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.config.evaluation import EvaluationConfig
    from cond_ddpm.evaluation.evaluate import evaluate

    pipeline = CondDDPMPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(torch.bfloat16)
    labels = [seed % pipeline.unet.config.num_classes for seed in range(seeds)]
    fixed = {"sampler": "dpm++2", "guidance_scale": guidance, "output_type": "latent"}
    # Not the seeds that `evaluate` begins with.
    drawn = {"class_labels": labels, "seeds": range(1_000_000, 1_000_000 + seeds)}
    reference: list[torch.Tensor] = []

    def cost(timesteps: list[int]) -> float:
        if not reference:
            reference.append(pipeline(**drawn, **fixed, num_inference_steps=REFERENCE_STEPS).images)
        return (pipeline(**drawn, **fixed, timesteps=timesteps).images - reference[0]).square().mean().item()

    output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for count in steps:
        scheduler = pipeline.make_scheduler("dpm++2")
        scheduler.set_timesteps(count)
        own = [int(timestep) for timestep in scheduler.timesteps]
        kept = output_dir / f"searched-{count}-{guidance:g}.json"
        if not kept.exists():
            timesteps, error = search(own, cost)
            kept.write_text(json.dumps({"timesteps": timesteps, "error": error, "own": own, "own_error": cost(own)}))
        found = json.loads(kept.read_text())
        print(json.dumps({"steps": count, **found}), flush=True)
        for name, how in {"own": {"num_inference_steps": count}, "searched": {"timesteps": found["timesteps"]}}.items():
            output = output_dir / f"{name}-{count}-{guidance:g}.json"
            if samples and not output.exists():
                protocol = EvaluationConfig(dataset=dataset, num_samples=samples, subset=samples)
                arguments = {"sampler": "dpm++2", "guidance_scale": guidance, **how}
                evaluate(protocol, output, model, pipeline, progress=False, **arguments)
            judged = json.loads(output.read_text())["samples"] if samples else {}
            error = found["error" if name == "searched" else "own_error"]
            rows.append({"steps": count, "timesteps": name, "error": error, **{key: judged.get(key) for key in FIGURES}})
            print(json.dumps(rows[-1]), flush=True)
    machine.show(rows, versions=machine.versions())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 5, 6, 8])
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2000, help="to judge; 0 only searches")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/step_times"))
    main(**vars(parser.parse_args()))
