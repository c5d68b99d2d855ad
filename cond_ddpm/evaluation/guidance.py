"""The guidance scale that a trained pipeline gets as its default: several are tried briefly, and a judge chooses.

May import: `config, data, files, hub, processes, sampling, visualize`, the pipeline, `evaluation.{classifier, metrics,
real_images, trust}`. The command `train` calls it after the training and before the card is written, in one process, while the
others wait. Next: `hub/card.py` shows the curve.
"""

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cond_ddpm.config import TrainConfig
from cond_ddpm.data import LabelledImages
from cond_ddpm.data.cache import cache_folder
from cond_ddpm.evaluation.classifier import (
    RECIPE,
    Judge,
    Recipe,
    classifier_file,
    load_classifier,
    most_trainings,
    new_judge,
    seconds_per_step,
    train_classifier,
)
from cond_ddpm.evaluation.metrics import kernel_distance
from cond_ddpm.evaluation.real_images import RealImages, labels_of_samples, load_real_images
from cond_ddpm.evaluation.trust import why_not_trusted
from cond_ddpm.files import write
from cond_ddpm.hub.folder import read_results, save_config, trained_fit
from cond_ddpm.hub.measured import guidance_text
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.processes import process_state
from cond_ddpm.sampling import autocast
from cond_ddpm.visualize import guidance_curve

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FEW_SCALES = (1.0, 2.0, 4.0)  # where there is no time for all
_TIMED = 4.0  # one of both
_STEPS = 10
_JUDGE = "convolutional"
_SHARE = 0.05  # of the training's time, that all of this may take
_LEAST_SECONDS, _MOST_SECONDS = 120, 300  # of training, below which there is no search; and of a search, since others wait
_OF_JUDGE = 0.4  # the share of the search's time in which a judge is trained, if there is none yet
_LEAST_STEPS = 40  # of that training
_BATCH, _FEWEST, _MOST = 50, 48, 2000  # samples of a scale
_FIRST_SEED = 10**9  # `evaluate` measures other seeds, from 0 on
_REAL = 2000  # images that samples are compared with


def choose_guidance(
    run: Path, config: TrainConfig, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> str | None:
    """Try guidance scales with the run's pipeline, make the best its default, and write `guidance.png`.

    The best is the one whose samples have the least kernel distance (KID) from real images, in the features of a judge: unlike
    the Fréchet distance, its mean does not depend on the number of samples, which are few. All scales start from one noise.

    Args:
        run: a run's folder, with its `pipeline/`.
        config: which data it was trained on.
        seconds: how long it was trained; the search takes at most 5% of that.
        clock: returns the time in seconds.

    Returns:
        What was found, in a sentence; None if there is nothing to choose.

    Raises:
        ValueError, OSError: real images that cannot be loaded, or that have other classes.
    """
    if seconds < _LEAST_SECONDS:
        return None
    folder = run / "pipeline"
    pipeline = CondDDPMPipeline.from_pretrained(folder)
    results = read_results(pipeline.companions)
    training = results.get("training") or {}
    if results.get("guidance") or pipeline.class_dropout_prob == 0:
        return None
    started = clock()
    ends = started + min(_SHARE * seconds, _MOST_SECONDS)
    columns = (config.dataset_config_name, config.image_column, config.label_column)
    shape, fit = pipeline.unet.config, trained_fit(pipeline.companions)
    real = load_real_images(
        config.dataset, config.train_split, None, shape.sample_size, shape.in_channels, columns, config.fit or fit
    )
    if not len(real.held_out):
        return None
    device = process_state().device
    kept = f"guidance_scale stays {pipeline.guidance_scale:g}"
    judge = _judge(real, device, (ends - clock()) * _OF_JUDGE, clock)
    if judge is None:
        return f"{kept}: {_SHARE:.0%} of the training's time is too little to train a judge that would choose it"
    if reason := why_not_trusted({_JUDGE: judge.record}, len(real.train.class_names)):
        return f"{kept}: {reason}"
    rows = _try(pipeline.to(device), judge, real.train, ends, training.get("mixed_precision") or "no", clock)
    if rows is None:
        return f"{kept}: {_SHARE:.0%} of the training's time is too little to draw {_FEWEST} samples with each guidance scale"
    best = min(rows, key=lambda row: row["kernel_distance"])
    found = {
        "chosen": best["guidance_scale"],
        "scales": rows,
        "num_inference_steps": min(_STEPS, pipeline.scheduler.config.num_train_timesteps),
        "first_seed": _FIRST_SEED,
        "seconds": clock() - started,
        "judge": {"network": _JUDGE, **judge.record},
        "learned_in_training": config.model_guidance_scale if training.get("guided_from") else None,
    }
    picture = io.BytesIO()
    guidance_curve(rows, best["guidance_scale"], picture)
    write(run / "guidance.png", picture.getvalue())
    _set_default(folder, pipeline, results | {"guidance": found}, picture.getvalue())
    return guidance_text(found)


def _judge(real: RealImages, device: torch.device, seconds: float, clock: Callable[[], float]) -> Judge | None:
    """The judge of `evaluate`, if there is one or the time suffices for it; else one trained for fewer steps."""
    data = (_JUDGE, real.train, real.held_out)
    cache = cache_folder() / "evaluate"
    if classifier_file(*data, cache).is_file():
        return load_classifier(*data, cache, device)
    started = clock()
    step = seconds_per_step(_JUDGE, real.train, device, clock)
    left = seconds - (clock() - started)
    if most_trainings(real.held_out) * RECIPE.steps(len(real.train)) * step <= left:
        train_classifier(*data, cache, device)
        return load_classifier(*data, cache, device)
    fewer = int(left / step)
    if fewer < _LEAST_STEPS:
        return None
    size = RECIPE.batch_size(len(real.train))
    recipe = Recipe(epochs=0, min_images_seen=fewer * size, min_batch_size=size, max_batch_size=size)
    return new_judge(*data, device, recipe, folds=0)


def _try(
    pipeline: CondDDPMPipeline,
    judge: Judge,
    real: LabelledImages,
    ends: float,
    precision: str,
    clock: Callable[[], float],
) -> list[dict[str, Any]] | None:
    """A row for each scale that there is time for; None if there is too little."""
    pipeline.set_progress_bar_config(disable=True)
    chosen = np.random.default_rng(0).permutation(len(real))[:_REAL]
    reference = _features(judge, real.images[chosen])[0]
    labels = labels_of_samples(real, _MOST)

    def draw(scale: float, numbers: Sequence[int]) -> np.ndarray:
        with autocast(precision, pipeline.device):
            (images,) = pipeline(
                [labels[number] for number in numbers],
                seeds=[_FIRST_SEED + number for number in numbers],
                guidance_scale=scale,
                num_inference_steps=min(_STEPS, pipeline.scheduler.config.num_train_timesteps),
                batch_size=_BATCH,
                output_type="pt",
                return_dict=False,
            )
        return (images * 255).round().to(torch.uint8).cpu().numpy()

    started = clock()
    first = draw(_TIMED, range(_FEWEST))
    per_sample = (clock() - started) / _FEWEST
    for scales in (SCALES, _FEW_SCALES):
        count = min(int((ends - clock()) / per_sample / len(scales)), _MOST)
        if count >= _FEWEST:
            break
    else:
        return None
    rows = []
    for scale in scales:
        known = first if scale == _TIMED else first[:0]
        images = np.concatenate([known, draw(scale, range(len(known), count))]) if count > len(known) else known
        features, recognised = _features(judge, images)
        right = float((recognised == torch.tensor(labels[: len(images)])).float().mean())
        distance = kernel_distance(features, reference)[0]
        rows.append({"guidance_scale": scale, "kernel_distance": distance, "label_accuracy": right, "num_images": len(images)})
    return rows


@torch.no_grad()
def _features(judge: Judge, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 128), and the recognised classes (N,)."""
    device = next(judge.network.parameters()).device
    parts = [torch.from_numpy(images[n : n + 500].copy()).to(device).float() / 127.5 - 1 for n in range(0, len(images), 500)]
    features, logits = zip(*map(judge.network, parts))
    return torch.cat(features).float().cpu(), torch.cat(logits).argmax(1).cpu()


def _set_default(folder: Path, pipeline: CondDDPMPipeline, results: dict, picture: bytes) -> None:
    """Write the pipeline's settings anew; its weights stay as they are."""
    files = {name: content for name, content in pipeline.companions.items() if name != "samples.png"}  # which is drawn anew
    (folder / "samples.png").unlink(missing_ok=True)
    changed = CondDDPMPipeline.from_pipe(pipeline, guidance_scale=results["guidance"]["chosen"])
    changed.companions = files | {
        "results.json": (json.dumps(results, indent=2) + "\n").encode(),
        "guidance.png": picture,
    }
    save_config(changed, folder)
