"""A timed race: N minutes of training each, nothing else running, then samples for one judge.

    python benchmarks/race.py --dataset PATH [--minutes 30] [--who hybrid diffusers lucidrains] [--output_dir runs/race]

- hybrid: `train_cond_ddpm.py --config configs/hybrid_cifar10_cpu.yaml --max_train_minutes N`, start and compilation included;
  samples by `cond-ddpm sample`, the published sampler, 20 steps.
- diffusers: UNet2DModel (64,128,128) with `num_class_embeds`, attention in the inner resolutions, under the loop of diffusers'
  examples/unconditional_image_generation/train_unconditional.py: epsilon, uniform timesteps, AdamW (0.95, 0.999, weight decay
  1e-6), clipping at 1, EMA with warm-up, batch 64, bf16. Kinder than its defaults: learning rate 3e-4 after 100 steps
  (1e-4 after 500, which 30 minutes hardly reach) and constant, images held decoded in memory, flips. Samples by
  DPM-Solver++ of order 2 (Karras), 20 steps; it has no null label, so no guidance.
- lucidrains: denoising-diffusion-pytorch's class-conditional UNet and GaussianDiffusion (cosine schedule, epsilon), with the
  Trainer's Adam (0.9, 0.99), learning rate 1e-4, EMA 0.995 every 10 steps, batch 64, bf16; samples by its DDIM, 20 steps,
  rescaling 0 as its `cond_scale` has it.

lucidrains is sampled at guidance 2; the hybrid has learned its guidance. Each one's 2,000 samples are then judged by
`cond-ddpm evaluate --features classifier`. Prints JSON and Markdown rows.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

SAMPLES, STEPS, BATCH = 2000, 20, 64
GUIDANCE = {"hybrid": (1.0,), "diffusers": (None,), "lucidrains": (2.0,)}  # whose sampling is slow


def batches(dataset: str):
    """Endless (images in [-1, 1] (64, 3, 32, 32), class_labels), shuffled each epoch, half of them mirrored."""
    import torch

    from cond_ddpm.data import load_images

    data = load_images(dataset)
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(data))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = np.sort(order[start : start + BATCH])
            images = torch.from_numpy(np.array(data.images[rows])).float() / 127.5 - 1
            flip = torch.from_numpy(rng.random(BATCH) < 0.5)
            images[flip] = images[flip].flip(-1)
            yield images, torch.from_numpy(np.array(data.labels[rows]))


def labels_of_samples():
    import torch

    return torch.arange(SAMPLES) % 10


def save(path: Path, images) -> None:
    """Images in [0, 1], (N, 3, 32, 32)."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(path, images=pixels, class_labels=labels_of_samples().numpy())


def train(loss_of, network, optimizer, update_average, dataset: str, minutes: float, warmup: int) -> int:
    """A plain loop for `minutes`; the images seen."""
    import torch

    learning_rate, started = optimizer.param_groups[0]["lr"], time.perf_counter()
    for step, (images, class_labels) in enumerate(batches(dataset), 1):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, step / warmup)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(images, class_labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update_average(step)
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item():.4f}  {(time.perf_counter() - started) / 60:.1f} min", flush=True)
        if time.perf_counter() - started > minutes * 60:
            return step * BATCH


# Each recipe trains for `minutes` and gives the images seen and `sample(guidance, path)`, which writes the samples.


def diffusers_recipe(dataset: str, minutes: float, output_dir: Path):
    import peers
    import torch
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
    from diffusers.training_utils import EMAModel

    network = peers.make("diffusers attention")
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=True)

    def loss_of(images, class_labels):
        noise = torch.randn_like(images)
        timesteps = torch.randint(0, 1000, (len(images),))
        prediction = network(scheduler.add_noise(images, noise, timesteps), timesteps, class_labels)
        return torch.nn.functional.mse_loss(prediction.float(), noise)

    seen = train(loss_of, network, optimizer, lambda _: average.step(network.parameters()), dataset, minutes, warmup=100)
    average.copy_to(network.parameters())
    network.eval()

    def sample(guidance: None, path: Path) -> None:
        images, generator = [], torch.Generator().manual_seed(0)
        for part in labels_of_samples().split(100):
            solver = DPMSolverMultistepScheduler.from_config(scheduler.config, use_karras_sigmas=True)
            solver.set_timesteps(STEPS)
            latents = torch.randn(len(part), 3, 32, 32, generator=generator)
            for timestep in solver.timesteps:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    prediction = network(latents, timestep.expand(len(part)), part)
                latents = solver.step(prediction.float(), timestep, latents).prev_sample
            images.append(latents / 2 + 0.5)
        save(path, torch.cat(images))

    return seen, sample


def lucidrains_recipe(dataset: str, minutes: float, output_dir: Path):
    import peers
    import torch

    network = peers.make("lucidrains").unet
    diffusion = peers.lucidrains().GaussianDiffusion(network, image_size=32, timesteps=1000, sampling_timesteps=STEPS)
    average = copy.deepcopy(network).eval()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)

    @torch.no_grad()
    def update_average(step):
        if step % 10 == 0:
            torch._foreach_lerp_(
                list(average.parameters()), list(network.parameters()), 1 - min(0.995, (1 + step) / (10 + step))
            )

    seen = train(
        lambda images, class_labels: diffusion((images + 1) / 2, classes=class_labels),
        *(network, optimizer, update_average, dataset, minutes),
        warmup=1,
    )
    diffusion.model = average

    def sample(guidance: float, path: Path) -> None:
        torch.manual_seed(0)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts = labels_of_samples().split(100)
            images = [diffusion.sample(classes=part, cond_scale=guidance, rescaled_phi=0.0).float() for part in parts]
        save(path, torch.cat(images))

    return seen, sample


def hybrid_recipe(dataset: str, minutes: float, output_dir: Path):
    run = output_dir / f"hybrid_{minutes:g}"
    command = [sys.executable, str(ROOT / "train_cond_ddpm.py"), "--config", str(ROOT / "configs" / "hybrid_cifar10_cpu.yaml")]
    command += ["--dataset", dataset, "--max_train_minutes", str(minutes), "--output_dir", str(run)]
    subprocess.run([*command, "--resume_from_checkpoint", "latest"], check=True)
    steps = [row["step"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]

    def sample(guidance: float, path: Path) -> None:
        command = [sys.executable, "-m", "cond_ddpm.cli", "sample", "--model", str(run / "pipeline"), "--output", str(path)]
        command += ["--num_images_per_class", str(SAMPLES // 10), "--num_inference_steps", str(STEPS)]
        command += ["--mixed_precision", "bf16", "--guidance_scale", str(guidance)]
        subprocess.run(command, check=True, cwd=ROOT)

    return max(steps) * BATCH, sample


RECIPES = {"hybrid": hybrid_recipe, "diffusers": diffusers_recipe, "lucidrains": lucidrains_recipe}


def judge(samples: Path, dataset: str) -> dict:
    """What `cond-ddpm evaluate` finds of the samples; it keeps its results, so that a race that was cut goes on."""
    results = samples.with_suffix(".results.json")
    if not results.exists():
        command = [sys.executable, "-m", "cond_ddpm.cli", "evaluate", "--samples", str(samples), "--dataset", dataset]
        command += ["--features", "classifier", "--subset", str(SAMPLES), "--output", str(results)]
        subprocess.run(command, check=True, cwd=ROOT)
    judged = json.loads(results.read_text())["samples"]
    return {key: judged[key] for key in ("frechet_distance", "kernel_distance", "label_accuracy", "precision", "recall")}


def main(dataset: str, minutes: float, who: list[str], output_dir: Path) -> None:
    import machine

    output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in who:
        stem = f"{name}_{minutes:g}"
        record = output_dir / f"{stem}.json"
        files = {scale: output_dir / (f"{stem}_guidance{scale:g}.npz" if scale else f"{stem}.npz") for scale in GUIDANCE[name]}
        if not record.exists():  # a race that was cut goes on with who is left
            seen, sample = RECIPES[name](dataset, minutes, output_dir)
            for guidance, path in files.items():
                sample(guidance, path)
            record.write_text(json.dumps({"images_seen": seen}))
        for guidance, path in files.items():
            rows.append({"recipe": name, "guidance": guidance, **json.loads(record.read_text()), **judge(path, dataset)})
    machine.show(rows, versions=machine.versions("denoising-diffusion-pytorch"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--who", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/race"))
    main(**vars(parser.parse_args()))
