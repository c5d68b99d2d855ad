"""Averages of the weights: the profile of the paper, and any width afterwards."""

import numpy as np
import pytest
import torch

from cond_ddpm.ema import PowerEMA, combine_snapshots, save_snapshot, std_to_gamma


@pytest.mark.parametrize("std, gamma", [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(std, gamma):
    """EDM2, sec. 3.1 gives these two."""
    assert std_to_gamma(std) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("std", [0.02, 0.1, 0.25])
def test_profile_has_the_width_asked_for(std):
    gamma = std_to_gamma(std)
    tau = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = (gamma + 1) * tau**gamma / len(tau)
    mean = (density * tau).sum()
    assert density.sum() == pytest.approx(1, abs=1e-6)
    assert np.sqrt((density * (tau - mean) ** 2).sum()) == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("std", [0, -0.1, 0.3])
def test_widths_that_no_profile_has(std):
    with pytest.raises(ValueError, match=r"std: expected a share of the run between 0 and 0.288"):
        std_to_gamma(std)


def _trajectory(steps):
    """Two parameters that wander: what an average of them should be is known from the average's own definition."""
    t = torch.arange(1, steps + 1) / steps
    return torch.stack([torch.sin(9 * t) + t, torch.exp(-5 * t)], dim=1)


def _run(folder, stds, steps=400, every=20):
    parameter = torch.nn.Parameter(torch.zeros(2))
    ema = PowerEMA([parameter], stds)
    for step, value in enumerate(_trajectory(steps), start=1):
        parameter.data = value.clone()
        ema.update([parameter], step)
        if folder is not None and step % every == 0:
            save_snapshot(ema, ["w"], folder, step)
    return ema


def test_the_average_is_the_profile_weighted_mean():
    """p(tau) summed over the steps, each step's share being the profile's integral over it."""
    ema = _run(None, [0.1])
    gamma, steps = std_to_gamma(0.1), 400
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    # A discrete average keeps (1 - 1/t)^(gamma+1) at each step, which is the ratio of these edges.
    expected = (np.diff(edges)[:, None] * _trajectory(steps).numpy()).sum(axis=0)
    np.testing.assert_allclose(ema.averages[0.1][0], expected, rtol=1e-4)


def test_after_one_step_the_average_is_the_weights():
    parameter = torch.nn.Parameter(torch.ones(2))
    ema = PowerEMA([parameter], [0.05])
    parameter.data = torch.tensor([3.0, 4.0])
    ema.update([parameter], 1)
    assert ema.averages[0.05][0].tolist() == [3, 4]


def test_any_width_is_made_of_two_afterwards(tmp_path):
    _run(tmp_path / "ema", [0.05, 0.1])
    for std in (0.05, 0.07, 0.1, 0.15, 0.2):
        weights, rest = combine_snapshots(tmp_path / "ema", std)
        expected = _run(None, [std]).averages[std][0]
        assert rest < (0.01 if std <= 0.15 else 0.02)  # wider than both that were kept is harder
        np.testing.assert_allclose(weights["w"], expected, atol=2e-3)  # snapshots are in half precision
    earlier, _ = combine_snapshots(tmp_path / "ema", 0.1, step=200)
    expected = PowerEMA([torch.nn.Parameter(torch.zeros(2))], [0.1])
    for step, value in enumerate(_trajectory(400)[:200], start=1):
        expected.update([value], step)
    np.testing.assert_allclose(earlier["w"], expected.averages[0.1][0], atol=2e-3)


def test_a_width_that_the_snapshots_cannot_express_is_reported(tmp_path):
    _run(tmp_path / "ema", [0.1], every=200)
    assert combine_snapshots(tmp_path / "ema", 0.01)[1] > 0.3


def test_snapshots_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="found none; train with --num_ema_snapshots"):
        combine_snapshots(tmp_path, 0.1)
    _run(tmp_path, [0.1], steps=40)
    with pytest.raises(ValueError, match="expected one of the snapshots 20, 40, got 30"):
        combine_snapshots(tmp_path, 0.1, step=30)


@pytest.mark.hostile(22)
@pytest.mark.parametrize("damage", [b"junk", b"", None])
def test_a_snapshot_that_cannot_be_read_is_named(tmp_path, damage):
    _run(tmp_path, [0.1], steps=40)
    broken = tmp_path / "step-00000040.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1] if damage is None else damage)
    with pytest.raises(ValueError, match=r"step-00000040.safetensors: expected a snapshot .* move it away"):
        combine_snapshots(tmp_path, 0.1)
    broken.rename(tmp_path / "step-broken.safetensors")
    combine_snapshots(tmp_path, 0.1)


@pytest.mark.hostile(9)
def test_step_0_is_not_the_last(tmp_path):
    _run(tmp_path, [0.1], steps=40)
    with pytest.raises(ValueError, match="expected one of the snapshots 20, 40, got 0"):
        combine_snapshots(tmp_path, 0.1, step=0)
