"""What sampling costs: each sampler's forwards and images/s, guidance, the loop's own share, memory, peers, compilation.

    python benchmarks/sampling.py samplers  [--batch_size 16] [--ddpm]
    python benchmarks/sampling.py guidance  [--batch_size 64] [--steps 5] [--repeats 5]
    python benchmarks/sampling.py overhead  [--batch_size 64] [--steps 10]
    python benchmarks/sampling.py memory    [--images 10000]
    python benchmarks/sampling.py peers     [--batch_size 100] [--repeats 3]
    python benchmarks/sampling.py inference [--batch_size 100] [--repeats 3]

Prints JSON and Markdown rows for RESULTS.md. The network is the attention UNet of the study at its full size, untrained, in
bf16 autocast; that of `memory` is small, so that what the images take is a large share. `peers`: images/s at 20 steps of the
hybrid of size s and of UNet2DModel with as many parameters, (64,136,136), both in bf16 autocast with the same sampler.
`inference`: the hybrid eager, compiled and exported, fp32 and bf16. Times are ratios within one run.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

BASE = "dpm++2"  # what the others are compared with


def pipeline_of(**arguments):
    import torch
    from diffusers import DDPMScheduler

    from cond_ddpm import AttentionUNet2DModel, CondDDPMPipeline

    torch.manual_seed(0)
    pipeline = CondDDPMPipeline(AttentionUNet2DModel(**arguments).eval(), DDPMScheduler(prediction_type="v_prediction"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seconds(pipeline, batch_size: int, **arguments) -> float:
    import torch

    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pipeline([0] * batch_size, seeds=range(batch_size), batch_size=batch_size, output_type="pt", **arguments)
    return time.perf_counter() - started


def samplers(batch_size: int, repeats: int, with_ddpm: bool) -> list[dict]:
    from cond_ddpm.pipelines.pipeline_cond_ddpm import SAMPLERS

    pipeline, forwards = pipeline_of(), 0

    def count(*_):
        nonlocal forwards
        forwards += 1

    pipeline.unet.register_forward_hook(count)
    names = [name for name in SAMPLERS if name != "ddpm" or with_ddpm]
    times = {(name, scale): [] for name in names for scale in (1.0, 2.0)}
    counts = {}
    seconds(pipeline, batch_size, sampler=BASE, num_inference_steps=2)  # the first is slower than all others
    for _ in range(repeats):
        for (name, scale), spent in times.items():
            if name == "ddpm" and (spent or scale != 1.0):
                continue
            forwards = 0
            spent.append(seconds(pipeline, batch_size, sampler=name, guidance_scale=scale))
            counts[name, scale] = forwards * (1 if scale == 1.0 else 2)
    base = statistics.median(times[BASE, 1.0])
    rows = []
    for (name, scale), spent in times.items():
        if spent:
            median = statistics.median(spent)
            rows.append(
                {
                    "sampler": name,
                    "guidance_scale": scale,
                    "forwards_per_image": counts[name, scale],
                    "images_per_second": batch_size / median,
                    "time_relative_to_base": median / base,
                }
            )
    return rows


def guidance(batch_size: int, steps: int, repeats: int) -> list[dict]:
    pipeline = pipeline_of()
    seconds(pipeline, batch_size, sampler=BASE, num_inference_steps=1)
    ratios = []
    for _ in range(repeats):
        plain, guided = (
            seconds(pipeline, batch_size, sampler=BASE, num_inference_steps=steps, guidance_scale=scale)
            for scale in (1.0, 2.0)
        )
        ratios.append(guided / plain)
    return [{"batch_size": batch_size, "guided_over_unguided": statistics.median(ratios), "all": ratios}]


def overhead(batch_size: int, steps: int, repeats: int) -> list[dict]:
    pipeline, spent = pipeline_of(), 0.0
    forward = pipeline.unet.forward

    def timed(*arguments, **named):
        nonlocal spent
        started = time.perf_counter()
        try:
            return forward(*arguments, **named)
        finally:
            spent += time.perf_counter() - started

    pipeline.unet.forward = timed
    seconds(pipeline, batch_size, sampler=BASE, num_inference_steps=1)
    rows = []
    for name in (BASE, "ddpm", "unipc", "euler"):
        shares = []
        for _ in range(repeats):
            spent = 0.0
            whole = seconds(pipeline, batch_size, sampler=name, num_inference_steps=steps)
            shares.append((whole - spent) / whole)
        rows.append({"sampler": name, "batch_size": batch_size, "loop_share": statistics.median(shares), "all": shares})
    return rows


def memory(images: int) -> list[dict]:
    """Peak resident memory of `cond-ddpm sample` in a process of its own, for 100 images, 1,000 and many.

    All images together are 3 KB each, so that keeping them would show between the last two.
    """
    small = {"block_out_channels": (32, 64, 64), "layers_per_block": 1, "pos_dim": 256, "patch_size": 2}
    script = "import resource, sys; from cond_ddpm.cli import main; main(sys.argv[1:]);"
    script += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pipeline_of(**small).save_pretrained(f"{folder}/model")
        for output in ("out.npz", "folder"):
            peaks = []
            for number in (100, 1000, images):
                flags = ["--model", f"{folder}/model", "--num_images_per_class", str(number // 10)]
                flags += ["--num_inference_steps", "2", "--sampler", BASE, "--output", f"{folder}/{number}/{output}"]
                command = [sys.executable, "-c", script, "sample", *flags]
                env = {**os.environ, "PYTHONPATH": str(ROOT)}
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                peaks.append(int(done.stdout.split()[-1]))
            megabytes = {f"peak_{number}_mb": peak / 1e6 for number, peak in zip((100, 1000, images), peaks)}
            rows.append({"output": output, **megabytes, "ratio": peaks[2] / peaks[0]})
    return rows


def hybrid_pipeline():
    import torch
    from diffusers import DDPMScheduler

    from cond_ddpm import CondDDPMPipeline, HybridUNet2DModel

    torch.manual_seed(0)
    pipeline = CondDDPMPipeline(HybridUNet2DModel().eval(), DDPMScheduler(prediction_type="v_prediction"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def peers(batch_size: int, repeats: int) -> list[dict]:
    """The pipeline as it is, against UNet2DModel in diffusers' own loop: scheduler, network, step."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, UNet2DModel

    ours = hybrid_pipeline()
    inner = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")}
    inner |= {"up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 8}
    theirs = UNet2DModel(32, block_out_channels=(64, 136, 136), num_class_embeds=11, **inner).eval()

    def their_seconds():
        started = time.perf_counter()
        scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True)
        scheduler.set_timesteps(20)
        sample, labels = torch.randn(batch_size, 3, 32, 32), torch.zeros(batch_size, dtype=torch.int64)
        for timestep in scheduler.timesteps:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                prediction = theirs(sample, timestep, labels).sample
            sample = scheduler.step(prediction.float(), timestep, sample).prev_sample
        return time.perf_counter() - started

    seconds(ours, batch_size, num_inference_steps=1, sampler=BASE)
    pairs = []
    for _ in range(repeats):
        mine = seconds(ours, batch_size, num_inference_steps=20, sampler=BASE, timestep_spacing="karras")
        pairs.append((mine, their_seconds()))
    millions = [sum(p.numel() for p in unet.parameters()) / 1e6 for unet in (ours.unet, theirs)]
    ratios = [their / mine for mine, their in pairs]
    return [
        {
            "hybrid, M parameters": millions[0],
            "UNet2DModel, M parameters": millions[1],
            "hybrid, images/s": batch_size / statistics.median(mine for mine, _ in pairs),
            "UNet2DModel, images/s": batch_size / statistics.median(their for _, their in pairs),
            "times as fast": statistics.median(ratios),
        }
    ]


def inference(batch_size: int, repeats: int) -> list[dict]:
    """The hybrid's forward pass as it is, in bf16, each of the two compiled, and exported."""
    import contextlib

    import torch

    from cond_ddpm.export import FILES, export, load_exported

    sample, labels = torch.randn(batch_size, 3, 32, 32), torch.zeros(batch_size, dtype=torch.int64)
    networks, rows, calls = {}, [], {}
    for compiled in (False, True):
        for precision in ("fp32", "bf16"):
            unet = hybrid_pipeline().unet
            if compiled:
                unet.compile()
            networks[precision + (", compiled" if compiled else "")] = unet
    with tempfile.TemporaryDirectory() as folder:
        for format in FILES:
            export(hybrid_pipeline(), format, Path(folder) / format)
            networks[f"fp32, exported, {format}"] = load_exported(Path(folder) / format, trust_remote_code=True).unet
    for name, unet in networks.items():

        def call(unet=unet, name=name):
            half = torch.autocast("cpu", torch.bfloat16) if name.startswith("bf16") else contextlib.nullcontext()
            with torch.no_grad(), half:
                unet(sample, 500, labels)

        started = time.perf_counter()
        call()
        calls[name] = (call, time.perf_counter() - started)
    times = {name: [] for name in calls}
    for _ in range(repeats * 3):
        for name, (call, _) in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    base = statistics.median(times["fp32"])
    for name, spent in times.items():
        median = statistics.median(spent)
        rows.append({"how": name, "times as fast as fp32": base / median, "first call, in forwards": calls[name][1] / median})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("samplers", "guidance", "overhead", "memory", "peers", "inference"))
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--ddpm", action="store_true", help="samplers: DDPM's 1000 steps too, once")
    given = parser.parse_args()
    import machine

    if given.what == "samplers":
        rows = samplers(given.batch_size or 16, given.repeats, given.ddpm)
    elif given.what == "guidance":
        rows = guidance(given.batch_size or 64, given.steps or 5, given.repeats)
    elif given.what == "overhead":
        rows = overhead(given.batch_size or 64, given.steps or 10, given.repeats)
    elif given.what == "memory":
        rows = memory(given.images)
    else:
        rows = {"peers": peers, "inference": inference}[given.what](given.batch_size or 100, given.repeats)
    machine.show(rows)
