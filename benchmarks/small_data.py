"""Small data: what augmentation, dropout and a base model are worth on 20 and on 200 pictures of each class of CIFAR-10.

    python benchmarks/small_data.py --dataset PATH [--counts 20 200] [--seeds 0 1 2] [--images 64000] [--size xs]
        [--batch 32] [--only scratch augmented ...] [--samples 500] [--output_dir runs/small_data]

The pictures are the first ones of each class of the training split. Each run sees as many images; its weights are those of
the epoch with the lowest validation loss, as always. They are judged on pictures of which none was trained on:

- loss: the mean validation loss over 1,000 pictures of the test split, each with its own noise and timestep;
- recognised: the share of samples that the judge of the whole of CIFAR-10 takes for the class asked for;
- copies: the share of samples nearer to a training picture than 99% of the pictures of the test split are; and the same of the
  weights of the last step, which are not averaged.

"from digits" starts from a network that was trained on mnist5k. "5 classes" are bird, cat, deer, dog and frog; "from others"
starts from a network that was trained on all pictures of the other five, which no picture of these is among.

A run that was stopped is resumed, and what has been measured is not measured again. Prints a Markdown table.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TEST = 1000
OTHERS = ("airplane", "automobile", "horse", "ship", "truck")
ARMS = {
    "scratch": {},
    "augmented": {"augmentation_prob": 0.2},
    "dropout": {"dropout": 0.1},
    "augmented, dropout": {"augmentation_prob": 0.2, "dropout": 0.1},
    "squared ReLU": {"activation": "squared_relu"},
    "from digits": {"init_from": "digits"},
    "5 classes, scratch": {"five": True},
    "5 classes, from others": {"five": True, "init_from": "others"},
    "5 classes, from others, augmented": {"five": True, "init_from": "others", "augmentation_prob": 0.2},
}


def main(
    dataset: str, counts: list, seeds: list, images: int, size: str, batch: int, only: list, samples: int, output_dir: Path
) -> None:
    import numpy as np

    from cond_ddpm.data import load_images

    everything, test = load_images(dataset, "train"), load_images(dataset, "test")
    figures: dict[tuple, list] = {}
    for seed in seeds:
        for count in counts:
            for name in only:
                arm = {**ARMS[name], "batch_size": batch}
                classes = [c for c in everything.class_names if not arm.get("five") or c not in OTHERS]
                of_batch = "" if batch == 32 else f" batch {batch}"
                folder = output_dir / f"{size} {images} {count} {name} {seed}{of_batch}".replace(", ", "_").replace(" ", "-")
                result = folder / "figures.json"
                if not result.exists():
                    rows = [np.flatnonzero(everything.labels == everything.class_names.index(c))[:count] for c in classes]
                    data = _written(everything, classes, np.concatenate(rows), output_dir / f"data-{len(classes)}-{count}")
                    base = arm.pop("init_from", None)
                    if base is not None:
                        arm["init_from"] = str(_base(base, everything, images, size, output_dir))
                    run = _trained(folder, str(data), images, size, seed, arm)
                    kept = np.isin(test.labels, [test.class_names.index(c) for c in classes])
                    found = _measured(run, everything, test, np.concatenate(rows), np.flatnonzero(kept)[:TEST], samples)
                    result.write_text(json.dumps(found, indent=2) + "\n")
                figures.setdefault((count, name), []).append(json.loads(result.read_text()))
                print(f"{count} {name} seed {seed}: {figures[count, name][-1]}", file=sys.stderr, flush=True)
    columns = (
        "pictures of a class",
        "",
        "seeds",
        "passes to the best epoch",
        "loss",
        "recognised",
        "copies",
        "of the last step",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for (count, name), found in figures.items():
        mean = lambda key, found=found: statistics.mean(one[key] for one in found)  # noqa: E731
        spread = f" ± {statistics.stdev(one['loss'] for one in found):.5f}" if len(found) > 1 else ""
        print(
            f"| {count} | {name} | {len(found)} | {mean('passes'):.0f} of {mean('all_passes'):.0f} |"
            f" {mean('loss'):.5f}{spread} | {mean('recognised'):.1%} | {mean('copies'):.1%} |"
            f" {mean('copies_last') if all('copies_last' in one for one in found) else math.nan:.1%} |"
        )


def _written(images, classes: list[str], rows, folder: Path) -> Path:
    """These pictures as a data set: a folder of classes."""
    from PIL import Image

    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        for row in rows.tolist():
            of_class = partial / "train" / images.class_names[images.labels[row]]
            of_class.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[row].transpose(1, 2, 0)).save(of_class / f"{row:05d}.png")
        partial.rename(folder)
    return folder


def _base(name: str, images, shown: int, size: str, output_dir: Path) -> Path:
    """The pipeline of a base model, trained if it is not there."""
    import numpy as np

    folder = output_dir / f"base-{size}-{shown}-{name}"
    if not (folder / "done").exists():
        data, more = "mnist5k", {"channels": 3, "batch_size": 32}
        if name == "others":
            rows = np.flatnonzero(np.isin(images.labels, [images.class_names.index(one) for one in OTHERS]))
            data, more = str(_written(images, list(OTHERS), rows, output_dir / "data-others")), {"batch_size": 32}
        _trained(folder, data, 2 * shown, size, 0, more)
        (folder / "done").touch()
    return folder / "pipeline"


def _trained(folder: Path, dataset: str, images: int, size: str, seed: int, arm: dict) -> Path:
    from cond_ddpm import TrainConfig, train
    from cond_ddpm.data import hold_out, load_images

    steps = images // arm["batch_size"]
    passes = images / len(hold_out(load_images(dataset, "train"))[0])
    own = {name: arm.pop(name) for name in ("dropout", "activation") if name in arm}
    arm.pop("five", None)
    config = TrainConfig(
        dataset=dataset,
        resolution=32,
        unet=own if "init_from" in arm else {"size": size, **own},
        max_train_steps=steps,
        lr_warmup_steps=steps // 20,
        mixed_precision="bf16",
        validation_epochs=max(1, round(passes / 20)),
        patience=None,
        save_images_epochs=0,
        num_ema_snapshots=0,
        checkpointing_steps=100,
        checkpoints_total_limit=1,
        report_to="none",
        guidance_scale=2.0,
        seed=seed,
        output_dir=str(folder),
        resume_from_checkpoint="latest",
        **arm,
    )
    return train(config)


def _measured(run: Path, everything, test, rows, test_rows, samples: int) -> dict:
    import csv

    import numpy as np
    import torch
    from safetensors.torch import load_file

    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.data import make_batch, nearest_images
    from cond_ddpm.data.cache import cache_folder
    from cond_ddpm.diffusion import diffusion_losses, draw_validation
    from cond_ddpm.evaluation.classifier import get_classifier
    from cond_ddpm.evaluation.copies import QUANTILE, nearness
    from cond_ddpm.sampling import generate

    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")
    with (run / "metrics.csv").open() as file:
        epochs = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    best = min(epochs, key=lambda row: row["val_loss"])
    record = json.loads((run / "pipeline" / "results.json").read_text())["training"]

    names = list(pipeline.id2label.values())
    own = torch.tensor([names.index(test.class_names[label]) for label in test.labels[test_rows]])
    draw, loss = draw_validation(len(test_rows), 1000, test.images.shape[1:]), []
    scheduler = pipeline.make_scheduler("ddpm")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(test_rows), 250):
            part = slice(start, start + 250)
            images = make_batch(test, test_rows[part]).images
            of_part = type(draw)(draw.timesteps[part], draw.noise[part], draw.drop_label[part], draw.flip[part], 0)
            losses = diffusion_losses(pipeline.unet, scheduler, images, own[part], of_part, len(names), 5.0)
            loss.append(losses)
    figures = {
        "loss": float(torch.cat(loss).mean()),
        "passes": best["step"] * record["config"]["batch_size"] / record["num_images"],
        "all_passes": epochs[-1]["step"] * record["config"]["batch_size"] / record["num_images"],
        "last_val_loss": epochs[-1]["val_loss"],
        "best_val_loss": best["val_loss"],
    }
    labels = [label for label in range(len(names)) for _ in range(samples // len(names))]
    draw = lambda: generate(pipeline, labels, range(len(labels)), num_inference_steps=10, mixed_precision="bf16")  # noqa: E731
    drawn = draw()
    judge = get_classifier("convolutional", everything, test, cache_folder() / "evaluate").network
    with torch.no_grad():
        named = judge(torch.from_numpy(drawn).float() / 127.5 - 1)[1].argmax(1).numpy()
    asked = np.array([everything.class_names.index(names[label]) for label in labels])
    figures["recognised"] = float((named == asked).mean())
    # Nearness as `cond-ddpm evaluate` has it: the distance to the nearest over the mean distance to the next four.
    near = lambda images: nearness(nearest_images(images, everything.images[rows], 5)[2])  # noqa: E731
    threshold = np.quantile(near(test.images[test_rows]), QUANTILE)
    figures["copies"] = float((near(drawn) < threshold).mean())
    newest = max(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    pipeline.unet.load_state_dict(load_file(newest / "unet.safetensors"))
    figures["copies_last"] = float((near(draw()) < threshold).mean())
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="CIFAR-10, by its Hub id or a local folder")
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=64000, help="that each run sees; a base model sees twice as many")
    parser.add_argument("--size", default="xs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/small_data"))
    main(**vars(parser.parse_args()))
