"""What would be refused after hours of training, of a run, its samples or its evaluation, is refused before any.

May import: everything that experiments may. `study.py` and `tune.py` rehearse before they train.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cond_ddpm.config import TrainConfig
from cond_ddpm.config.evaluation import EvaluationConfig
from cond_ddpm.config.settings import unless_chosen
from cond_ddpm.data import load_images
from cond_ddpm.diffusion import make_noise_scheduler
from cond_ddpm.evaluation.extractors import make_extractor
from cond_ddpm.models import MODELS
from cond_ddpm.pipelines.pipeline_cond_ddpm import DEFAULT_SAMPLER, CondDDPMPipeline
from cond_ddpm.processes import process_state
from cond_ddpm.sampling import generate
from cond_ddpm.training.batches import load_training_images
from cond_ddpm.training.network import make_unet


def rehearse(config: TrainConfig, where: str, evaluation: EvaluationConfig, sampling: dict[str, Any]) -> None:
    """Raise what the run would raise at its start, or at its end when it is measured.

    The data are loaded, which are needed anyway, and the network is made without its weights. Then a small network that has
    learned nothing samples one image by the run's noise schedule, so that the pipeline itself says what it refuses.

    Args:
        config: the settings of the run.
        where: the name of the setting that they come from, with which an error begins.
        evaluation: how its samples will be measured.
        sampling: arguments of the pipeline for that.

    Raises:
        ValueError: settings that do not fit the data, the network or each other.
        OSError: a data set that is not there.
    """
    state = process_state()
    with _named(where):
        with state.main_process_first():
            prepared = load_training_images(config)
        data, config = prepared.images, prepared.config.with_open(unless_chosen(TrainConfig))
        shape = data.images.shape[1:]
        with torch.device("meta"):
            make_unet(config, shape, len(data.class_names))
    with _named("sampling"):
        tiny = {"block_out_channels": (8, 8), "layers_per_block": 1, "pos_dim": 8}
        unet = MODELS["simple"](sample_size=8, in_channels=1, out_channels=1, num_classes=1, **tiny).to(state.device)
        scheduler = make_noise_scheduler(config)
        pipeline = CondDDPMPipeline(unet, scheduler, None, config.class_dropout_prob, config.guidance_scale)
        pipeline.scheduler = pipeline.make_scheduler(DEFAULT_SAMPLER)
        generate(pipeline, [0], [0], **sampling)
    with _named("evaluate"):
        if evaluation.test_split is not None:
            columns = (evaluation.dataset_config_name, evaluation.image_column, evaluation.label_column)
            with state.main_process_first():
                load_images(evaluation.dataset, evaluation.test_split, shape[1], shape[0], *columns, prepared.fit)
        if evaluation.features != "classifier" or evaluation.weights is not None:  # the classifier is trained when needed
            make_extractor(evaluation.features, evaluation.weights, data, data, Path(), state.device)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """An error of what is done here begins with the name of the setting that it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
