"""diffusers' own tests of any pipeline and any model, run on ours, where a checkout of diffusers is at hand.

They are in its repository, not in its wheel:
    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers
    DIFFUSERS_CHECKOUT=diffusers python -m pytest -o addopts= -o filterwarnings= tests/test_diffusers_testers.py
The two options let them have markers and warnings of their own.
`tests/test_contract.py` holds the same contract in a few tests of our own, which always run.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_HYBRID, make_unet
from diffusers import DDIMScheduler

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.models import MODELS

CHECKOUT = Path(os.environ.get("DIFFUSERS_CHECKOUT", "-"))
if not (CHECKOUT / "tests" / "pipelines" / "testing_utils").is_dir():
    pytest.skip("DIFFUSERS_CHECKOUT names no checkout of diffusers from version 0.40 on", allow_module_level=True)
sys.path.insert(0, str(CHECKOUT.resolve()))
from tests.models import testing_utils as of_models  # noqa: E402
from tests.pipelines import testing_utils as of_pipelines  # noqa: E402

SIZE = 8


class _Pipeline(of_pipelines.BasePipelineTesterConfig):
    pipeline_class = CondDDPMPipeline
    required_input_params_in_call_signature = frozenset({"class_labels", "guidance_scale"})
    optional_input_params = of_pipelines.BasePipelineTesterConfig.optional_input_params - {"num_images_per_prompt"}
    batch_input_params = frozenset({"class_labels"})
    output_shape = (3, SIZE, SIZE)

    def get_dummy_components(self):
        return {"unet": make_unet("attention"), "scheduler": DDIMScheduler(timestep_spacing="trailing")}

    def get_dummy_inputs(self):
        generator = self.get_generator(0)
        return {"class_labels": 1, "generator": generator, "num_inference_steps": 2, "output_type": "pt"}


class TestPipeline(_Pipeline, of_pipelines.PipelineTesterMixin):
    def test_callback_cfg(self):
        pytest.skip("It expects that a call changes the pipeline; ours does not. test_contract.py changes the guidance too.")


class TestPipelineMemory(_Pipeline, of_pipelines.MemoryTesterMixin):
    pass


class _Model(of_models.BaseModelTesterConfig):
    main_input_name = "sample"
    output_shape = (3, SIZE, SIZE)
    name = "hybrid"

    @property
    def model_class(self):
        return MODELS[self.name]

    def get_init_dict(self):
        return {"sample_size": SIZE, "num_classes": 3, **(TINY_HYBRID if self.name == "hybrid" else TINY)}

    def get_dummy_inputs(self):
        sample = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        return {"sample": sample, "timestep": torch.tensor([10]), "class_labels": torch.tensor([0, 3])}


class TestHybrid(_Model, of_models.ModelTesterMixin, of_models.TrainingTesterMixin):
    pass


class TestHybridMemory(_Model, of_models.MemoryTesterMixin):
    pass


class TestHybridCompiled(_Model, of_models.TorchCompileTesterMixin):
    pass


class TestAttention(_Model, of_models.ModelTesterMixin, of_models.TrainingTesterMixin):
    name = "attention"


class TestAttentionMemory(_Model, of_models.MemoryTesterMixin):
    name = "attention"
