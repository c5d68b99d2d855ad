"""What any pipeline and any model of diffusers does, ours do too: the host's contract, and by public names alone.

`tests/test_diffusers_testers.py` runs diffusers' own tests of the same, where a checkout of diffusers is at hand.
"""

import ast
import importlib
import inspect
import re

import pytest
import torch
from conftest import NAMES, ROOT, make_pipeline, make_unet
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, ModelMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from cond_ddpm import CondDDPMPipeline, HybridUNet2DModel

CALL = {"class_labels": [2, 0], "seeds": [3, 4], "num_inference_steps": 3, "output_type": "pt"}


@pytest.fixture
def pipeline():
    return make_pipeline(make_unet("hybrid"))


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# Loading

# Arguments of diffusers' own loader that have no meaning here: another class's code, ONNX, what diffusers has removed.
_NOT_OURS = {"custom_pipeline", "custom_revision", "provider", "provider_options", "sess_options", "use_onnx"}
_NOT_OURS |= {"load_connected_pipeline", "use_flashpack", "from_flax", "dduf_file"}


def test_from_pretrained_takes_whatever_diffusers_takes():
    theirs = set(re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(DiffusionPipeline.from_pretrained)))
    assert {"use_safetensors", "low_cpu_mem_usage", "torch_dtype", "max_memory"} <= theirs
    assert theirs - _NOT_OURS <= set(inspect.signature(CondDDPMPipeline.from_pretrained).parameters)


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_safetensors": True, "low_cpu_mem_usage": True, "trust_remote_code": True},
        {"low_cpu_mem_usage": False},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"device_map": "balanced", "max_memory": {"cpu": "1GB"}},
        {"dtype": torch.float32},
        {"torch_dtype": {"default": torch.float32}},
    ],
    ids=str,
)
def test_arguments_of_diffusers_loader(arguments, pipeline, folder):
    loaded = CondDDPMPipeline.from_pretrained(folder, **arguments)
    assert torch.equal(loaded(**CALL).images, pipeline(**CALL).images)


def test_arguments_that_concern_the_network_reach_it(folder, monkeypatch):
    given = {
        "disable_mmap": True,
        "quantization_config": "a configuration",
        "offload_state_dict": True,
        "dtype": torch.float16,
    }
    seen = {}
    load = HybridUNet2DModel.from_pretrained
    monkeypatch.setattr(HybridUNet2DModel, "from_pretrained", lambda path, **more: seen.update(more) or load(folder / "unet"))
    CondDDPMPipeline.from_pretrained(folder, **given)
    assert given == {"dtype": seen.pop("torch_dtype")} | {name: seen[name] for name in given if name in seen}


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")  # but a parameter
def test_a_network_that_exceeds_max_memory_is_run_from_the_disk(pipeline, folder, tmp_path):
    memory = {"device_map": "auto", "max_memory": {"cpu": "20KB"}, "offload_folder": tmp_path / "offload"}
    loaded = CondDDPMPipeline.from_pretrained(folder, **memory)
    assert "disk" in loaded.unet.hf_device_map.values()
    torch.testing.assert_close(loaded(**CALL).images, pipeline(**CALL).images)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_type_of_the_network(name, folder):
    for dtype in (torch.bfloat16, {"unet": torch.bfloat16}, {"default": torch.bfloat16}):
        assert CondDDPMPipeline.from_pretrained(folder, **{name: dtype}).unet.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype: expected either dtype or its old name torch_dtype, got both"):
        CondDDPMPipeline.from_pretrained(folder, dtype=torch.float32, torch_dtype=torch.float32)


def test_variants_and_the_older_file_format(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, variant="fp16", safe_serialization=False)
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=bf16`, but no such"):
        CondDDPMPipeline.from_pretrained(tmp_path, variant="bf16")
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):
        CondDDPMPipeline.from_pretrained(tmp_path)
    loaded = CondDDPMPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(loaded(**CALL).images, pipeline(**CALL).images)


# Calling


def test_latent_output_is_the_sample_after_the_last_step(pipeline):
    latent = pipeline(**CALL | {"output_type": "latent"}).images
    torch.testing.assert_close((latent / 2 + 0.5).clamp(0, 1), pipeline(**CALL).images)


def test_latents_are_the_noise_to_start_from(pipeline):
    noise = torch.cat([torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in CALL["seeds"]])
    expected = pipeline(**CALL, sampler="dpm++2").images
    for batch_size in (1, 2):
        given = pipeline(**CALL | {"seeds": None}, latents=noise, sampler="dpm++2", batch_size=batch_size).images
        torch.testing.assert_close(given, expected)
    with pytest.raises(ValueError, match=r"latents: expected noise of shape \(2, 3, 8, 8\), got \(1, 3, 8, 8\)"):
        pipeline(**CALL, latents=noise[:1])


@pytest.mark.parametrize("name", ["sample", "latents"])
def test_a_callback_replaces_the_sample_under_either_name(name, pipeline):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append((index, int(timestep), list(tensors)))
        assert tensors["sample"] is tensors["latents"]
        if index == pipe.num_timesteps - 1:
            tensors[name] = torch.zeros_like(tensors[name])
        return tensors

    inputs = {"callback_on_step_end": callback, "output_type": "latent"}
    assert not pipeline(**CALL | inputs).images.any()
    assert seen == [(index, timestep, ["sample", "latents"]) for index, timestep in enumerate((999, 666, 332))]


class _Callback(PipelineCallback):
    """A callback object as diffusers has them: it names its inputs itself."""

    def __init__(self, name):
        super().__init__()
        self.name, self.seen = name, 0

    @property
    def tensor_inputs(self):
        return [self.name]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        self.seen += callback_kwargs[self.name].shape == (2, 3, 8, 8)
        return callback_kwargs


def test_callback_objects_of_diffusers(pipeline):
    callbacks = [_Callback("latents"), _Callback("pred_original_sample")]
    pipeline(**CALL, callback_on_step_end=MultiPipelineCallbacks(callbacks))
    assert [callback.seen for callback in callbacks] == [3, 3]


def test_a_callback_changes_the_guidance_of_this_call_alone(pipeline):
    calls = []
    forward = pipeline.unet.forward
    pipeline.unet.forward = lambda sample, *rest: calls.append(len(sample)) or forward(sample, *rest)

    def callback(pipe, index, timestep, tensors):
        pipe._guidance_scale = 1.0 if index else 3.0

    pipeline(**CALL, guidance_scale=2.0, callback_on_step_end=callback)
    assert calls == [4, 4, 2]  # with guidance both predictions are made in one batch
    assert pipeline.guidance_scale == 1 and not hasattr(pipeline, "_guidance_scale")  # which is of the call alone
    pipeline.class_dropout_prob = 0
    with pytest.raises(ValueError, match="_guidance_scale=3: expected a model trained with label dropout"):
        pipeline(**CALL, guidance_scale=1.0, callback_on_step_end=callback)


def test_a_callback_interrupts_the_call(pipeline):
    steps = []

    def callback(pipe, index, timestep, tensors):
        steps.append(index)
        pipe._interrupt = len(steps) == 5

    call = {**CALL, "batch_size": 1, "class_labels": [0, 1, 2], "seeds": [1, 2, 3], "return_intermediates": 3}
    output = pipeline(**call, callback_on_step_end=callback)
    assert steps == [0, 1, 2, 0, 1] and len(output.images) == 2  # the third image was not begun
    finite = output.intermediate_samples.isfinite().all(dim=(2, 3, 4))
    assert finite.tolist() == [[True, True], [True, True], [True, False]]
    assert torch.equal(output.images[0], pipeline(**call).images[0])


def test_the_progress_bars_settings(pipeline, capfd):
    pipeline.set_progress_bar_config(disable=True)
    pipeline(**CALL)
    assert capfd.readouterr().err == ""
    pipeline.set_progress_bar_config(desc="drawing", ascii=True)
    pipeline(**CALL)
    assert "drawing: 100%" in capfd.readouterr().err


# Moving and sharing


def test_to_another_type_and_back(pipeline):
    expected = pipeline(**CALL).images
    assert pipeline.to(torch.bfloat16) is pipeline and pipeline.dtype == pipeline.unet.dtype == torch.bfloat16
    assert pipeline(**CALL).images.dtype == torch.float32
    pipeline.to("cpu", torch.float32)
    torch.testing.assert_close(pipeline(**CALL).images, expected, atol=0.05, rtol=0)


def test_offloading_gives_the_same_images(pipeline):
    """The hooks are those of an accelerator, from which the network would be moved away after the call."""
    expected = pipeline(**CALL).images
    for _ in range(2):
        pipeline.enable_model_cpu_offload(device="cpu")
        assert torch.equal(pipeline(**CALL).images, expected)


def test_a_pipeline_from_one_of_another_class(pipeline):
    other = DDPMPipeline(pipeline.unet, DDIMScheduler(timestep_spacing="trailing"))
    ours = CondDDPMPipeline.from_pipe(other, id2label=dict(enumerate(NAMES)), scheduler=pipeline.scheduler)
    assert ours.unet is pipeline.unet and torch.equal(ours(**CALL).images, pipeline(**CALL).images)
    assert CondDDPMPipeline.from_pipe(ours, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="vae"):
        CondDDPMPipeline.from_pipe(ours, vae=None)


def test_the_network_alone_is_a_model_of_diffusers(tmp_path):
    unet = make_unet("hybrid")
    unet.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = HybridUNet2DModel.from_pretrained(tmp_path, variant="fp16", low_cpu_mem_usage=True)
    sample, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    assert isinstance(loaded, ModelMixin) and loaded.num_parameters() == unet.num_parameters()
    assert torch.equal(loaded(sample, 5, labels, return_dict=False)[0], unet(sample, 5, labels).sample)


# Public names

# What diffusers' own pipelines use of their base class, and what has no public equivalent: the device under CPU offload, the
# mark of a config's defaults, and the network inside torch.compile's wrapper.
_OF_THE_HOST = {"_execution_device", "_use_default_values", "_orig_mod"}


@pytest.mark.parametrize("path", ["cond_ddpm/models/cond_unet.py", "pipelines/pipeline_cond_ddpm.py"])
def test_published_files_use_public_names_of_diffusers(path):
    """A private name may be gone in the next version, which would break every model that was published with it."""
    tree = ast.parse((ROOT / path).read_text())
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("diffusers", "torch"):
            names = [alias.name for alias in node.names]
            assert not [part for part in (*node.module.split("."), *names) if part.startswith("_")]
            assert all(hasattr(importlib.import_module(node.module), name) for name in names)
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)}
    assert used - own <= _OF_THE_HOST
    if "pipeline" in path:
        assert all(hasattr(DiffusionPipeline, name) for name in ("_execution_device", "model_cpu_offload_seq"))
        assert "_use_default_values" in DDPMScheduler().config
