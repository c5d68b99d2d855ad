"""Distances between sets of features: known answers, identities, and an independent implementation in numpy and scipy."""

import numpy as np
import pytest
import torch

from cond_ddpm.data import nearest_images
from cond_ddpm.evaluation.copies import nearest_training_images
from cond_ddpm.evaluation.metrics import (
    extrapolated_distance,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)
from cond_ddpm.evaluation.statistics import Moments


def _moments(features, batch=100):
    moments = Moments(features.shape[1])
    for part in torch.as_tensor(features).split(batch):
        moments.update(part)
    return moments


def _features(count=1000, dim=16, seed=0, shift=0.0, scale=1.0):
    """Correlated, skewed numbers."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((dim, dim)) / dim**0.5
    return np.maximum(rng.standard_normal((count, dim)) @ mix * scale + shift, -0.5)


def test_moments_are_those_of_all_features_at_once_and_add_up():
    features = _features()
    for moments in (_moments(features, 64), _moments(features[:300]) + _moments(features[300:])):
        mean, covariance = moments.mean_and_covariance()
        np.testing.assert_allclose(mean, features.mean(0), atol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(features.T), atol=1e-12)
    with pytest.raises(ValueError, match="two or more images, got 1"):
        _moments(features[:1]).mean_and_covariance()


def test_frechet_distance_agrees_with_scipy():
    import scipy.linalg

    one, other = _features(seed=1), _features(seed=2, shift=0.3, scale=1.5)
    product = scipy.linalg.sqrtm(np.cov(one.T) @ np.cov(other.T)).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(np.cov(one.T) + np.cov(other.T) - 2 * product)
    assert frechet_distance(_moments(one), _moments(other)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_gaussians_in_one_dimension():
    """(m - m')^2 + (s - s')^2."""
    one, other = _moments(np.array([[-1.0], [1.0]]) * 3 + 5), _moments(np.array([[-1.0], [1.0]]) * 1)
    s = 2**0.5
    assert frechet_distance(one, other) == pytest.approx(25 + (3 * s - s) ** 2)


@pytest.mark.parametrize("count", [1000, 5])
def test_frechet_distance_to_itself_is_zero(count):
    """Also with a singular covariance."""
    moments = _moments(_features(count, dim=64))
    assert frechet_distance(moments, moments) < 1e-6


def test_extrapolation_removes_the_bias():
    """The distance of a distribution to itself is 0, but that of 1,000 samples is not; extrapolation corrects it."""
    reference = _moments(np.random.default_rng(0).standard_normal((200_000, 32)))
    groups = [_moments(np.random.default_rng(seed).standard_normal((200, 32))) for seed in range(1, 6)]
    of_all = frechet_distance(sum(groups[1:], groups[0]), reference)
    assert of_all > 0.2 and abs(extrapolated_distance(groups, reference)) < of_all / 5
    with pytest.raises(ValueError, match="two or more, got 1"):
        extrapolated_distance(groups[:1], reference)


def test_kernel_distance_is_the_unbiased_estimate():
    x, y = _features(40, seed=1), _features(40, seed=2, shift=0.5)
    kernel = lambda a, b: (a @ b / 16 + 1) ** 3  # noqa: E731
    xx, yy, xy = (np.array([[kernel(a, b) for b in right] for a in left]) for left, right in ((x, x), (y, y), (x, y)))
    off = ~np.eye(40, dtype=bool)
    expected = xx[off].mean() + yy[off].mean() - 2 * xy.mean()
    value, error = kernel_distance(torch.tensor(x), torch.tensor(y))
    assert value == pytest.approx(expected, rel=1e-9) and np.isnan(error)
    halves = [kernel_distance(torch.tensor(x[part]), torch.tensor(y[part]))[0] for part in (slice(0, 20), slice(20, 40))]
    value, error = kernel_distance(torch.tensor(x), torch.tensor(y), block=20)
    assert value == pytest.approx(np.mean(halves)) and error == pytest.approx(abs(halves[0] - halves[1]) / 2)
    some = x[:15]
    within = xx[:15, :15][~np.eye(15, dtype=bool)].mean() + yy[off].mean()
    assert kernel_distance(torch.tensor(some), torch.tensor(y))[0] == pytest.approx(within - 2 * xy[:15].mean(), rel=1e-9)
    same, error = kernel_distance(*(torch.tensor(_features(10_000, seed=seed)) for seed in (3, 4)))
    assert abs(same) < 4 * error


def test_precision_and_recall():
    """Samples of one of two classes have full precision, but half the recall; other samples have neither."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((500, 4)) + shift for shift in (-20, 20))
    real = torch.tensor(np.concatenate([left, right]))
    fake = torch.tensor(rng.standard_normal((500, 4)) - 20)
    precision, recall = precision_and_recall(fake, real)
    assert precision > 0.8 and 0.4 < recall < 0.5
    assert precision_and_recall(real, real) == (1.0, 1.0)
    assert precision_and_recall(fake + 100, real) == (0.0, 0.0)


def test_precision_and_recall_agree_with_numpy():
    """Sparse points, many of which are not covered, so that the third neighbour differs from the second and fourth."""
    real, fake = (_features(60, dim=3, seed=seed) for seed in (1, 2))

    def covered(points, manifold):
        within = np.linalg.norm(manifold[:, None] - manifold[None], axis=2)
        radii = np.sort(within, axis=1)[:, 3]
        return (np.linalg.norm(points[:, None] - manifold[None], axis=2) <= radii).any(axis=1).mean()

    found = precision_and_recall(torch.tensor(fake), torch.tensor(real))
    assert found == pytest.approx((covered(fake, real), covered(real, fake)), abs=1e-6)
    assert 0.2 < found[0] < 0.98


def test_inception_score_is_the_number_of_classes_predicted_with_certainty():
    sure = torch.eye(4, dtype=torch.float64)
    assert inception_score(sure.sum(0), 0.0, 4) == pytest.approx(4)
    assert inception_score(sure[:2].sum(0), 0.0, 2) == pytest.approx(2)
    unsure = torch.full((4,), 0.25, dtype=torch.float64)
    assert inception_score(unsure * 4, 4 * (unsure * unsure.log()).sum().item(), 4) == pytest.approx(1)


def test_nearest_finds_the_image_itself_mirrored_or_not():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (6000, 3, 4, 4), dtype=np.uint8)
    samples = np.stack([training[5500], training[7][..., ::-1], np.clip(training[3].astype(int) + 1, 0, 255)]).astype(np.uint8)
    rows, mirrored, distances = nearest_images(samples, training, 3)
    assert rows[:, 0].tolist() == [5500, 7, 3] and mirrored[:, 0].tolist() == [False, True, False]
    assert distances[0, 0] < 0.05 and 0.9 < distances[2, 0] <= 1.001 and (np.diff(distances, axis=1) >= 0).all()
    both = np.concatenate([training, training[..., ::-1]]).astype(float).reshape(-1, 48)
    exact = np.sort(np.sqrt(((both - samples[0].reshape(48)) ** 2).mean(axis=1)))[:3]
    np.testing.assert_allclose(distances[0], exact, atol=0.05)
    symmetric = np.zeros((2, 1, 4, 4), np.uint8)
    symmetric[1] += 9
    assert nearest_images(symmetric[:1], symmetric, 2)[0].tolist() == [[0, 1]]  # not itself twice
    found = nearest_training_images(samples, training)  # in blocks
    assert found.rows[:, :3].tolist() == rows.tolist() and found.mirrored[:, :3].tolist() == mirrored.tolist()
    np.testing.assert_array_equal(found.distances[:, :3], distances)
    assert nearest_training_images(samples, training[:2]).rows.shape == (3, 2)  # as many as there are
