"""Sweeps: a row for each class, and in each column another setting or another moment of training, from the same noise.

May import: `ema, sampling, visualize.grids`, the pipeline. Nothing is next.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cond_ddpm.ema import combine_snapshots, snapshot_steps
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.sampling import generate
from cond_ddpm.visualize.grids import class_grid


def guidance_sweep(
    pipeline: CondDDPMPipeline,
    class_labels: Sequence[int | str],
    path: str | Path,
    scales: Sequence[float] = (0, 0.5, 1, 1.5, 2, 3, 5, 8),
    seed: int = 0,
    **arguments,
) -> None:
    """What `guidance_scale` does: 0 is unconditional, 1 is conditioned on the class, and more exaggerates the class.

    Args:
        pipeline: the model.
        class_labels: ids or names, one for each row.
        path: of the PNG.
        scales: one for each column.
        seed: of the first row.
        arguments: passed on to the pipeline.
    """
    settings = [{"guidance_scale": scale} for scale in scales]
    names = [f"w = {scale:g}" for scale in scales]
    _settings_sweep(pipeline, class_labels, path, settings, names, "guidance_scale w", seed, arguments)


def steps_sweep(
    pipeline: CondDDPMPipeline,
    class_labels: Sequence[int | str],
    path: str | Path,
    steps: Sequence[int] = (2, 3, 5, 10, 20, 50, 100),
    seed: int = 0,
    **arguments,
) -> None:
    """How many sampling steps are enough.

    Args:
        pipeline: the model.
        class_labels: ids or names, one for each row.
        path: of the PNG.
        steps: number of steps for each column.
        seed: of the first row.
        arguments: passed on to the pipeline.
    """
    settings = [{"num_inference_steps": number} for number in steps]
    title = f"num_inference_steps, {arguments.get('sampler') or type(pipeline.scheduler).__name__}"
    _settings_sweep(pipeline, class_labels, path, settings, [str(number) for number in steps], title, seed, arguments)


def epochs_strip(
    run: Path,
    pipeline: CondDDPMPipeline,
    class_labels: Sequence[int | str],
    path: str | Path,
    columns: int = 8,
    std: float = 0.05,
    seed: int = 0,
    **arguments,
) -> None:
    """What the network makes of the same noise as training progresses, from the snapshots of the averaged weights.

    Args:
        run: a run folder that contains `ema/`.
        pipeline: that of the run. Its network is given the weights of each moment in turn, and keeps the last.
        class_labels: ids or names, one for each row.
        path: of the PNG.
        columns: number of moments shown: the last one, and those evenly spaced before it.
        std: relative width of the average.
        seed: of the first row.
        arguments: passed on to the pipeline.

    Raises:
        ValueError: a run without snapshots.
    """
    labels = pipeline.label_ids(class_labels)
    steps = snapshot_steps(run / "ema")
    steps = [steps[i] for i in sorted({round((i + 1) * len(steps) / columns) - 1 for i in range(columns)}) if i >= 0]
    images = []
    for step in steps:
        pipeline.unet.load_state_dict(combine_snapshots(run / "ema", std, step)[0])
        images.append(generate(pipeline, labels, range(seed, seed + len(labels)), **arguments))
    _draw(pipeline, labels, path, images, [f"step {step}" for step in steps], "training")


_GUIDANCE_ARGUMENTS = ("guide", "guidance_interval", "guidance_rescale")


def _settings_sweep(pipeline, class_labels, path, settings, names, title, seed, arguments) -> None:
    labels = pipeline.label_ids(class_labels)
    images = []
    for setting in settings:
        combined = {**arguments, **setting}
        if setting.get("guidance_scale") == 1:  # the pipeline refuses these in that case, because they have no effect
            combined = {name: value for name, value in combined.items() if name not in _GUIDANCE_ARGUMENTS}
        images.append(generate(pipeline, labels, range(seed, seed + len(labels)), **combined))
    _draw(pipeline, labels, path, images, names, title)


def _draw(pipeline, labels: list[int], path: str | Path, columns: list[np.ndarray], names: list[str], title: str) -> None:
    images = np.stack(columns, axis=1)  # (rows, columns, C, H, W)
    images = images.reshape(-1, *images.shape[2:])
    class_grid(images, [pipeline.class_name(label) for label in labels], path, title, column_names=names, inches=0.6)
