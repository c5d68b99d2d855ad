"""The pipeline: labels, guidance, outputs, saving and loading with and without this package, and what is refused."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import NAMES, make_pipeline, make_unet
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file

from cond_ddpm import CondDDPMPipeline, SimpleUNet2DModel
from cond_ddpm.cli import main


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _sample(pipeline, labels=("cross", 0), output_type="np", **arguments):
    arguments = {"generator": _generator(), "num_inference_steps": 3, **arguments}
    return pipeline(labels, output_type=output_type, **arguments).images


def test_labels_by_id_name_mixture_tensor_or_alone(tiny_pipeline):
    expected = _sample(tiny_pipeline, [2, 0])
    for labels in (["cross", "circle"], ["cross", 0], torch.tensor([2, 0]), np.array([2, 0])):
        assert np.array_equal(_sample(tiny_pipeline, labels), expected)
    for one in ("cross", np.int64(2), torch.tensor(2)):
        assert np.array_equal(_sample(tiny_pipeline, one), _sample(tiny_pipeline, 2))
    assert len(_sample(tiny_pipeline, 2)) == 1
    assert not np.allclose(_sample(tiny_pipeline, 2), _sample(tiny_pipeline, 1))


@pytest.mark.parametrize(
    "labels, words",
    [
        ("crss", "expected one of circle, square, cross, got 'crss'. Did you mean 'cross'?"),
        ([0, -1], "expected ids from 0 to 2, got -1"),
        ([3], "expected ids from 0 to 2, got 3"),
        ([1.0], "expected ids or names, got 1.0"),
        ([True], "got True"),
        ([], "at least one class"),
        (1.0, "expected ids or names, got 1.0"),
        ([torch.tensor(1.0)], "expected ids or names"),
    ],
)
def test_labels_that_are_none_of_the_model(tiny_pipeline, labels, words):
    with pytest.raises(ValueError) as error:
        _sample(tiny_pipeline, labels)
    assert words in str(error.value)


def test_names_need_a_model_with_names(tiny_unet):
    with pytest.raises(ValueError, match="no names"):
        CondDDPMPipeline(tiny_unet, DDPMScheduler())(["cat"])
    with pytest.raises(ValueError, match=r"with a different name for each id from 0 to 2, got {0: 'a', 1: 'b'}; name every"):
        CondDDPMPipeline(tiny_unet, DDPMScheduler(), {0: "a", 1: "b"})
    with pytest.raises(ValueError, match="with a different name for each id"):
        CondDDPMPipeline(tiny_unet, DDPMScheduler(), {0: "a", 1: "b", 2: "a"})


def test_the_name_of_a_class(tiny_unet):
    named = CondDDPMPipeline(tiny_unet, DDPMScheduler(), dict(enumerate(NAMES)))
    unnamed = CondDDPMPipeline(tiny_unet, DDPMScheduler())
    assert [named.class_name(label) for label in (0, 2, None)] == ["circle", "cross", "any class"]
    assert [unnamed.class_name(label) for label in (0, 2, None)] == ["class 0", "class 2", "any class"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"generator": [_generator()] * 3}, "generator: expected 2, one for each image, got 3"),
        ({"generator": None, "seeds": [1, 2, 3]}, "seeds: expected 2, one for each image, got 3"),
        ({"generator": None, "seeds": 1}, "seeds: expected 2, one for each image, got 1"),
        ({"generator": None, "seeds": [1, 2], "num_images_per_label": 2}, "seeds: expected 4"),
        ({"seeds": [1, 2]}, "seeds: expected no generator as well"),
        ({"num_inference_steps": 0}, "expected 1 to 1000"),
        ({"num_inference_steps": 1001}, "expected 1 to 1000 (the training timesteps), got 1001"),
        ({"num_images_per_label": 0}, "num_images_per_label: expected 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"output_type": "jpg"}, "'pil', 'np' or 'pt', got 'jpg'"),
        ({"sampler": "dpm"}, "sampler: expected one of ddpm, ddim, dpm++1"),
        (
            {"timestep_spacing": "even"},
            "expected one of leading, trailing, linspace, karras, quadratic, got 'even'",
        ),
        ({"sampler": "unipc", "timestep_spacing": "quadratic"}, "timestep_spacing: expected a scheduler that takes timesteps"),
        ({"timesteps": [999, 500], "num_inference_steps": 2}, "timesteps: expected neither num_inference_steps nor"),
        ({"timesteps": [1000, 0], "num_inference_steps": None}, "timesteps: expected 0 to 999, got 1000"),
        ({"timesteps": [], "num_inference_steps": None}, "num_inference_steps: expected 1 to 1000"),
        ({"timesteps": [500, 999], "num_inference_steps": None}, "timesteps: expected the highest first, and each once"),
        ({"timesteps": [500, 100], "num_inference_steps": None}, "where images are not yet noise"),
        (
            {"timesteps": [999, 500], "num_inference_steps": None, "sampler": "unipc"},
            "expected a scheduler that takes timesteps",
        ),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number"),
        ({"guidance_interval": (2, 1), "guidance_scale": 2.0}, "guidance_interval: expected noise levels (lo, hi)"),
        ({"guidance_interval": (1,), "guidance_scale": 2.0}, "guidance_interval: expected noise levels (lo, hi)"),
        ({"guidance_rescale": 1.5}, "guidance_rescale: expected a share from 0 to 1, got 1.5"),
        ({"return_intermediates": 4}, "return_intermediates: expected 2 to 3"),
        ({"return_intermediates": 1}, "return_intermediates: expected 2 to 3"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "expected names among sample, pred_original_sample"),
        ({"guide": "folder", "guidance_scale": 2.0}, "guide: expected a CondDDPMPipeline, got str"),
        ({"num_inference_steps": 2.0}, "num_inference_steps: expected 1 to 1000 (the training timesteps), got 2.0"),
        ({"generator": None, "seeds": [0.7, 1]}, "seeds: expected 0 to 18446744073709551615, got 0.7"),
        ({"generator": None, "seeds": [0, 2**64]}, "seeds: expected 0 to"),
    ],
)
def test_arguments_that_do_not_fit(tiny_pipeline, arguments, words):
    with pytest.raises(ValueError) as error:
        _sample(tiny_pipeline, **arguments)
    assert words in str(error.value)


def test_output_types_are_one_picture(tiny_pipeline):
    array = _sample(tiny_pipeline)
    assert array.shape == (2, 8, 8, 3) and array.min() >= 0 and array.max() <= 1
    assert np.array_equal(_sample(tiny_pipeline, output_type="pt").permute(0, 2, 3, 1), array)
    pictures = _sample(tiny_pipeline, output_type="pil")
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), (array * 255).round())
    assert np.array_equal(tiny_pipeline([2, 0], _generator(), 3, output_type="np", return_dict=False)[0], array)


def test_a_generator_an_image_makes_it_the_same_in_any_batch(tiny_pipeline):
    together = _sample(tiny_pipeline, [0, 1, 2], generator=[_generator(seed) for seed in (5, 6, 7)])
    alone = [_sample(tiny_pipeline, [label], generator=[_generator(5 + label)])[0] for label in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


class _Linear(torch.nn.Module):
    """A stand-in network whose prediction is the label, so that guidance can be worked out by hand."""

    def __init__(self, unet):
        super().__init__()
        self.config, self.dtype, self.device, self.batches = unet.config, torch.float32, unet.device, []

    def forward(self, sample, timestep, class_labels):
        self.batches.append(class_labels.tolist())
        prediction = class_labels[:, None, None, None].float().expand_as(sample)
        return type("Output", (), {"sample": prediction})


@pytest.mark.parametrize(
    "scale, batch, effective", [(1.0, [1], 1.0), (0.0, [3], 3.0), (2.0, [3, 1], -1.0), (0.5, [3, 1], 2.0)]
)
def test_guidance_is_uncond_plus_scale_times_the_difference(tiny_unet, scale, batch, effective):
    """Scales 1 and 0 are the conditional and the unconditional prediction, at one forward each; 2 extrapolates."""
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    pipeline = CondDDPMPipeline(tiny_unet, scheduler)
    pipeline.unet = network = _Linear(tiny_unet)
    seen = []
    step = scheduler.step
    scheduler.step = lambda prediction, *rest, **more: seen.append(prediction) or step(prediction, *rest, **more)
    pipeline([1], _generator(), num_inference_steps=1, guidance_scale=scale)
    assert network.batches == [batch]
    assert seen[0].unique().tolist() == [effective]


def test_ddim_takes_the_noise_from_the_clipped_image(tiny_unet, monkeypatch):
    """A network that predicts x_0 = 3 everywhere: clipped to 1, so x_s = alpha_s 1 + sigma_s (x_t - alpha_t 1) / sigma_t."""
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=True, timestep_spacing="trailing")
    pipeline = CondDDPMPipeline(tiny_unet, scheduler)
    pipeline.unet = _Linear(tiny_unet)  # predicts its label; 3 is the null label
    seen = []
    step = DDIMScheduler.step

    def watched(self, p, t, x, eta=0.0, use_clipped_model_output=False):
        seen.append((x, step(self, p, t, x, use_clipped_model_output=use_clipped_model_output)))
        return seen[-1][1]

    monkeypatch.setattr(DDIMScheduler, "step", watched)
    pipeline([1], _generator(), num_inference_steps=2, guidance_scale=0.0)
    alpha, sigma = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()
    x, output = seen[0]
    torch.testing.assert_close(output.prev_sample, alpha[499] + sigma[499] * (x - alpha[999]) / sigma[999])


def test_round_trip_gives_identical_images_and_names(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "one")
    loaded = CondDDPMPipeline.from_pretrained(tmp_path / "one")
    assert loaded.id2label == dict(enumerate(NAMES))
    assert np.array_equal(_sample(loaded), _sample(tiny_pipeline))
    loaded.save_pretrained(tmp_path / "two")
    one, two = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.*")} for f in (tmp_path / "one", tmp_path / "two"))
    assert one == two


def test_published_folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_cond_ddpm", "CondDDPMPipeline"]
    assert index["unet"] == ["cond_unet", type(tiny_pipeline.unet).__name__]
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json",
        "pipeline_cond_ddpm.py",
        "scheduler/scheduler_config.json",
        "unet/cond_unet.py",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


def test_with_the_package_no_code_of_the_folder_runs(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    for code in tmp_path.rglob("*.py"):
        code.write_text("raise SystemExit('code of the folder was run')")
    assert np.array_equal(_sample(CondDDPMPipeline.from_pretrained(tmp_path)), _sample(tiny_pipeline))


@pytest.mark.end_to_end
def test_without_the_package_diffusers_loads_it(tmp_path):
    """It loads in a process where `import cond_ddpm` fails, and saves the same folder again."""
    pipelines = {model: make_pipeline(make_unet(model)) for model in ("simple", "attention", "hybrid")}
    for model, pipeline in pipelines.items():
        pipeline.save_pretrained(tmp_path / model / "published")
    script = f"""
import sys, numpy, torch
for name in ("cond_ddpm", "accelerate", "transformers", "datasets"):  # who only samples needs diffusers alone
    sys.modules[name] = None
from diffusers import DiffusionPipeline
for model in {list(pipelines)}:
    pipeline = DiffusionPipeline.from_pretrained(f"{{model}}/published", trust_remote_code=True)
    images = pipeline(["cross", 0], torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
    numpy.save(f"{{model}}/images.npy", images)
    pipeline.save_pretrained(f"{{model}}/copy")
    try:
        type(pipeline).from_pretrained(f"{{model}}/published")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
"""
    env = {"HF_HOME": str(tmp_path / "home"), "PATH": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for model, pipeline in pipelines.items():
        np.testing.assert_array_equal(np.load(tmp_path / model / "images.npy"), _sample(pipeline))
        one, two = (
            {p.relative_to(f): p.read_bytes() for p in f.rglob("*.*") if "__pycache__" not in p.parts}
            for f in (tmp_path / model / "published", tmp_path / model / "copy")
        )
        assert one == two
        with pytest.raises(ValueError, match="trust_remote_code"):
            DiffusionPipeline.from_pretrained(tmp_path / model / "published")


def test_a_folder_of_something_else(tmp_path, tiny_pipeline):
    tiny_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"unet": ["os", "PathLike"]}))
    with pytest.raises(ValueError, match="network of the installed package"):
        CondDDPMPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "DDPMPipeline"}))
    with pytest.raises(ValueError, match="expected a CondDDPMPipeline"):
        CondDDPMPipeline.from_pretrained(tmp_path)


def test_components_given_are_used(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    other = make_unet("simple", seed=1)
    loaded = CondDDPMPipeline.from_pretrained(tmp_path, unet=other, scheduler=DDIMScheduler())
    assert loaded.unet is other and isinstance(loaded.scheduler, DDIMScheduler)
    assert CondDDPMPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    assert CondDDPMPipeline.from_pretrained(tmp_path, id2label={0: "a", 1: "b", 2: "c"}).id2label[2] == "c"
    with pytest.raises(TypeError, match="custom_pipeline"):
        CondDDPMPipeline.from_pretrained(tmp_path, custom_pipeline="x")


@pytest.mark.end_to_end
def test_saving_leaves_other_files_alone_and_unwraps_a_compiled_network(tiny_pipeline, tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "tsconfig.json").write_text("{} // mine")
    expected = _sample(tiny_pipeline)
    tiny_pipeline.unet = torch.compile(tiny_pipeline.unet)
    tiny_pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "web" / "tsconfig.json").read_text() == "{} // mine"
    assert np.array_equal(_sample(CondDDPMPipeline.from_pretrained(tmp_path)), expected)


def test_whole_numbers_of_numpy(tiny_pipeline):
    expected = _sample(tiny_pipeline, [2], generator=None, seeds=[3])
    assert np.array_equal(
        _sample(tiny_pipeline, [2], generator=None, seeds=np.int64(3), num_inference_steps=np.int64(3)), expected
    )


def test_networks_and_guides_of_another_kind(tiny_pipeline):
    from diffusers import DDPMPipeline, UNet2DModel

    with pytest.raises(ValueError, match="unet: expected as many output channels as input channels, 3, got 6"):
        CondDDPMPipeline(make_unet(out_channels=6), DDPMScheduler())
    other = DDPMPipeline(
        UNet2DModel(
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        ),
        DDPMScheduler(),
    )
    with pytest.raises(ValueError, match="guide: expected a CondDDPMPipeline, got DDPMPipeline"):
        _sample(tiny_pipeline, guide=other, guidance_scale=2.0)
    guide = CondDDPMPipeline(tiny_pipeline.unet, DDPMScheduler(), dict(enumerate(NAMES)), class_dropout_prob=0.0)
    with pytest.raises(ValueError, match="class_labels=None with this guide"):
        tiny_pipeline(None, guide=guide, guidance_scale=2.0)


# Calls at the same time


_SCHEDULERS = [
    *(DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler),
    *(UniPCMultistepScheduler, HeunDiscreteScheduler, EulerDiscreteScheduler),
]


def _quiet_pipeline(scheduler=DDPMScheduler, **settings):
    pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler(timestep_spacing="trailing"), dict(enumerate(NAMES)))
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.hostile(1)
@pytest.mark.parametrize("scheduler", _SCHEDULERS)
def test_calls_in_threads_give_the_images_of_calls_one_after_the_other(scheduler):
    """Bitwise the same, although the threads have different labels, seeds and numbers of steps, and alternate their steps."""
    pipeline = _quiet_pipeline(scheduler)
    calls = [([0, 1], [0, 1], 5), ([2], [7], 8), ([1], [3], 10)]
    step_together = threading.Barrier(len(calls))

    def call(labels, seeds, steps, meet=False):
        def wait(_pipeline, index, _timestep, _tensors):
            if meet and index < 4:
                step_together.wait(timeout=600)

        arguments = {"seeds": seeds, "num_inference_steps": steps, "output_type": "np", "callback_on_step_end": wait}
        try:
            return pipeline(labels, **arguments).images
        except BaseException:
            step_together.abort()
            raise

    alone = [call(*arguments) for arguments in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        together = list(pool.map(lambda arguments: call(*arguments, meet=True), calls))
    for one, other in zip(alone, together):
        assert np.array_equal(one, other)


@pytest.mark.hostile(1)
@pytest.mark.parametrize("scheduler", _SCHEDULERS)
def test_a_call_inside_a_callback_changes_neither(scheduler):
    pipeline = _quiet_pipeline(scheduler)
    outer, inner = {"seeds": [0], "num_inference_steps": 8}, {"seeds": [1], "num_inference_steps": 5}
    expected = _sample(pipeline, [0], generator=None, **outer), _sample(pipeline, [2], generator=None, **inner)
    seen = []

    def call_again(own, index, _timestep, _tensors):
        if index == 2:
            seen.append(_sample(own, [2], generator=None, **inner))

    images = _sample(pipeline, [0], generator=None, **outer, callback_on_step_end=call_again)
    assert np.array_equal(images, expected[0]) and np.array_equal(seen[0], expected[1])


@pytest.mark.hostile(1)
def test_a_call_leaves_the_pipeline_as_it_is():
    for scheduler in _SCHEDULERS:
        pipeline = _quiet_pipeline(scheduler)
        before = {name: str(value) for name, value in vars(pipeline.scheduler).items()}
        own = pipeline.scheduler
        _sample(pipeline, num_inference_steps=5)
        assert pipeline.scheduler is own and {name: str(value) for name, value in vars(own).items()} == before
        assert pipeline.make_scheduler() is not own


class _Brighter(DDIMScheduler):
    """A scheduler of the user's own, with an attribute that is not in its config."""

    offset = 0.0

    def step(self, *arguments, **more):
        output = super().step(*arguments, **more)
        output.prev_sample = output.prev_sample + self.offset
        return output


@pytest.mark.hostile(1)
def test_a_scheduler_of_the_users_own_is_the_one_that_steps():
    pipeline = _quiet_pipeline()
    betas = torch.linspace(1e-4, 0.03, 1000).tolist()
    arguments = {"timestep_spacing": "trailing", "num_inference_steps": 4}
    pipeline.scheduler = _Brighter.from_config(pipeline.scheduler.config, trained_betas=betas)
    plain = _sample(pipeline, **arguments)
    pipeline.scheduler.offset = 0.1
    del arguments["timestep_spacing"]
    assert not np.array_equal(_sample(pipeline, **arguments), plain)
    for scheduler in (pipeline.make_scheduler(), pipeline.make_scheduler(timestep_spacing="leading")):
        assert isinstance(scheduler, _Brighter)
        assert torch.equal(scheduler.betas, torch.tensor(betas)) and not torch.equal(scheduler.betas, DDPMScheduler().betas)
    assert pipeline.make_scheduler().offset == 0.1


# A pipeline from a pipeline


@pytest.mark.hostile(18)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pipeline_from_a_pipeline_shares_the_network_and_leaves_its_type(dtype, tmp_path):
    _quiet_pipeline().save_pretrained(tmp_path)
    pipeline = CondDDPMPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    pipeline.guidance_scale = 2.0
    pipeline.companions = {"README.md": b"a card"}
    other = CondDDPMPipeline.from_pipe(pipeline)
    assert other.unet is pipeline.unet and other.unet.dtype == dtype
    assert other.id2label == pipeline.id2label and other.guidance_scale == 2 and other.companions == pipeline.companions
    assert np.array_equal(_sample(other), _sample(pipeline))
    assert pipeline._of_hub is None  # a folder that is gone is not asked for on the Hub
    named = CondDDPMPipeline.from_pipe(pipeline, id2label={0: "a", 1: "b", 2: "c"}, scheduler=DDIMScheduler())
    assert named.id2label[1] == "b" and pipeline.id2label[1] == "square" and isinstance(named.scheduler, DDIMScheduler)


# Damaged folders


@pytest.mark.hostile(22)
def test_weights_that_lack_a_tensor_are_refused_by_name(tmp_path):
    """When loaded by this package, by the network's own class, or by diffusers with the folder's code."""
    _quiet_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_out.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    for load in (
        lambda: CondDDPMPipeline.from_pretrained(tmp_path),
        lambda: SimpleUNet2DModel.from_pretrained(tmp_path / "unet"),
        lambda: SimpleUNet2DModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False),
        lambda: DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        with pytest.raises(ValueError, match=r"every tensor of SimpleUNet2DModel, got a file without conv_out\.bias;"):
            load()


def _damage(file, content):
    if isinstance(content, dict) and content:
        content = json.loads(file.read_text()) | content
    file.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.hostile(22)
@pytest.mark.parametrize("content", [{}, [], "null", "7", '"text"', "{", "", "\x00"], ids=str)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_damaged_json_file_is_one_line(name, content, tmp_path, capsys):
    _quiet_pipeline().save_pretrained(tmp_path / "model")
    _damage(tmp_path / "model" / name, content)
    command = ["sample", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "x.png")]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and str(tmp_path / "model") in error and ("expected" in error or "valid JSON" in error)
    with pytest.raises((ValueError, OSError)) as raised:
        CondDDPMPipeline.from_pretrained(tmp_path / "model")
    assert "\n" not in str(raised.value)


@pytest.mark.hostile(22)
@pytest.mark.parametrize(
    "name, content, words",
    [
        ("model_index.json", {"_class_name": 7}, "expected a CondDDPMPipeline, got a 7"),
        ("model_index.json", {"_class_name": []}, "expected a CondDDPMPipeline"),
        ("model_index.json", {"unet": None}, "unet: expected [module, class] in model_index.json, got None"),
        ("model_index.json", {"unet": ["cond_unet"]}, "unet: expected [module, class]"),
        ("model_index.json", {"unet": [None, None]}, "unet: expected [module, class]"),
        ("model_index.json", {"scheduler": "DDPM"}, "scheduler: expected [module, class]"),
        ("model_index.json", {"scheduler": ["diffusers", "Nothing"]}, "scheduler: expected one of diffusers, got Nothing"),
        ("model_index.json", {"scheduler": ["diffusers", "UNet2DModel"]}, "scheduler: expected one of diffusers"),
        ("model_index.json", {"scheduler": ["mine", "DDPMScheduler"]}, "got DDPMScheduler from mine"),
        (
            "model_index.json",
            {"id2label": ["a", "b", "c"]},
            "id2label: expected {id: name} with a different name for each id from 0 to 2",
        ),
        (
            "model_index.json",
            {"id2label": {"a": 1}},
            "id2label: expected {id: name} with a different name for each id from 0 to 2",
        ),
        ("model_index.json", {"class_dropout_prob": "some"}, "class_dropout_prob: expected a share from 0 to 1"),
        ("model_index.json", {"class_dropout_prob": 2}, "class_dropout_prob: expected a share from 0 to 1"),
        ("model_index.json", {"guidance_scale": "3"}, "guidance_scale: expected a finite number, got '3'"),
        ("unet/config.json", {"sample_size": "8"}, "unet: expected the files that save_pretrained wrote, got TypeError"),
        ("unet/config.json", {"block_out_channels": 8}, "unet: expected the files that save_pretrained wrote, got TypeError"),
        ("unet/config.json", {"num_classes": 4}, "expected shape"),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": "x"},
            "scheduler: expected the files that save_pretrained wrote",
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": 3}, "scheduler: expected the files that save_pretrained wrote"),
        ("scheduler/scheduler_config.json", {"clip_sample_range": "x"}, "clip_sample_range: expected a number, got 'x'"),
        ("scheduler/scheduler_config.json", {"trained_betas": -1}, "trained_betas: expected a number for each of 1000 timest"),
    ],
)
def test_values_of_another_type_in_a_folders_json(name, content, words, tmp_path):
    _quiet_pipeline().save_pretrained(tmp_path)
    _damage(tmp_path / name, content)
    with pytest.raises(ValueError) as error:
        CondDDPMPipeline.from_pretrained(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.hostile(22)
def test_a_prediction_type_that_the_loop_has_not(tmp_path):
    _quiet_pipeline().save_pretrained(tmp_path)
    _damage(tmp_path / "scheduler" / "scheduler_config.json", {"prediction_type": "flow_prediction"})
    with pytest.raises(
        ValueError, match="prediction_type: expected one of epsilon, v_prediction, sample with DDPMScheduler, got 'flow_predic"
    ):
        _sample(CondDDPMPipeline.from_pretrained(tmp_path))
