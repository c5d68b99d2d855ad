"""Few steps: the judge's figures of one model by sampler, spacing and guidance, at 5, 10 and 20 forwards, and at 100.

    python benchmarks/few_steps.py --model RUN/pipeline --dataset PATH [--guide FOLDER] [--guidance 2] [--samples 1000]
        [--forwards 5 10 20 100] [--only dpm++2 unipc] [--output_dir runs/few_steps]

A forward is one call of the network, guided or not; Heun's k steps take 2k - 1. `--guide` is an earlier or smaller model's
folder, for autoguidance (Karras 2024). The judge is `cond-ddpm evaluate`'s classifier; the same seeds everywhere. What has
been measured is kept in the output folder and not measured again. Prints a line each, then JSON and Markdown rows.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

HOW = {
    "dpm++2": {"sampler": "dpm++2"},  # Karras spacing, like all others that do not name one
    "dpm++3": {"sampler": "dpm++3"},
    "unipc": {"sampler": "unipc"},
    "heun": {"sampler": "heun"},
    "ddim": {"sampler": "ddim"},  # trailing
    "dpm++2, trailing": {"sampler": "dpm++2", "timestep_spacing": "trailing"},
    "dpm++2, quadratic": {"sampler": "dpm++2", "timestep_spacing": "quadratic"},
    "dpm++2, guided at sigma 0.3 to 20": {"sampler": "dpm++2", "guidance_interval": (0.3, 20.0)},
    "dpm++2, guided at sigma 0.3 up": {"sampler": "dpm++2", "guidance_interval": (0.3, 1e4)},
    "dpm++2, rescaled 0.7": {"sampler": "dpm++2", "guidance_rescale": 0.7},
    "dpm++2, autoguided": {"sampler": "dpm++2", "guide": True},
}
FIGURES = ("frechet_distance", "kernel_distance", "label_accuracy", "precision", "recall")


def main(
    model: str, dataset: str, guide: str, guidance: float, samples: int, forwards: list, only: list, output_dir: Path
) -> None:
    import machine

    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.config.evaluation import EvaluationConfig
    from cond_ddpm.evaluation.evaluate import evaluate

    pipeline = CondDDPMPipeline.from_pretrained(model)
    pipeline.unet.compile()  # as `cond-ddpm evaluate --fast`
    guide = guide and CondDDPMPipeline.from_pretrained(guide)
    protocol = EvaluationConfig(dataset=dataset, num_samples=samples, subset=samples)
    rows = []
    for count in forwards:
        for name in only:
            arguments = {**HOW[name], "num_inference_steps": (count + 1) // 2 if name == "heun" else count}
            if "guide" in arguments:
                if not guide:
                    continue
                arguments["guide"] = guide
            output = output_dir / f"{name} {count} {guidance:g}.json".replace(", ", "_").replace(" ", "_")
            if not output.exists():
                arguments |= {"guidance_scale": guidance, "mixed_precision": "bf16"}
                evaluate(protocol, output, model, pipeline, progress=False, **arguments)
            judged = json.loads(output.read_text())["samples"]
            rows.append({"how": name, "forwards": count, "guidance": guidance, **{key: judged[key] for key in FIGURES}})
            print(json.dumps(rows[-1]), flush=True)
    machine.show(rows, versions=machine.versions())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--guide")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--forwards", type=int, nargs="+", default=[5, 10, 20, 100])
    parser.add_argument("--only", nargs="+", default=list(HOW), choices=list(HOW))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/few_steps"))
    main(**vars(parser.parse_args()))
