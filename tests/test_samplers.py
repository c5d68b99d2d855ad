"""The pipeline with each sampler, compared with exact solutions.

For Gaussian data, the ideal network and the solution of the probability-flow ODE are known.
"""

import itertools
import json
import math

import diffusers
import numpy as np
import pytest
import torch
from conftest import NAMES, ROOT, make_unet
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.pipelines.pipeline_cond_ddpm import SAMPLERS, TESTED_SCHEDULERS, Guidance
from cond_ddpm.sampling import drawn_by

MEAN, STD = 0.3, 0.15  # of the pixels of class 0; class 1 has the opposite mean; the null label has 0
STOCHASTIC = ("ddpm", "dpm++sde")


class _Ideal(torch.nn.Module):
    """The best possible prediction for pixels that are N(mean of the class, STD^2) each, in any prediction type."""

    def __init__(self, prediction_type, means=(MEAN, -MEAN, 0.0)):
        super().__init__()
        unet = make_unet("simple", num_classes=2)
        self.config, self.dtype, self.device = unet.config, torch.float32, unet.device
        self.type, self.means, self.batches = prediction_type, torch.tensor(means), []
        self.register_buffer("alphas_cumprod", DDPMScheduler().alphas_cumprod.double())

    def forward(self, sample, timestep, class_labels):
        self.batches.append(class_labels.tolist())
        sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().numpy()
        sigma = float(np.interp(float(timestep), np.arange(1000), sigmas))  # as Euler and Heun read fractional timesteps
        alpha = 1 / math.sqrt(1 + sigma**2)
        mean, noisy = self.means[class_labels][:, None, None, None].double(), sample.double()
        original = mean + STD**2 / (STD**2 + sigma**2) * (noisy / alpha - mean)  # E[x_0 | x_t]
        noise = (noisy - alpha * original) / (sigma * alpha)
        prediction = {
            "sample": original,
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * alpha * original,
        }[self.type]
        return type("Output", (), {"sample": prediction.float()})


def _ideal_pipeline(prediction_type="v_prediction", **settings):
    scheduler = DDPMScheduler(prediction_type=prediction_type, timestep_spacing="trailing", **settings)
    unet = _Ideal(prediction_type)
    pipeline = CondDDPMPipeline(make_unet("simple", num_classes=2), scheduler)
    pipeline.unet = unet
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _pixels(pipeline, labels=(0,), seeds=(0,), **arguments):
    """In [-1, 1]."""
    return pipeline(list(labels), seeds=list(seeds), output_type="pt", **arguments).images * 2 - 1


def _exact(noise, mean=MEAN, first=999):
    """The solution of the probability-flow ODE from noise at timestep `first` (Karras 2022, eq. 1): x - mean scales with its
    standard deviation, sqrt(STD^2 + sigma^2)."""
    alphas_cumprod = DDPMScheduler().alphas_cumprod.double()[first]
    sigma = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
    return mean + (noise.double() / alphas_cumprod.sqrt() - mean) * STD / (STD**2 + sigma**2).sqrt()


def _noise(seed=0):
    return torch.randn((3, 8, 8), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in STOCHASTIC])
def test_deterministic_samplers_solve_the_ode(sampler, prediction_type):
    """With the ideal network, the error falls at least as fast as 1 / steps, for every prediction type."""
    pipeline = _ideal_pipeline(prediction_type)
    exact = _exact(_noise())
    errors = [
        (_pixels(pipeline, num_inference_steps=steps, sampler=sampler, timestep_spacing="trailing")[0] - exact).abs().max()
        for steps in (20, 80, 320)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 0.15 * STD, errors


@pytest.mark.parametrize("spacing", ["quadratic", "karras"])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in STOCHASTIC])
def test_spacings_that_waste_no_steps_where_there_is_only_noise(sampler, spacing):
    """With 20 steps the error is less than half that of even spacing, which jumps from t = 49 to the image."""
    if (sampler, spacing) == ("unipc", "quadratic"):
        pytest.skip("diffusers' UniPC takes no timesteps of ours")
    pipeline = _ideal_pipeline()
    exact = _exact(_noise())
    even, better = (
        (_pixels(pipeline, num_inference_steps=20, sampler=sampler, timestep_spacing=name)[0] - exact).std().item()
        for name in ("trailing", spacing)
    )
    assert better < even / 2, (even, better)


def test_timesteps_of_ones_own_are_taken():
    pipeline = _ideal_pipeline()
    chosen = [round(999 * (i / 8) ** 2) for i in range(8, 0, -1)]
    quadratic = _pixels(pipeline, num_inference_steps=8, sampler="dpm++2", timestep_spacing="quadratic")
    assert torch.equal(_pixels(pipeline, timesteps=chosen, sampler="dpm++2"), quadratic)
    assert not torch.equal(_pixels(pipeline, timesteps=[999, *range(7, 0, -1)], sampler="dpm++2"), quadratic)


@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_stochastic_samplers_give_the_distribution(sampler, prediction_type):
    """Mean and deviation of the pixels of 64 images (12,288), to four standard errors plus the discretisation error."""
    pipeline = _ideal_pipeline(prediction_type)
    steps = 1000 if sampler == "ddpm" else 250
    pixels = _pixels(pipeline, [0] * 64, range(64), sampler=sampler, num_inference_steps=steps)
    assert abs(pixels.mean().item() - MEAN) < 4 * STD / 12288**0.5 + 0.002
    assert abs(pixels.std().item() / STD - 1) < 0.05


def test_the_name_ddim_is_ddim():
    """DPM-Solver++ of order 1 agrees with diffusers' DDIM where that is right, since 20 divides 1000."""
    pipeline = _ideal_pipeline("epsilon")
    ours = _pixels(pipeline, sampler="ddim", num_inference_steps=20)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    torch.testing.assert_close(_pixels(pipeline, num_inference_steps=20), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler, settings, steps, words",
    [
        (DDIMScheduler, {"timestep_spacing": "linspace"}, 20, "take sampler='ddim'"),
        (DDIMScheduler, {"timestep_spacing": "trailing"}, 30, "take sampler='ddim'"),
        (DDIMScheduler, {"timestep_spacing": "trailing"}, 61, "makes wrong timesteps"),
        (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, 61, "makes wrong timesteps"),
        (DPMSolverMultistepScheduler, {"timestep_spacing": "leading"}, 1000, "makes wrong timesteps"),
        (
            DDIMScheduler,
            {"timestep_spacing": "leading"},
            501,
            "starts 501 steps at timestep 500, where images are not yet noise",
        ),
        (DDPMScheduler, {"timestep_spacing": "leading"}, 1, "starts 1 steps at timestep 0"),
        (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}, 1, "starts 1 steps at timestep 0"),
    ],
)
def test_spacings_that_diffusers_gets_wrong_are_refused(scheduler, settings, steps, words):
    pipeline = _ideal_pipeline()
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    with pytest.raises(ValueError, match=words):
        _pixels(pipeline, num_inference_steps=steps)


def test_a_spacing_that_the_scheduler_has_no_setting_for():
    for spacing, setting in (("leading", "timestep_spacing"), ("karras", "use_karras_sigmas")):
        pipeline = _ideal_pipeline()
        other = DPMSolverSinglestepScheduler if spacing == "leading" else DDPMScheduler
        pipeline.scheduler = other.from_config(pipeline.scheduler.config)
        with pytest.raises(
            ValueError, match=f"expected a scheduler that has the setting {setting} for '{spacing}', got {other.__name__}"
        ):
            _pixels(pipeline, num_inference_steps=20, timestep_spacing=spacing)


# Other schedulers of diffusers


_RANDOM = ("DDPMScheduler", "DDPMParallelScheduler", "EulerAncestralDiscreteScheduler", "SASolverScheduler")


def _with_scheduler(name, prediction_type="v_prediction"):
    if name == "LMSDiscreteScheduler":
        pytest.importorskip("scipy", reason="diffusers has that scheduler only where scipy is")
    pipeline = _ideal_pipeline(prediction_type)
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    return pipeline


def _relative_errors(pipeline):
    """The largest error of a pixel with 10, 50 and 250 steps, as a multiple of the data's standard deviation."""
    pixels = [_pixels(pipeline, num_inference_steps=steps)[0] for steps in (10, 50, 250)]
    return [((image - _exact(_noise())).abs().max() / STD).item() for image in pixels]


def _converges(errors):
    return errors[2] < 0.2 and all(fine < coarse / 3 or fine < 0.02 for coarse, fine in itertools.pairwise(errors))


@pytest.mark.hostile(12)
@pytest.mark.parametrize("name", [name for name in TESTED_SCHEDULERS if name not in _RANDOM])
def test_deterministic_schedulers_that_are_accepted_solve_the_ode(name):
    """Made by `from_config`, as the page on sampling says, they converge to the exact solution as 1 / steps, or faster."""
    errors = _relative_errors(_with_scheduler(name))
    assert _converges(errors), errors


@pytest.mark.hostile(12)
@pytest.mark.parametrize("name", _RANDOM[1:])  # the first is one of SAMPLERS, tested above
def test_random_schedulers_that_are_accepted_give_the_distribution(name):
    """Mean and standard deviation of the pixels of 32 images (6,144)."""
    pixels = _pixels(_with_scheduler(name), [0] * 32, range(32), num_inference_steps=500)
    assert abs(pixels.mean().item() - MEAN) < 4 * STD / 6144**0.5 + 0.002
    assert abs(pixels.std().item() / STD - 1) < 0.06


@pytest.mark.hostile(12)
@pytest.mark.parametrize("name", TESTED_SCHEDULERS)
def test_schedulers_that_are_accepted_give_the_same_whatever_is_predicted_and_beside_whatever(name):
    """EulerAncestralDiscreteScheduler cannot step with a predicted image; that is an error before the first forward."""
    arguments = {"num_inference_steps": 10}
    expected = _pixels(_with_scheduler(name), [0], [1], **arguments)
    assert (_pixels(_with_scheduler(name), [0, 0], [0, 1], **arguments)[1:] - expected).abs().max() < 1e-3
    assert (_pixels(_with_scheduler(name, "epsilon"), [0], [1], **arguments) - expected).abs().max() < 1e-3
    predicts_images = _with_scheduler(name, "sample")
    if name != "EulerAncestralDiscreteScheduler":
        assert (_pixels(predicts_images, [0], [1], **arguments) - expected).abs().max() < 1e-3
        return
    with pytest.raises(ValueError, match="prediction_type: expected one of epsilon, v_prediction with EulerAncestral"):
        _pixels(predicts_images, [0], [1], **arguments)


@pytest.mark.hostile(12)
def test_a_scheduler_that_comes_to_another_solution_is_told_apart(monkeypatch):
    """The two tests above do notice a wrong scheduler. This one is therefore not accepted."""
    monkeypatch.setattr(
        "cond_ddpm.pipelines.pipeline_cond_ddpm.TESTED_SCHEDULERS", (*TESTED_SCHEDULERS, "CogVideoXDDIMScheduler")
    )
    errors = _relative_errors(_with_scheduler("CogVideoXDDIMScheduler"))
    assert not _converges(errors) and errors[2] > 1, errors


@pytest.mark.hostile(12)
def test_every_other_scheduler_of_diffusers_is_refused_and_the_tested_ones_named():
    refused = []
    for name in dir(diffusers.schedulers):  # `dir` lists them all, `getattr` imports them
        class_ = getattr(diffusers.schedulers, name, None)
        is_one = isinstance(class_, type) and issubclass(class_, SchedulerMixin)
        if not is_one or name in (*TESTED_SCHEDULERS, "SchedulerMixin"):
            continue
        pipeline = _ideal_pipeline()
        try:
            pipeline.scheduler = class_.from_config(pipeline.scheduler.config)
        except (ImportError, TypeError, ValueError):
            continue  # it cannot be made from this config
        with pytest.raises(
            ValueError, match=f"scheduler: expected one that was tested with this pipeline, DDPMSch.*, got {name};"
        ):
            _pixels(pipeline, num_inference_steps=20)
        refused.append(name)
    assert {"CogVideoXDDIMScheduler", "LCMScheduler", "PNDMScheduler", "FlowMatchEulerDiscreteScheduler"} <= set(refused)


@pytest.mark.hostile(12)
def test_a_class_of_ones_own_is_accepted_if_what_it_derives_from_is():
    class Mine(DDIMScheduler):
        pass

    class Other(diffusers.CogVideoXDDIMScheduler):
        pass

    pipeline = _ideal_pipeline()
    pipeline.scheduler = Mine.from_config(pipeline.scheduler.config)
    _pixels(pipeline, num_inference_steps=20)
    pipeline.scheduler = Other.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="got Other"):
        _pixels(pipeline, num_inference_steps=20)


@pytest.mark.hostile(12)
def test_the_page_on_sampling_names_the_schedulers_that_are_accepted():
    page = ROOT / "docs" / "how_to" / "sampling.md"
    row = next(line for line in page.read_text().splitlines() if line.startswith("| `sampler` |"))
    assert set(TESTED_SCHEDULERS) == {word.strip("`,") for word in row.split() if word.strip("`,").endswith("Scheduler")} - {
        "Scheduler"
    }


# Other noise schedules


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ddpm"])
def test_other_noise_schedules(sampler, beta_schedule):
    """With the sampler's default spacing and 100 steps, the pixels have the right mean and standard deviation."""
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule=beta_schedule)
    pipeline = _ideal_pipeline()
    pipeline.scheduler = scheduler
    pipeline.unet.alphas_cumprod = scheduler.alphas_cumprod.double()
    pixels = _pixels(pipeline, [0] * 32, range(32), sampler=sampler, num_inference_steps=100)
    assert abs(pixels.mean() - MEAN) < 0.02
    assert 0.9 < pixels.std() / STD < 1.05


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("steps", [7, 20])
def test_any_scheduler_with_the_same_betas(tiny_pipeline, scheduler, steps):
    tiny_pipeline.scheduler = scheduler.from_config(tiny_pipeline.scheduler.config, timestep_spacing="leading")
    images = [tiny_pipeline([0], seeds=[0], num_inference_steps=steps, output_type="np").images for _ in range(2)]
    assert np.isfinite(images[0]).all() and np.array_equal(*images)


def test_samplers_keep_the_betas_and_what_is_predicted():
    pipeline = _ideal_pipeline(beta_end=0.015)
    betas = pipeline.scheduler.betas
    for sampler in SAMPLERS:
        pipeline.scheduler = pipeline.make_scheduler(sampler)  # from one to the next, as a user would
        assert torch.equal(pipeline.scheduler.betas, betas) and pipeline.scheduler.config.prediction_type == "v_prediction"
        images = _pixels(pipeline, num_inference_steps=20)
        assert torch.equal(images, _pixels(_ideal_pipeline(beta_end=0.015), num_inference_steps=20, sampler=sampler))


def test_other_schedulers_get_the_betas_that_were_left_at_their_default(tiny_pipeline):
    """The default betas of DDPM are not those of Heun."""
    heun = HeunDiscreteScheduler.from_config(tiny_pipeline.scheduler.config)
    assert torch.equal(heun.betas, DDPMScheduler().betas) and not torch.equal(heun.betas, HeunDiscreteScheduler().betas)
    tiny_pipeline.scheduler = DDPMScheduler()  # set after construction: `make_scheduler` must still keep the betas
    assert torch.equal(tiny_pipeline.make_scheduler("heun").betas, DDPMScheduler().betas)


@pytest.mark.parametrize("steps", [None, 10])
def test_forwards_and_default_steps(steps):
    """A folder without a number of steps, as all were before it was a setting, means 20."""
    for scheduler, forwards in (
        (DDPMScheduler, 1000),
        (DPMSolverMultistepScheduler, steps or 20),
        (HeunDiscreteScheduler, 2 * (steps or 20) - 1),
    ):
        pipeline = _ideal_pipeline()
        pipeline = CondDDPMPipeline(pipeline.unet, scheduler.from_config(pipeline.scheduler.config), num_inference_steps=steps)
        _pixels(pipeline)
        assert len(pipeline.unet.batches) == forwards


def test_a_saved_folder_keeps_its_number_of_steps(tmp_path):
    scheduler = DPMSolverMultistepScheduler()
    CondDDPMPipeline(make_unet("simple"), scheduler, num_inference_steps=7).save_pretrained(tmp_path / "new")
    assert CondDDPMPipeline.from_pretrained(tmp_path / "new").default_steps(scheduler) == 7
    of_seven = drawn_by(CondDDPMPipeline.from_pretrained(tmp_path / "new"), {"num_inference_steps": None})
    index = json.loads((tmp_path / "new" / "model_index.json").read_text())
    del index["num_inference_steps"]
    (tmp_path / "new" / "model_index.json").write_text(json.dumps(index))
    before = CondDDPMPipeline.from_pretrained(tmp_path / "new")
    assert before.default_steps(scheduler) == 20
    # What was begun with the one is not continued with the other.
    assert drawn_by(before, {"num_inference_steps": None}) != of_seven
    assert drawn_by(before, {"num_inference_steps": 7}) == of_seven
    for steps in (0, 2.5, "9"):
        with pytest.raises(ValueError, match="num_inference_steps: expected 1 or more"):
            CondDDPMPipeline(make_unet("simple"), scheduler, num_inference_steps=steps)


# Guidance


def test_guidance_moves_the_mean_as_the_formula_says():
    """Guiding ideal predictions for the means 0 and m with scale w gives the ideal prediction for the mean w m."""
    for scale in (0.5, 2.0, 3.0):
        pipeline = _ideal_pipeline(clip_sample=False)
        pixels = _pixels(pipeline, sampler="dpm++2", num_inference_steps=100, guidance_scale=scale)
        assert abs(pixels - _exact(_noise(), scale * MEAN).clamp(-1, 1)).max() < 0.02
        assert pipeline.unet.batches == [[2, 0]] * 100


def test_scale_1_is_the_conditional_and_0_the_unconditional_sample(tiny_pipeline):
    def sample(labels, **arguments):
        arguments = {"seeds": [3, 4], "num_inference_steps": 5, "output_type": "pt", **arguments}
        return tiny_pipeline(labels, **arguments).images

    plain = sample([0, 1])
    assert torch.equal(sample([0, 1], guidance_scale=1.0), plain)
    none = sample(None, num_images_per_label=2)
    assert torch.equal(sample([0, 1], guidance_scale=0.0), none) and not torch.allclose(none, plain)
    close = sample([0, 1], guidance_scale=1.0 + 1e-6)  # these take two forwards, so the formula itself has these limits
    assert (close - plain).abs().max() < 1e-3
    assert (sample([0, 1], guidance_scale=1e-6) - none).abs().max() < 1e-3


def test_guidance_only_in_the_interval():
    """The batch is doubled only where lo < sigma <= hi; elsewhere the prediction is conditional."""
    pipeline = _ideal_pipeline()
    pipeline.scheduler = pipeline.make_scheduler("ddim")
    pipeline.scheduler.set_timesteps(10)
    sigmas = pipeline.scheduler.sigmas[:10].tolist()
    interval = (sigmas[6], sigmas[3])
    _pixels(pipeline, num_inference_steps=10, guidance_scale=2.0, guidance_interval=interval)
    assert pipeline.unet.batches == [[0]] * 3 + [[2, 0]] * 3 + [[0]] * 4
    everywhere = _pixels(pipeline, num_inference_steps=10, guidance_scale=2.0)
    same = _pixels(pipeline, num_inference_steps=10, guidance_scale=2.0, guidance_interval=(0, float("inf")))
    assert torch.equal(everywhere, same)
    pipeline.unet.batches.clear()
    _pixels(pipeline, num_inference_steps=10, guidance_scale=0.0, guidance_interval=interval)
    assert pipeline.unet.batches == [[0]] * 3 + [[2]] * 3 + [[0]] * 4


def test_autoguidance():
    """A pipeline that guides itself changes nothing. A guide with mean g gives the ideal prediction for g + w (m - g)."""
    pipeline, guide = _ideal_pipeline(), _ideal_pipeline()
    plain = _pixels(pipeline, sampler="dpm++2", num_inference_steps=100)
    assert torch.equal(_pixels(pipeline, sampler="dpm++2", num_inference_steps=100, guidance_scale=3.0, guide=pipeline), plain)
    guide.unet.means = torch.tensor([0.1, 0.0, 9.0])  # the null label is not used
    guided = _pixels(pipeline, sampler="dpm++2", num_inference_steps=100, guidance_scale=2.0, guide=guide)
    assert abs(guided - _exact(_noise(), 0.1 + 2 * (MEAN - 0.1))).max() < 0.02
    own = _pixels(pipeline, sampler="dpm++2", num_inference_steps=100, guidance_scale=0.0, guide=guide)
    assert abs(own - _exact(_noise(), 0.1)).max() < 0.02


@pytest.mark.parametrize("arguments", [{"guide": True}, {"guidance_interval": (0, 1)}, {"guidance_rescale": 0.5}])
def test_what_has_no_effect_without_guidance_is_refused(arguments):
    pipeline = _ideal_pipeline()
    if "guide" in arguments:
        arguments = {"guide": pipeline}
    with pytest.raises(ValueError, match="guidance_scale: expected a value other than 1"):
        _pixels(pipeline, num_inference_steps=20, **arguments)


def test_rescale_brings_the_standard_deviation_back():
    """Lin 2024, eq. 15 and 16, in a single step: 1 gives the deviation of the conditional prediction, 0.5 is halfway."""
    predictions = {}
    for rescale in (None, 0.0, 0.5, 1.0):
        pipeline = _ideal_pipeline("epsilon", clip_sample=False)
        pipeline.unet = _Contrast()
        seen, step = [], pipeline.scheduler.step
        pipeline.scheduler.step = lambda p, *rest, **more: seen.append(p) or step(p, *rest, **more)  # noqa: B023
        scale = {"guidance_scale": 3.0, "guidance_rescale": rescale} if rescale is not None else {}
        _pixels(pipeline, num_inference_steps=1, **scale)
        predictions[rescale] = seen[0]
    cond, guided = predictions[None].std().item(), predictions[0.0].std().item()
    assert guided > 1.5 * cond
    assert predictions[1.0].std().item() == pytest.approx(cond, rel=1e-5)
    assert predictions[0.5].std().item() == pytest.approx((cond + guided) / 2, rel=1e-5)


def test_rescale_is_of_each_image_by_itself():
    base, cond = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)

    def guided(images):
        """For a network that predicts `base` with the null label, 2, and `cond` with other labels."""
        unet = _Ideal("epsilon")
        unet.forward = lambda sample, timestep, labels: type("Output", (), {"sample": torch.cat([base[images], cond[images]])})
        labels = torch.zeros(len(base[images]), dtype=torch.int64)
        return Guidance(2, scale=3.0, rescale=1.0).predict(unet, cond[images], torch.tensor(500), labels, sigma=1.0)

    both = guided(slice(None))
    for image in range(2):
        torch.testing.assert_close(both[image : image + 1], guided(slice(image, image + 1)))
        assert both[image].std().item() == pytest.approx(cond[image].std().item(), rel=1e-5)


def test_rescale_at_scale_0_is_the_limit_of_the_formula(tiny_pipeline):
    def sample(scale):
        arguments = {"seeds": [0], "num_inference_steps": 4, "output_type": "pt", "guidance_rescale": 1.0}
        return tiny_pipeline([0], guidance_scale=scale, **arguments).images

    assert (sample(0.0) - sample(1e-6)).abs().max() < 1e-3


class _Contrast(_Ideal):
    """Predicts a ramp, which is twice as steep with a class label as with the null label."""

    def __init__(self):
        super().__init__("epsilon")

    def forward(self, sample, timestep, class_labels):
        ramp = torch.linspace(-1, 1, sample[0].numel()).view(sample[0].shape)
        return type("Output", (), {"sample": ramp * torch.where(class_labels == 2, 1.0, 2.0)[:, None, None, None]})


def test_a_call_that_gives_no_guidance_takes_the_pipelines_own(tmp_path):
    """It is saved with the pipeline, and has no effect on unconditional images."""
    pipeline = CondDDPMPipeline(make_unet(), DDPMScheduler(timestep_spacing="trailing"), guidance_scale=3.0)
    pipeline.guidance_scale = 4.0
    pipeline.save_pretrained(tmp_path)
    loaded = CondDDPMPipeline.from_pretrained(tmp_path)
    by_diffusers = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)

    def sample(pipeline, labels=(0, 1), **arguments):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(labels, seeds=[0, 1], num_inference_steps=3, output_type="pt", **arguments).images

    assert not torch.equal(sample(loaded), sample(loaded, guidance_scale=1.0))
    for other in (loaded, by_diffusers):
        assert other.guidance_scale == 4 and torch.equal(sample(other), sample(pipeline, guidance_scale=4.0))
    none = {"labels": None, "num_images_per_label": 2}
    assert torch.equal(sample(loaded, **none), sample(loaded, **none, guidance_scale=1.0))
    assert CondDDPMPipeline.from_pretrained(tmp_path, guidance_scale=2.0).guidance_scale == 2
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({name: value for name, value in json.loads(index.read_text()).items() if name[0] != "g"}))
    assert CondDDPMPipeline.from_pretrained(tmp_path).guidance_scale == 1  # folders of earlier versions have no such entry


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number"),
        ({"guidance_scale": 2.0, "class_dropout_prob": 0.0}, "null label was never trained"),
    ],
)
def test_guidance_of_its_own_that_no_call_could_have_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        CondDDPMPipeline(make_unet(), DDPMScheduler(), **arguments)


def test_a_model_trained_without_label_drop_refuses_guidance(tmp_path):
    pipeline = CondDDPMPipeline(
        make_unet(), DDPMScheduler(timestep_spacing="trailing"), dict(enumerate(NAMES)), class_dropout_prob=0.0
    )
    pipeline.save_pretrained(tmp_path)
    loaded = CondDDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.class_dropout_prob == 0
    for labels, arguments in (
        ([0], {"guidance_scale": 2.0}),
        ([0], {"guidance_scale": 0.0}),
        (None, {}),
    ):
        with pytest.raises(ValueError, match="null label was never trained"):
            loaded(labels, num_inference_steps=2, **arguments)
    loaded([0], num_inference_steps=2)
    loaded([0], num_inference_steps=2, guidance_scale=2.0, guide=loaded)  # the null label is not used
    with pytest.raises(ValueError, match="no class to guide to"):
        CondDDPMPipeline(make_unet(), DDPMScheduler())(None, guidance_scale=2.0)


@pytest.mark.parametrize(
    "unet, scheduler, words",
    [
        ({"sample_size": 16}, {}, "network of the same sample_size, 8, got 16"),
        ({"in_channels": 1, "out_channels": 1}, {}, "network of the same in_channels, 3, got 1"),
        ({"num_classes": 4}, {}, "network of the same num_classes, 3, got 4"),
        ({}, {"beta_end": 0.01}, "noise schedule and prediction_type"),
        ({}, {"num_train_timesteps": 100}, "noise schedule and prediction_type"),
        ({}, {"prediction_type": "v_prediction"}, "prediction_type of this pipeline (epsilon), got v_prediction"),
    ],
)
def test_guides_that_do_not_fit(tiny_pipeline, unet, scheduler, words):
    guide = CondDDPMPipeline(make_unet(**unet), DDPMScheduler(**scheduler))
    with pytest.raises(ValueError) as error:
        tiny_pipeline([0], guide=guide, guidance_scale=2.0)
    assert words in str(error.value)
    other = CondDDPMPipeline(make_unet(), DDPMScheduler(), {0: "square", 1: "circle", 2: "cross"})
    with pytest.raises(ValueError, match="expected the classes"):
        tiny_pipeline([0], guide=other, guidance_scale=2.0)


# Clipping, damaged weights


def test_the_noise_is_taken_from_the_clipped_image():
    """A network that predicts x_0 = 3 everywhere: clipped to 1, so x_s = alpha_s 1 + sigma_s (x_t - alpha_t 1) / sigma_t."""
    for scheduler in (DDIMScheduler, DPMSolverMultistepScheduler):
        pipeline = _ideal_pipeline("sample")
        pipeline.unet = _Ideal("sample", means=(3.0, 3.0, 3.0))
        settings = {"timestep_spacing": "trailing"} | ({"solver_order": 1} if scheduler is not DDIMScheduler else {})
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
        states = []
        pipeline(
            [0],
            seeds=[0],
            num_inference_steps=2,
            callback_on_step_end=lambda p, index, t, tensors: states.append(tensors["sample"]),  # noqa: B023
        )
        alpha, sigma = (pipeline.scheduler.alphas_cumprod**0.5, (1 - pipeline.scheduler.alphas_cumprod) ** 0.5)
        expected = alpha[499] + sigma[499] * (_noise()[None] - alpha[999]) / sigma[999]
        torch.testing.assert_close(states[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_clipping_leaves_what_is_in_range_alone(prediction_type):
    clipped, free = (
        _pixels(_ideal_pipeline(prediction_type, clip_sample=clip), sampler="dpm++2", num_inference_steps=20)
        for clip in (True, False)
    )
    assert (clipped - free).abs().max() < 1e-4


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite(tiny_pipeline, value):
    tiny_pipeline.unet.conv_out.bias.data.fill_(float(value))
    with pytest.raises(ValueError, match="unet: expected finite predictions, got NaN or infinity at timestep"):
        tiny_pipeline([0], num_inference_steps=2)


# Seeds, batches, intermediates, callbacks


@pytest.mark.end_to_end
def test_an_image_is_a_function_of_its_label_and_seed(tiny_pipeline):
    """Bitwise at the same place of a batch, else to within 1/255, also with samplers that draw noise at each step."""
    labels, seeds = [0, 1, 2, 0, 1, 2, 0, 1], list(range(8))
    for sampler in ("dpm++2", "ddpm", "dpm++sde"):

        def sample(labels, seeds, **arguments):
            arguments = {"sampler": sampler, "num_inference_steps": 10, "output_type": "pt", **arguments}  # noqa: B023
            return tiny_pipeline(labels, seeds=seeds, **arguments).images

        images = sample(labels, seeds)
        assert len(images.unique(dim=0)) == 8
        assert torch.equal(sample(labels, seeds), images)
        assert (sample(labels[::-1], seeds[::-1]).flip(0) - images).abs().max() <= 1 / 255
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        assert torch.equal(sample(labels, None, generator=generators), images)
        for batch_size in (1, 3):
            again = sample(labels, seeds, batch_size=batch_size)
            assert (again - images).abs().max() <= 1 / 255
            others = sample(labels[:4], seeds[:4], batch_size=batch_size)  # batches of the same size with other images in them
            assert torch.equal(others[:3], again[:3])


def test_several_images_of_a_label(tiny_pipeline):
    arguments = {"seeds": range(4), "num_inference_steps": 2, "output_type": "pt"}
    images = tiny_pipeline(["cross", 0], num_images_per_label=2, **arguments).images
    expected = tiny_pipeline([2, 2, 0, 0], **arguments).images
    assert torch.equal(images, expected)
    assert len(tiny_pipeline(num_images_per_label=3, num_inference_steps=2).images) == 3


def test_intermediates(tiny_pipeline):
    """They go from pure noise to the last step, whose predicted x_0 is the image, also for schedulers that scale x_t."""
    for sampler in ("ddim", "euler"):
        arguments = {"seeds": [0, 1], "num_inference_steps": 10, "sampler": sampler, "output_type": "pt"}
        arguments["timestep_spacing"] = "trailing"
        output = tiny_pipeline([0, 1], return_intermediates=4, **arguments)
        assert output.intermediate_timesteps.tolist() == [999, 699, 399, 99]
        assert output.intermediate_samples.shape == output.intermediate_predictions.shape == (4, 2, 3, 8, 8)
        noise = torch.stack([_noise(0), _noise(1)])
        torch.testing.assert_close(output.intermediate_samples[0], noise, rtol=1e-3, atol=1e-3)
        images = (output.intermediate_predictions[-1] / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(images, output.images, rtol=0, atol=1e-4)
        in_batches = tiny_pipeline([0, 1], return_intermediates=4, batch_size=1, **arguments)
        torch.testing.assert_close(in_batches.intermediate_samples, output.intermediate_samples, rtol=0, atol=1e-3)
        assert torch.equal(tiny_pipeline([0, 1], **arguments).images, output.images)
    assert tiny_pipeline([0], num_inference_steps=2, return_dict=False)[0][0].size == (8, 8)
    parts = tiny_pipeline([0], num_inference_steps=4, return_intermediates=3, return_dict=False)
    assert [len(part) for part in parts] == [1, 3, 3, 3]


def test_callback_sees_and_changes_the_sample(tiny_pipeline):
    seen = []

    def watch(pipeline, index, timestep, tensors):
        seen.append((pipeline is tiny_pipeline, index, int(timestep), sorted(tensors)))

    arguments = {"seeds": [0], "num_inference_steps": 2, "output_type": "pt"}
    names = ["sample", "pred_original_sample"]
    plain = tiny_pipeline([0], callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names, **arguments).images
    assert seen == [(True, 0, 999, sorted(names)), (True, 1, 499, sorted(names))]
    assert torch.equal(tiny_pipeline([0], **arguments).images, plain)
    white = tiny_pipeline([0], callback_on_step_end=lambda *_: {"sample": torch.ones(1, 3, 8, 8)}, **arguments).images
    assert white.unique().tolist() == [1.0]


def test_half_precision_weights_do_not_make_the_steps_imprecise(tiny_pipeline):
    """x_t stays in float32: the scheduler receives values with more than the 8 bits of bfloat16."""
    tiny_pipeline.unet = tiny_pipeline.unet.to(torch.bfloat16)
    states = []
    tiny_pipeline([0], num_inference_steps=2, callback_on_step_end=lambda p, i, t, kept: states.append(kept["sample"]))
    assert states[0].dtype == torch.float32 and not torch.equal(states[0], states[0].bfloat16().float())
