"""The classifiers that judge samples: what they are trained on, and that they look at shapes."""

import numpy as np
import pytest
import torch
from conftest import CIFAR10, needs_cifar10

from cond_ddpm import load_images
from cond_ddpm.data import LabelledImages
from cond_ddpm.evaluation.augmentation import blurred, destroyed, shifted, shuffled, varied
from cond_ddpm.evaluation.classifier import NETWORKS, Recipe, classifier_key, get_classifier, trained_network
from cond_ddpm.evaluation.classifier_networks import ConvolutionalClassifier
from cond_ddpm.pretrained_models import pretrained_folder


def _images(count=20, size=16, channels=3):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_shuffling_moves_whole_patches():
    """All pixels are still there, each beside its neighbours within the patch; shuffled into one patch, nothing moves."""
    images = _images()
    moved = shuffled(images)
    assert not torch.equal(moved, images)
    rows = lambda batch: {tuple(row.tolist()) for row in batch[0, 0].unfold(1, 4, 4).reshape(-1, 4)}  # noqa: E731
    assert rows(moved) == rows(images)
    assert torch.equal(shuffled(images, parts=1), images)
    with pytest.raises(ValueError, match="parts: expected a divisor of the size 16x16, got 5"):
        shuffled(images, parts=5)


def test_blur_by_hand():
    """A constant stays; a bright pixel becomes the Gaussian, whose variance is that of the blur."""
    torch.testing.assert_close(blurred(torch.full((1, 1, 8, 8), 0.3), 2.0), torch.full((1, 1, 8, 8), 0.3))
    pixel = torch.zeros(1, 1, 33, 33)
    pixel[0, 0, 16, 16] = 1
    found = blurred(pixel, 2.0)[0, 0]
    offsets = torch.arange(33) - 16.0
    assert (found.sum(0) @ offsets**2).item() == pytest.approx(4, rel=0.1)


def test_a_shift_is_of_an_eighth_at_most():
    images = torch.zeros(200, 1, 16, 16)
    images[:, 0, 8, 8] = 1
    places = shifted(images).flatten(1).argmax(1)
    rows, columns = places // 16, places % 16
    assert set(rows.tolist()) == set(columns.tolist()) == {6, 7, 8, 9, 10}


@pytest.mark.parametrize("size, channels", [(8, 1), (28, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("change", [varied, destroyed])
def test_changed_images_are_images(change, size, channels):
    images = _images(10, size, channels)
    before = images.clone()
    changed = change(images)
    assert changed.shape == images.shape and changed.isfinite().all() and changed.abs().max() <= 1.5
    assert torch.equal(images, before)  # a batch is not changed in place
    assert all((new - old).abs().max() > 0.1 for new, old in zip(changed, images)) or change is varied


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_images_are_destroyed_too(count):
    """A small training split has few images a batch, which do not fill the kinds of destruction."""
    assert destroyed(_images(count)).shape == (count, 3, 16, 16)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size, channels", [(8, 1), (30, 3), (64, 3), (128, 4)])
def test_networks_take_any_size(name, size, channels):
    network = NETWORKS[name](5, (channels, size, size))
    network.prepare(_images(40, size, channels))
    features, logits = network(_images(3, size, channels))
    assert features.shape == (3, 128) and logits.shape == (3, 6)  # five classes and none


@pytest.mark.parametrize("name", NETWORKS)
def test_a_judge_does_not_depend_on_what_was_drawn_before(name):
    """Such as the weights of the other judge, which an evaluation that goes on reads from the cache."""
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
    data = LabelledImages(images, np.arange(12) % 3, ["a", "b", "c"])
    few = Recipe(min_steps=1, min_batch_size=4, max_batch_size=4, epochs=0, min_images_seen=8)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(trained_network(name, data, torch.device("cpu"), few).state_dict())
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


def test_the_first_layer_whitens():
    """Over the images' patches, the filters' outputs are uncorrelated and of variance 1; the second half is the negative."""
    images = blurred(_images(200), 1.0)
    network = ConvolutionalClassifier(5, (3, 16, 16))
    network.prepare(images)
    outputs = torch.nn.functional.conv2d(images, network.whiten.weight, stride=2)[:, :12].transpose(0, 1).flatten(1)
    covariance = torch.cov(outputs)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 0.02
    assert covariance.diagonal().min() > 0.5 and covariance.diagonal().max() < 1.01  # less where the patches vary little
    torch.testing.assert_close(network.whiten.weight[:12], -network.whiten.weight[12:])


@pytest.fixture(scope="module")
def cifar10():
    return load_images(str(CIFAR10), "train", 32), load_images(str(CIFAR10), "test", 32)


@needs_cifar10
@pytest.mark.end_to_end
@pytest.mark.parametrize("name", NETWORKS)
def test_the_shipped_judges_of_cifar10_look_at_shapes(cifar10, name, tmp_path):
    """Real test images keep their class when they are slightly blurred, and lose it when their parts are shuffled.

    A classifier that was trained on whole images alone still named 28% of the shuffled ones (docs/LOG.md).
    """
    train, test = cifar10
    file = pretrained_folder() / "judges" / f"classifier-{name}-{classifier_key(train, test)}.safetensors"
    assert file.is_file()
    judge = get_classifier(name, train, test, tmp_path)
    assert not list(tmp_path.iterdir())  # none was trained
    images = torch.from_numpy(test.images[:1000].copy()).float() / 127.5 - 1
    labels = torch.from_numpy(test.labels[:1000].astype(np.int64))

    def accuracy(changed):
        with torch.no_grad():
            return (judge.network(changed)[1].argmax(1) == labels).float().mean().item()

    torch.manual_seed(0)
    whole, parts = accuracy(images), accuracy(shuffled(images))
    assert abs(whole - judge.accuracy) < 0.04 and abs(parts - judge.shuffled_accuracy) < 0.04
    assert parts < 0.15 and accuracy(shuffled(images, parts=8)) < 0.15
    assert accuracy(blurred(images, 1.0)) > 0.8 * whole
    assert accuracy(blurred(images, 4.0)) < 0.3
