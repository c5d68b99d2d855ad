"""What a run writes down: its settings, its metrics, and its pipeline folder with the record of how the weights came to be.

May import: `config, data, diffusion, files, models, pipelines, pretrained_models, visualize`, and `training.state` and
`training.batches`. Next in the data flow: the folder `pipeline/`, which all else reads.
"""

import csv
import dataclasses
import io
import json
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import cond_ddpm
from cond_ddpm.data import is_local, public_name
from cond_ddpm.diffusion import draw_training
from cond_ddpm.files import append, replacing_files, write
from cond_ddpm.models import forward_flop
from cond_ddpm.pipelines.pipeline_cond_ddpm import COMPANIONS, CondDDPMPipeline
from cond_ddpm.pretrained_models import pretrained_pipelines
from cond_ddpm.training.batches import TrainingData
from cond_ddpm.training.state import TrainingState
from cond_ddpm.visualize import batch_picture, contact_sheet, loss_curve


def write_config(run: Path, state: TrainingState, data: TrainingData) -> None:
    """config.yaml: the settings, to repeat the run by --config. config.json: also what they resolved to, versions, command."""
    unet, accelerator = state.pipeline.unet, state.accelerator
    record = {
        "config": dataclasses.asdict(state.config),
        "resolved": {
            "unet": {name: value for name, value in unet.config.items() if not name.startswith("_")},
            "mixed_precision": accelerator.mixed_precision,
            "num_processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "random_flip": data.random_flip,
            "class_names": data.images.class_names,
            "num_images": len(data.images),
            "num_validation_images": len(data.val_indices),
            "base_model": state.config.init_from,
        },
        # Such as of a search whose storage is the address of a database, with a password in it.
        "command": [re.sub(r"(://[^/@\s:]*):[^@\s]*@", r"\1:***@", argument) for argument in sys.argv],
        "versions": _versions(),
    }
    write(run / "config.json", json.dumps(record, indent=2) + "\n")
    write(run / "config.yaml", yaml.safe_dump(json.loads(json.dumps(record["config"])), sort_keys=False))


def write_report(run: Path, data: TrainingData) -> None:
    """data.txt and data.png: what was found in the data and what was chosen, also printed; images as the network sees them."""
    found, *lists = data.report.whole.split("\n\n")
    text = "\n".join([found, *data.notes])
    print(text, file=sys.stderr)
    write(run / "data.txt", "\n\n".join([text, *lists]) + "\n")
    picture = io.BytesIO()
    contact_sheet(data.images, data.random_flip, picture)
    write(run / "data.png", picture.getvalue())


def write_first_batch(run: Path, state: TrainingState, data: TrainingData) -> None:
    """first_batch.png: the images of the next step and their noise, as `train_step` will see them."""
    step, device = state.progress.step, state.accelerator.device
    indices = data.batch_indices(step)
    randomness = draw_training(state.config, step, data.image_shape, device)
    batch = data.batch(indices, randomness, device)
    noisy = state.noise_scheduler.add_noise(batch.images, randomness.noise, randomness.timesteps)
    names = [
        None if dropped else data.images.class_names[label]
        for label, dropped in zip(batch.class_labels.tolist(), randomness.drop_label.tolist())
    ]
    picture = io.BytesIO()
    batch_picture(batch.images, noisy, randomness.timesteps, names, picture)
    write(run / "first_batch.png", picture.getvalue())


def training_record(state: TrainingState, data: TrainingData, row: dict[str, Any]) -> dict[str, Any]:
    """How the pipeline's weights came to be, for results.json and the card; it has no path of this machine.

    Args:
        row: the epoch's row of metrics.csv.
    """
    config, accelerator, progress = state.config, state.accelerator, state.progress
    local = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private_repo")
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in local}
    dataset = settings["dataset"] = public_name(config.dataset)
    base_model = settings["base_model"] = settings["init_from"] = public_name(config.init_from)
    images_seen = progress.step * config.batch_size
    guided = 0 if progress.guided_from is None else (progress.step - progress.guided_from) * config.batch_size
    with accelerator.autocast():
        flop = forward_flop(state.pipeline.unet)
    return {
        "dataset": dataset,
        "dataset_on_hub": not is_local(config.dataset) and dataset != "mnist5k",
        "num_images": len(data.train_indices),
        "num_validation_images": len(data.val_indices),
        "random_flip": data.random_flip,
        "base_model": base_model,  # None unless the weights started from it
        "base_model_on_hub": _is_on_hub(config.init_from),
        "data": data.report.facts,
        "epoch": row["epoch"],
        "step": row["step"],
        "train_loss": row["train_loss"],
        "val_loss": row["val_loss"],
        "guided_from": progress.guided_from,  # None unless the weights have learned guidance
        "images_seen": images_seen,
        "training_flop": flop * (3 * images_seen + guided),  # backward costs two forwards, learning guidance one more
        "minutes": round(progress.elapsed_seconds / 60, 2),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device.type),
        "mixed_precision": accelerator.mixed_precision,
        "config": settings,
        "versions": {"cond_ddpm": cond_ddpm.__version__, **_versions()},
    }


def _is_on_hub(model: str | None) -> bool:
    """Whether it was loaded from the Hub: no folder, and none of the models that come with the package."""
    return model is not None and model not in pretrained_pipelines() and not is_local(model)


def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "accelerate", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def save_pipeline(pipeline: CondDDPMPipeline, folder: Path) -> None:
    """Write beside, then replace file by file: two epochs of a run differ only in their weights, so a kill leaves a whole one.

    Results and pictures of an earlier epoch's weights are removed first, and those of the new ones are written last.

    Raises:
        OSError: it could not be written; no part of it is left.
    """
    with replacing_files(folder, last=COMPANIONS) as partial:
        pipeline.save_pretrained(partial)
        for name in COMPANIONS:
            (folder / name).unlink(missing_ok=True)


def write_metrics(run: Path, rows: list[dict], picture: bool = True) -> None:
    """metrics.csv, and the picture of its losses."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write(run / "metrics.csv", file.getvalue())
    if picture:
        image = io.BytesIO()
        loss_curve({"run": rows}, image)
        write(run / "loss.png", image.getvalue())


def to_lines(rows: list[dict]) -> str:
    """Rows of metrics.jsonl."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def append_lines(path: Path, rows: list[dict]) -> None:
    append(path, to_lines(rows))
