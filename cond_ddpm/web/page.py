"""Writes the page: its files as they are, the network as ONNX, and model.json, which is all that the page knows of a model.

May import: `export, files, web.runtime, web.schedule`, the pipeline. Next in the data flow: a static host, or `hub/` as a
Space.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import cond_ddpm
from cond_ddpm.export import FILES, export, load_exported
from cond_ddpm.files import is_free
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.web.runtime import FOLDER, copy_runtime, runtime_entry
from cond_ddpm.web.schedule import samplers_of

SITE = Path(__file__).parent / "site"


def export_page(pipeline: CondDDPMPipeline, output: Path, source: str, name: str, runtime: str | None = None) -> float:
    """Write a folder of static files that draw in the browser what the pipeline draws, for any web host.

    Args:
        pipeline: what the page draws with. It is not changed.
        output: a new or empty folder.
        source: what `CondDDPMPipeline.from_pretrained` takes, for the Python lines that the page shows.
        name: the page's heading.
        runtime: `download`, or a folder of npm's package onnxruntime-web: a copy is put beside the page, which then needs no
            other host. None to let the page load it from a CDN.

    Returns:
        The largest difference of the network from the original, whose weights are rounded to half precision in the page.

    Raises:
        ValueError, FloatingPointError: as for `export`; a runtime of another version.
        ConnectionError: the runtime cannot be downloaded.
    """
    if not is_free(output):
        raise ValueError(f"output: expected a new or empty folder, got {output}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{output.name}.", dir=output.parent) as work:
        site, exported = Path(work) / "site", Path(work) / "exported"
        shutil.copytree(SITE, site, ignore=shutil.ignore_patterns("__pycache__"))
        if runtime is not None:
            copy_runtime(runtime, site / FOLDER)  # first, because it is what may fail soon
        difference = export(pipeline, "onnx", exported, half_weights=True)
        shutil.copyfile(exported / FILES["onnx"], site / FILES["onnx"])
        about = _about(pipeline, exported, source, name, runtime is not None)
        (site / "model.json").write_text(json.dumps(about, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
        output.mkdir(exist_ok=True)
        site.rename(output)
    return difference


def _about(pipeline: CondDDPMPipeline, exported: Path, source: str, name: str, is_beside: bool) -> dict[str, Any]:
    """The content of model.json."""
    config, schedule = pipeline.unet.config, pipeline.scheduler.config
    network = (exported / FILES["onnx"]).read_bytes()
    clip = schedule.get("clip_sample_range", 1.0) if schedule.get("clip_sample", True) else None
    return {
        "name": name,
        "source": source,
        "version": cond_ddpm.__version__,
        "architecture": type(getattr(pipeline.unet, "_orig_mod", pipeline.unet)).__name__,
        "parameters": sum(parameter.numel() for parameter in pipeline.unet.parameters()),
        "classes": [pipeline.class_name(label) for label in range(config.num_classes)],
        "has_names": pipeline.id2label is not None,
        "num_classes": config.num_classes,
        "has_null_label": pipeline.class_dropout_prob != 0,
        "guidance_scale": pipeline.guidance_scale,
        "channels": config.in_channels,
        "sample_size": config.sample_size,
        "prediction_type": schedule.prediction_type,
        "clip": clip,
        "network": {"file": FILES["onnx"], "bytes": len(network), "sha384": hashlib.sha384(network).hexdigest()},
        "runtime": runtime_entry(is_beside),
        "check": _known_answer(exported),
        **samplers_of(pipeline),
    }


def _known_answer(exported: Path, seed: int = 0, stride: int = 7) -> dict[str, Any]:
    """Some of what the network predicts for the noise of a seed, by which the page finds out whether a graphics card errs."""
    unet = load_exported(exported, threads=1).unet
    config, label = unet.config, 0
    timestep = 400.0
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    prediction = unet(noise, torch.tensor([timestep]), torch.tensor([label])).sample.flatten()[::stride][:200]
    return {
        "seed": seed,
        "label": label,
        "timestep": timestep,
        "stride": stride,
        "prediction": [round(value, 5) for value in prediction.tolist()],
    }
