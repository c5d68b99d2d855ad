import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import NAMES, make_unet
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline

from cond_ddpm import CondDDPMPipeline


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
    with pytest.raises(ValueError, match="id2label: expected a name for each id from 0 to 2"):
        CondDDPMPipeline(tiny_unet, DDPMScheduler(), {0: "a", 1: "b"})
    with pytest.raises(ValueError, match="a name of its own"):
        CondDDPMPipeline(tiny_unet, DDPMScheduler(), {0: "a", 1: "b", 2: "a"})


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"generator": [_generator()] * 3}, "generator: expected 2, one for each image, got 3"),
        ({"generator": None, "seeds": [1, 2, 3]}, "seeds: expected 2, one for each image, got 3"),
        ({"generator": None, "seeds": 1}, "seeds: expected 2, one for each image, got 1"),
        ({"generator": None, "seeds": [1, 2], "num_images_per_label": 2}, "seeds: expected 4"),
        ({"seeds": [1, 2]}, "seeds: expected no generator beside them"),
        ({"num_inference_steps": 0}, "expected 1 to 1000"),
        ({"num_inference_steps": 1001}, "expected 1 to 1000 (the steps trained on), got 1001"),
        ({"num_images_per_label": 0}, "num_images_per_label: expected 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"output_type": "jpg"}, "'pil', 'np' or 'pt', got 'jpg'"),
        ({"sampler": "dpm"}, "sampler: expected one of ddpm, ddim, dpm++1"),
        (
            {"timestep_spacing": "even"},
            "expected one of leading, trailing, linspace, karras, quadratic, got 'even'",
        ),
        ({"sampler": "unipc", "timestep_spacing": "quadratic"}, "timestep_spacing: expected a scheduler that takes timesteps"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number"),
        ({"guidance_interval": (2, 1), "guidance_scale": 2.0}, "guidance_interval: expected noise levels (lo, hi)"),
        ({"guidance_interval": (1,), "guidance_scale": 2.0}, "guidance_interval: expected noise levels (lo, hi)"),
        ({"guidance_rescale": 1.5}, "guidance_rescale: expected a share from 0 to 1, got 1.5"),
        ({"return_intermediates": 4}, "return_intermediates: expected 2 to 3"),
        ({"return_intermediates": 1}, "return_intermediates: expected 2 to 3"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "expected names among sample, pred_original_sample"),
        ({"guide": "folder", "guidance_scale": 2.0}, "guide: expected a CondDDPMPipeline, got str"),
        ({"num_inference_steps": 2.0}, "num_inference_steps: expected 1 to 1000 (the steps trained on), got 2.0"),
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
    """1 is conditional and 0 unconditional, at one forward each; 2 goes as far beyond the condition."""
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    pipeline = CondDDPMPipeline(tiny_unet, scheduler)
    pipeline.unet = network = _Linear(tiny_unet)
    seen = []
    step = scheduler.step
    scheduler.step = lambda prediction, *rest, **more: seen.append(prediction) or step(prediction, *rest, **more)
    pipeline([1], _generator(), num_inference_steps=1, guidance_scale=scale)
    assert network.batches == [batch]
    assert seen[0].unique().tolist() == [effective]


def test_ddim_takes_the_noise_from_the_clipped_image(tiny_unet):
    """A network that predicts x_0 = 3 everywhere: clipped to 1, so x_s = alpha_s 1 + sigma_s (x_t - alpha_t 1) / sigma_t."""
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=True, timestep_spacing="trailing")
    pipeline = CondDDPMPipeline(tiny_unet, scheduler)
    pipeline.unet = _Linear(tiny_unet)  # predicts its label; 3 is the null label
    seen = []
    step = scheduler.step
    scheduler.step = lambda p, t, x, eta=0.0, use_clipped_model_output=False: (
        seen.append((x, step(p, t, x, use_clipped_model_output=use_clipped_model_output))) or seen[-1][1]
    )
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


def test_without_the_package_diffusers_loads_it(tiny_pipeline, tmp_path):
    """In a process where `import cond_ddpm` fails, and saving from there gives the same folder."""
    folder, copy = tmp_path / "published", tmp_path / "copy"
    tiny_pipeline.save_pretrained(folder)
    script = f"""
import sys, numpy, torch
sys.modules["cond_ddpm"] = None
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
images = pipeline(["cross", 0], torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
numpy.save({str(tmp_path / "images.npy")!r}, images)
pipeline.save_pretrained({str(copy)!r})
try:
    type(pipeline).from_pretrained({str(folder)!r})
except ValueError as error:
    assert "trust_remote_code" in str(error), error
"""
    env = {"HF_HOME": str(tmp_path / "home"), "PATH": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), _sample(tiny_pipeline))
    one, two = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*.*") if "__pycache__" not in p.parts} for f in (folder, copy)
    )
    assert one == two
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)


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

    with pytest.raises(ValueError, match="unet: expected as many channels out as in"):
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
