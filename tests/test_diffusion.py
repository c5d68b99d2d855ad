"""The training objective by hand: noise schedule, targets, loss weights, label drop, and the randomness of a step."""

import numpy as np
import pytest
import torch
from conftest import make_unet
from diffusers.models.unets.unet_2d import UNet2DOutput

from cond_ddpm.config import TrainConfig
from cond_ddpm.diffusion import (
    StepRandomness,
    diffusion_losses,
    draw_training,
    draw_validation,
    drop_labels,
    loss_weights,
    make_noise_scheduler,
    prediction_target,
)


def test_noise_schedule_is_the_studys():
    """beta rises linearly from 1e-4 to 0.02 in 1000 steps; alphas_cumprod follows its definition (Ho 2020, sec. 2)."""
    scheduler = make_noise_scheduler(TrainConfig())
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(scheduler.betas, betas, rtol=1e-5)
    np.testing.assert_allclose(scheduler.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-4)


def _known():
    scheduler = make_noise_scheduler(TrainConfig())
    scheduler.alphas_cumprod = torch.full((1000,), 0.36)  # alpha 0.6, sigma 0.8, SNR 0.5625
    return scheduler, torch.full((2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), -1.0), torch.tensor([3, 900])


def test_noising_by_hand():
    scheduler, images, noise, timesteps = _known()
    torch.testing.assert_close(scheduler.add_noise(images, noise, timesteps), torch.full_like(images, 0.6 * 0.5 - 0.8))


@pytest.mark.parametrize("name, value", [("epsilon", -1.0), ("sample", 0.5), ("v_prediction", 0.6 * -1.0 - 0.8 * 0.5)])
def test_targets_by_hand(name, value):
    scheduler, images, noise, timesteps = _known()
    scheduler.register_to_config(prediction_type=name)
    torch.testing.assert_close(prediction_target(scheduler, images, noise, timesteps), torch.full_like(images, value))


def test_unknown_prediction_type():
    scheduler, images, noise, timesteps = _known()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="expected 'epsilon', 'sample' or 'v_prediction', got 'score'"):
        prediction_target(scheduler, images, noise, timesteps)


@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("alpha2, in_x", [(0.36, 0.5625), (0.9, 5.0)])  # SNR 0.5625 is kept, SNR 9 cut to 5
def test_min_snr_weights_all_types_alike(name, alpha2, in_x):
    """An error e in x_0 is alpha/sigma e in epsilon and e/sigma in v. Weight times squared error must be the same."""
    scheduler = make_noise_scheduler(TrainConfig(prediction_type=name))
    scheduler.alphas_cumprod = torch.full((1000,), alpha2)
    scale = {"epsilon": alpha2 / (1 - alpha2), "sample": 1, "v_prediction": 1 / (1 - alpha2)}[name]
    weights = loss_weights(scheduler, torch.tensor([7]), min_snr_gamma=5.0)
    torch.testing.assert_close(weights * scale, torch.tensor([in_x]))
    assert loss_weights(scheduler, torch.tensor([7, 8]), None).tolist() == [1, 1]


def test_labels_are_dropped_one_by_one():
    labels, drop = torch.tensor([0, 1, 2, 1]), torch.tensor([False, True, False, True])
    assert drop_labels(labels, drop, null_label=3).tolist() == [0, 3, 2, 3]
    draws = [draw_training(TrainConfig(batch_size=100), step, (1, 2, 2), "cpu").drop_label for step in range(100)]
    shares = torch.stack(draws).float().mean(dim=1)
    assert abs(shares.mean() - 0.1) < 0.01  # 10,000 draws at 0.1: standard deviation 0.003
    assert 0 < shares.min() < shares.max() < 0.5  # never a whole batch
    assert not draw_training(TrainConfig(batch_size=64, class_dropout_prob=0), 0, (1, 2, 2), "cpu").drop_label.any()


def test_a_draw_depends_on_seed_and_step_alone_and_splits_over_processes():
    config = TrainConfig(batch_size=8)
    draw, again = (draw_training(config, 5, (1, 4, 4), "cpu") for _ in range(2))
    assert torch.equal(draw.noise, again.noise) and torch.equal(draw.timesteps, again.timesteps)
    other_step = draw_training(config, 6, (1, 4, 4), "cpu")
    other_seed = draw_training(TrainConfig(batch_size=8, seed=1), 5, (1, 4, 4), "cpu")
    for other in (other_step, other_seed):
        assert not torch.equal(draw.noise, other.noise) and not torch.equal(draw.timesteps, other.timesteps)
    parts = [draw.part(rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat([part.noise for part in parts]), draw.noise)
    assert torch.equal(torch.cat([part.timesteps for part in parts]), draw.timesteps)
    assert np.array_equal(np.concatenate([part.flip for part in parts]), draw.flip)


@pytest.mark.parametrize("name, quartiles", [("uniform", (250, 500, 750)), ("logit_normal", (337.5, 500, 662.5))])
def test_timestep_distributions(name, quartiles):
    """The quartiles of logit-normal are 1000 / (1 + exp(0.6745)) and so on: 0.6745 is the normal's upper quartile."""
    config = TrainConfig(batch_size=20_000, timestep_sampling=name)
    timesteps = draw_training(config, 0, (1, 1, 1), "cpu").timesteps
    assert timesteps.dtype == torch.int64 and timesteps.min() >= 0 and timesteps.max() <= 999
    np.testing.assert_allclose(np.quantile(timesteps, (0.25, 0.5, 0.75)), quartiles, atol=12)


def test_validation_draw_is_fixed_and_even():
    draw, again = draw_validation(500, 1000, (1, 2, 2)), draw_validation(500, 1000, (1, 2, 2))
    assert torch.equal(draw.noise, again.noise) and torch.equal(draw.timesteps, again.timesteps)
    assert draw.timesteps.sort().values.tolist() == list(range(1, 1000, 2))
    assert not draw.drop_label.any() and not draw.flip.any()


def test_loss_by_hand_and_noising_stays_in_float32_under_autocast():
    """The loss of a network that predicts zeros is the mean square of its target. The network must receive float32."""
    scheduler, images, noise, timesteps = _known()
    seen = []

    def zeros(sample, timestep, class_labels):
        seen.append((sample.dtype, class_labels.tolist()))
        return type("Output", (), {"sample": torch.zeros_like(sample, dtype=torch.bfloat16)})

    draw = draw_validation(2, 1000, (1, 4, 4))
    draw = type(draw)(timesteps, noise, torch.tensor([True, False]), draw.flip, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = diffusion_losses(zeros, scheduler, images, torch.tensor([1, 1]), draw, null_label=3)
    torch.testing.assert_close(losses, torch.ones(2))
    assert losses.dtype == torch.float32 and seen == [(torch.float32, [3, 1])]
    draw = type(draw)(torch.tensor([0, 999]), noise, draw.drop_label, draw.flip, 0)
    assert diffusion_losses(
        make_unet(in_channels=1, out_channels=1, sample_size=4), scheduler, images, torch.tensor([1, 1]), draw, 3
    ).shape == (2,)


class _TwoNumbers(torch.nn.Module):
    """Predicts one number for class 0 and another for the null label, 1; without a gradient, `noise` more, as dropout has."""

    def __init__(self, conditional, unconditional, noise=0.0):
        super().__init__()
        self.numbers, self.noise = torch.nn.Parameter(torch.tensor([conditional, unconditional])), noise

    def forward(self, noisy, timesteps, class_labels):
        if not torch.is_grad_enabled():
            return UNet2DOutput((self.numbers + self.noise)[class_labels][:, None, None, None].expand_as(noisy))
        return UNet2DOutput(self.numbers[class_labels][:, None, None, None].expand_as(noisy))


def test_model_guidance_is_least_where_the_prediction_is_a_guided_one():
    """Where u is the unconditional and c the conditional mean of the target, the gradient is 0 at u + s (c - u)."""
    scheduler, images, noise, timesteps = _known()
    target = prediction_target(scheduler, images, noise, timesteps)[0, 0, 0, 0].item()  # the same everywhere: c
    u, scale = 0.3, 3.0
    draw = StepRandomness(timesteps, noise, torch.tensor([False, False]), np.zeros(2, bool), 0)
    labels = torch.tensor([0, 0])

    def gradient(prediction, draw=draw, noise=0.0):
        network = _TwoNumbers(prediction, u, noise)
        diffusion_losses(network, scheduler, images, labels, draw, null_label=1, model_guidance_scale=scale).mean().backward()
        return network.numbers.grad.tolist()

    assert gradient(u + scale * (target - u)) == pytest.approx([0, 0], abs=1e-6)
    assert gradient(u + scale * (target - u) + 0.1)[0] == pytest.approx(2 * 0.1 / scale, rel=1e-4)  # d/dp (p - target)^2
    # An image whose label was dropped trains the unconditional prediction, as without guidance.
    dropped = StepRandomness(timesteps, noise, torch.tensor([True, True]), np.zeros(2, bool), 0)
    assert gradient(5.0, dropped, noise=0.5) == pytest.approx([0, 2 * (u - target)], rel=1e-5)
