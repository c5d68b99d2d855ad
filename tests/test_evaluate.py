"""Evaluation of samples of known quality: real images, and real images damaged in known ways."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import NAMES, ROOT, make_unet, one_thread_each, shapes, write_parquet
from PIL import Image

from cond_ddpm import CondDDPMPipeline, install_hint, load_images
from cond_ddpm.cli import main
from cond_ddpm.config.evaluation import EvaluationConfig
from cond_ddpm.evaluation import evaluate as module
from cond_ddpm.evaluation import report
from cond_ddpm.evaluation.evaluate import evaluate
from cond_ddpm.evaluation.report import summary

SIZE = 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """600 training and 450 test pictures of circles, squares and crosses."""
    folder = tmp_path_factory.mktemp("shapes16")
    for split, count, seed in (("train", 600, 0), ("test", 450, 1)):
        images, labels = shapes(count, SIZE, seed)
        noise = np.random.default_rng(seed).integers(-20, 20, images.shape)
        write_parquet(folder, np.clip(images + noise, 0, 255).astype(np.uint8), labels).joinpath("train.parquet").rename(
            folder / f"{split}.parquet.new"
        )
    for file in folder.glob("*.new"):
        file.rename(file.with_suffix(""))
    return folder


@pytest.fixture(scope="module")
def measured(dataset, tmp_path_factory):
    """Results of given images, (N, H, W, C) with labels, by the classifier that is trained once."""
    folder = tmp_path_factory.mktemp("given")

    def measure(images, labels, **settings):
        np.savez(folder / "given.npz", images=images, class_labels=labels)
        protocol = EvaluationConfig(dataset=str(dataset), **{"resolution": SIZE, **settings})
        return evaluate(protocol, folder / "results.json", samples=folder / "given.npz", progress=False)

    return measure


@pytest.fixture(scope="module")
def real(dataset):
    """The test split, as (N, H, W, C) and labels."""
    data = load_images(str(dataset), "test", SIZE)
    return data.images.transpose(0, 2, 3, 1).copy(), data.labels.copy()


def _distance(results):
    return results["samples"]["frechet_distance"]


@pytest.mark.end_to_end
def test_real_images_against_themselves_and_the_limit(dataset, measured, real):
    train = load_images(str(dataset), "train", SIZE)
    results = measured(train.images.transpose(0, 2, 3, 1), train.labels)
    assert _distance(results) < 1e-6
    assert results["samples"]["nearest_training_distance"] < 0.01
    assert (results["samples"]["precision"], results["samples"]["recall"]) == (1.0, 1.0)
    limit = results["held_out_real"]
    assert limit["label_accuracy"] == pytest.approx(results["protocol"]["feature_extractor"]["held_out_accuracy"])
    assert limit["label_accuracy"] > 0.95
    assert limit.pop("frechet_distance_between_halves") > 0
    assert measured(*real)["samples"] == limit  # the held-out images as samples have the same metrics
    assert limit["frechet_distance"] > 1e-4 and limit["nearest_training_distance"] > 5


def _noised(images, level):
    noise = np.random.default_rng(0).normal(0, level, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def _blurred(images, times):
    blurred = images.astype(float)
    for _ in range(times):
        blurred = sum(np.roll(blurred, shift, axis) for axis in (1, 2) for shift in (-1, 0, 1)) / 6
    return blurred.astype(np.uint8)


@pytest.mark.parametrize("damage, levels", [(_noised, (15, 40, 80)), (_blurred, (1, 2, 4))])
@pytest.mark.end_to_end
def test_more_damage_is_a_larger_distance(measured, real, damage, levels):
    images, labels = real
    distances = [_distance(measured(images, labels))] + [
        _distance(measured(damage(images, level), labels)) for level in levels
    ]
    assert distances == sorted(distances) and distances[-1] > 5 * distances[0], distances


@pytest.mark.end_to_end
def test_a_damaged_class_is_named(measured, real):
    """Squares are blurred, or labelled as crosses: the metrics of these classes change, and those of the others do not."""
    images, labels = real
    before = measured(images, labels)["samples"]["classes"]
    damaged = images.copy()
    damaged[labels == 1] = _blurred(images[labels == 1], 4)
    after = measured(damaged, labels)["samples"]["classes"]
    growth = {name: after[name]["frechet_distance"] / before[name]["frechet_distance"] for name in NAMES}
    assert max(growth, key=growth.get) == "square" and growth["square"] > 3
    assert growth["circle"] == pytest.approx(1) and growth["cross"] == pytest.approx(1)

    swapped = labels.copy()
    swapped[labels == 2] = 1
    swapped[labels == 1] = 2
    results = measured(images, swapped)["samples"]
    assert results["classes"]["circle"]["accuracy"] > 0.95 and results["classes"]["square"]["accuracy"] < 0.05
    assert results["label_accuracy"] == pytest.approx(1 / 3, abs=0.03)
    assert results["frechet_distance"] == pytest.approx(_distance(measured(images, labels)), rel=1e-6)  # ignores labels


@pytest.mark.end_to_end
def test_a_missing_class_and_duplicates(measured, real):
    images, labels = real
    whole = measured(images, labels)["samples"]
    without = measured(images[labels != 0], labels[labels != 0])["samples"]
    assert without["frechet_distance"] > 5 * whole["frechet_distance"] and without["recall"] < whole["recall"] - 0.2
    assert without["classes"]["circle"]["num_images"] == 0
    few = np.arange(12).repeat(len(images) // 12)
    repeated = measured(images[few], labels[few])["samples"]
    assert repeated["frechet_distance"] > whole["frechet_distance"] and repeated["recall"] < whole["recall"]


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import DDPMScheduler

    pipeline = CondDDPMPipeline(make_unet(sample_size=SIZE), DDPMScheduler(), dict(enumerate(NAMES)))
    pipeline.scheduler = pipeline.make_scheduler("dpm++2")
    return pipeline


def _evaluated(pipeline, dataset, folder, **settings):
    protocol = EvaluationConfig(dataset=str(dataset), **{"num_samples": 30, **settings})
    arguments = {"num_inference_steps": 2, "guidance_scale": 1.5, "batch_size": 4}
    return evaluate(protocol, folder / "results.json", "model", pipeline, progress=False, **arguments)


@pytest.mark.end_to_end
def test_a_pipeline_is_measured_and_everything_is_recorded(pipeline, dataset, tmp_path, monkeypatch):
    searches, search = [], module.nearest_training_images
    monkeypatch.setattr(module, "nearest_training_images", lambda *given: searches.append(1) or search(*given))
    results = _evaluated(pipeline, dataset, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    record = results["protocol"]
    assert record["scheduler"] == "DPMSolverMultistepScheduler" and record["num_inference_steps"] == 2
    assert record["scheduler_config"]["beta_end"] == 0.02 and record["timestep_spacing"] is None
    assert record["guidance_scale"] == 1.5 and record["seeds"] == [0, 29] and record["split"] == "train"
    assert record["feature_extractor"]["checksum"] and record["weights_checksum"] and record["commit"]
    assert results["samples"]["num_images"] == 30 and results["held_out_real"]["num_images"] == 30
    assert results["held_out_real"]["frechet_distance_between_halves"] > 0
    assert [row["num_images"] for row in results["samples"]["classes"].values()] == [10, 10, 10]
    assert any("biased upward" in warning for warning in results["warnings"])
    assert any("singular" in warning for warning in results["warnings"])
    pictures = {f"results-{name}.png" for name in ("confusion", "copies", "neighbours")}
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", *pictures}
    assert len(searches) == 2  # of samples and of held-out images; it is not repeated for the copies
    assert "warning: 30 samples" in summary(results) and "label accuracy" in summary(results)


@pytest.mark.end_to_end
def test_the_guidance_recorded_is_the_pipelines_own_where_none_is_given(pipeline, dataset, tmp_path):
    pipeline = CondDDPMPipeline(pipeline.unet, pipeline.scheduler, pipeline.id2label, guidance_scale=3.0)
    arguments = {"num_inference_steps": 2, "guidance_scale": None}
    protocol = EvaluationConfig(dataset=str(dataset), num_samples=12)
    own = evaluate(protocol, tmp_path / "own.json", "model", pipeline, progress=False, **arguments)
    given = evaluate(protocol, tmp_path / "x.json", "model", pipeline, progress=False, **arguments | {"guidance_scale": 3.0})
    assert own["protocol"]["guidance_scale"] == 3 and own["protocol"] == given["protocol"]
    assert own["samples"] == given["samples"]


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_classifier")
def test_a_judge_that_is_not_trusted_gives_no_figures(pipeline, dataset, tmp_path, monkeypatch):
    """The distances stay; what rests on the judges' opinions is null, and the summary and the card say why."""
    from cond_ddpm.hub import model_card

    monkeypatch.setattr(module, "why_not_trusted", lambda judges, classes: f"{len(judges)} judges know nothing")
    (tmp_path / "results-confusion.png").write_bytes(b"of earlier")
    pipeline = CondDDPMPipeline(pipeline.unet, pipeline.scheduler, pipeline.id2label)
    pipeline.companions = {"results.json": b'{"guidance": {"chosen": 2.0}}'}
    results = _evaluated(pipeline, dataset, tmp_path, repeats=2)
    for part in (results["samples"], results["held_out_real"]):
        assert part["label_accuracy"] is None and part["label_accuracies"] is None and part["frechet_distance"] > 0
        assert {row["accuracy"] for row in part["classes"].values()} == {None}
        assert {row["frechet_distance"] for row in part["classes"].values()} == {None}
    assert results["protocol"]["judges_not_trusted"] == "2 judges know nothing"
    assert not (tmp_path / "results-confusion.png").exists()
    assert "figures of the classes are left out: 2 judges know nothing; with more real images" in summary(results)
    assert results.pop("guidance") == {"chosen": 2.0}  # how the default was chosen is kept
    assert "left out: 2 judges know nothing" in model_card(pipeline, results, set(), "me/shapes")


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_classifier")
def test_usefulness_is_measured_of_the_first_samples(pipeline, dataset, tmp_path, monkeypatch):
    seen = []
    shares = dict.fromkeys(("samples", "real", "both"), 0.5)
    found = {"accuracy": shares, "accuracy_std": shares, "num_held_out": 450, "num_images": 20, "steps": 1, "seeds": 3}
    monkeypatch.setattr(module, "measure_usefulness", lambda *given: seen.append(given) or found)
    results = _evaluated(pipeline, dataset, tmp_path, usefulness=True, usefulness_images=20)
    samples, real, held_out, _ = seen[0]
    assert len(samples) == 20 and samples.labels.tolist() == [row % 3 for row in range(20)] and samples.images.any()
    assert len(real) == 600 and len(held_out) == 450 and results["protocol"]["usefulness"]
    assert results["usefulness"]["held_out_may_be_trained_on"] is False  # they are a split of their own


@pytest.mark.end_to_end
def test_repeats_have_other_seeds(pipeline, dataset, tmp_path):
    both = _evaluated(pipeline, dataset, tmp_path, repeats=2)
    one, two = (_evaluated(pipeline, dataset, tmp_path, seed=seed) for seed in (0, 30))
    values = [results["samples"]["frechet_distance"] for results in (one, two)]
    assert values[0] != values[1]
    assert both["samples"]["frechet_distance"] == pytest.approx(np.mean(values))
    assert both["samples_std"]["frechet_distance"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.end_to_end
def test_an_interrupted_evaluation_goes_on(pipeline, dataset, tmp_path, monkeypatch):
    whole = _evaluated(pipeline, dataset, tmp_path)
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0)
    sampled, original = [], module.sample_batches

    def interrupted(*arguments, **named):
        for number, (rows, images) in enumerate(original(*arguments, **named)):
            if number == 3 and not sampled:
                sampled.append(number)
                raise KeyboardInterrupt
            yield rows, images

    monkeypatch.setattr(module, "sample_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _evaluated(pipeline, dataset, tmp_path)
    made = []
    monkeypatch.setattr(
        module,
        "sample_batches",
        lambda p, labels, *rest, **named: made.append(named["skip"]) or original(p, labels, *rest, **named),
    )
    again = _evaluated(pipeline, dataset, tmp_path)
    assert made == [3]  # three batches had been finished
    assert again["samples"]["frechet_distance"] == pytest.approx(whole["samples"]["frechet_distance"], rel=1e-6)
    assert again["samples"]["classes"] == whole["samples"]["classes"]
    assert [again["samples"][name] for name in ("num_images", "subset", "label_accuracy")] == [
        whole["samples"][name] for name in ("num_images", "subset", "label_accuracy")
    ]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.end_to_end
def test_a_later_repeat_interrupted_does_not_lose_the_first(pipeline, dataset, tmp_path, monkeypatch):
    seen, original = [], module.sample_batches

    def watched(pipeline, labels, seeds, **named):
        seen.append((seeds[0], named["skip"]))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(pipeline, labels, seeds, **named)

    monkeypatch.setattr(module, "sample_batches", watched)
    with pytest.raises(KeyboardInterrupt):
        _evaluated(pipeline, dataset, tmp_path, repeats=2)
    _evaluated(pipeline, dataset, tmp_path, repeats=2)
    assert seen == [(0, 0), (30, 0), (0, 8), (30, 0)]  # all eight batches of the first are skipped
    assert not list(tmp_path.glob(".*"))


def test_the_extrapolated_distance_of_ten_classes(tmp_path_factory):
    """Although labels take turns, each part from which is extrapolated must have images of all classes."""
    from cond_ddpm.evaluation.extractors import Extractor
    from cond_ddpm.evaluation.metrics import compute_metrics
    from cond_ddpm.evaluation.statistics import Tally

    def extract(images):  # eight numbers around the mean of their class
        noise = torch.from_numpy(images[:, 0, :2].reshape(len(images), 8).astype(np.float32)) / 64
        return noise + torch.from_numpy(images[:, 1, :1, :1].reshape(-1, 1).astype(np.float32)), None

    def tally(count, seed):
        found = Tally(Extractor("x", extract, 8, (), {}), 10, 100, (2, 4, 4))
        labels = np.arange(count) % 10
        images = np.random.default_rng(seed).integers(0, 256, (count, 2, 4, 4), dtype=np.uint8)
        images[:, 1, 0, 0] = labels
        found.update(range(count), images, labels)
        return found

    reference, samples = tally(20_000, 0), tally(600, 1)
    distances = np.ones((600, 1))
    found = compute_metrics(samples, reference, [str(label) for label in range(10)], distances)
    assert abs(found["frechet_distance_infinite"]) < found["frechet_distance"] / 2


def test_the_stricter_judge_is_quoted():
    """Of four images, the first judge names three as their class and one as none, the second one and two."""
    from cond_ddpm.evaluation.extractors import Extractor
    from cond_ddpm.evaluation.metrics import compute_metrics
    from cond_ddpm.evaluation.statistics import Tally

    named = torch.tensor([[0, 1, 0, 2], [0, 0, 2, 2]])  # judge, image; class 2 is none
    extractor = Extractor("x", lambda images: (torch.rand(4, 3), torch.eye(3)[named]), 3, ("one", "other"), {})
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 2, 2), dtype=np.uint8)
    tally = Tally(extractor, 2, 4, (1, 2, 2))
    tally.update(range(4), images, [0, 1, 0, 1])
    found = compute_metrics(tally, tally, ["a", "b"], np.array([[1.0], [5.0], [2.0], [4.0]]))
    assert found["nearest_training_distance"] == 3
    assert found["label_accuracies"] == {"one": 0.75, "other": 0.25} and found["label_accuracy"] == 0.25
    assert found["recognised_as_no_class"] == 0.5
    assert [row["accuracy"] for row in found["classes"].values()] == [0.5, 0]


@pytest.mark.end_to_end
def test_mixed_precision_of_sampling_does_not_affect_the_classifier(pipeline, dataset, tmp_path):
    """bf16 changes the samples, but not the metrics of real images."""
    protocol, both = EvaluationConfig(dataset=str(dataset), num_samples=30), []
    for precision in ("no", "bf16"):
        arguments = {"num_inference_steps": 2, "mixed_precision": precision}
        both.append(evaluate(protocol, tmp_path / "r.json", "m", pipeline, progress=False, **arguments))
    assert both[0]["held_out_real"] == both[1]["held_out_real"]
    assert both[0]["samples"]["frechet_distance"] != both[1]["samples"]["frechet_distance"]
    assert both[1]["protocol"]["mixed_precision"] == "bf16"


@pytest.mark.end_to_end
def test_a_compiled_network_is_recorded(pipeline, dataset, tmp_path):
    # A pipeline of its own, since the other tests share theirs.
    pipeline = CondDDPMPipeline(make_unet(sample_size=SIZE), pipeline.scheduler, pipeline.id2label)
    assert _evaluated(pipeline, dataset, tmp_path / "plain")["protocol"]["compiled"] is False
    pipeline.unet.compile(backend="eager")  # like `--fast`, but with a backend that starts quickly
    assert _evaluated(pipeline, dataset, tmp_path / "compiled")["protocol"]["compiled"] is True


@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.end_to_end
def test_without_a_test_split_a_tenth_is_held_out_and_this_is_reported(pipeline, dataset, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.parquet").write_bytes((dataset / "train.parquet").read_bytes())
    results = _evaluated(pipeline, tmp_path / "data", tmp_path)
    assert results["protocol"]["split_images"] == 540 and "a tenth of train" in results["protocol"]["test_split"]
    assert any("no split 'test'" in warning for warning in results["warnings"])
    with pytest.raises(ValueError, match="valid"):
        _evaluated(pipeline, tmp_path / "data", tmp_path, test_split="valid")


def test_what_is_kept_does_not_grow_with_the_number_of_images(pipeline, dataset):
    from cond_ddpm.evaluation.extractors import Extractor
    from cond_ddpm.evaluation.statistics import Tally

    extract = lambda images: (torch.ones(len(images), 4), torch.zeros(2, len(images), 4))  # noqa: E731
    extractor = Extractor("x", extract, 4, ("one", "other"), {})
    tally = Tally(extractor, 3, subset=50, image_shape=(1, 2, 2))
    sizes = []
    for start in range(0, 5000, 1000):
        tally.update(range(start, start + 1000), np.zeros((1000, 1, 2, 2), np.uint8), [0] * 1000)
        sizes.append(sum(tensor.numel() for tensor in tally.tensors().values()))
    assert len(set(sizes)) == 1 and int(tally.all.count) == 5000


@pytest.mark.end_to_end
def test_two_processes_give_the_same_metrics(pipeline, dataset, tmp_path, capsys):
    """From the command line, in this process and started by torchrun; the classifier comes from the cache."""
    import datasets

    pipeline.save_pretrained(tmp_path / "model")
    flags = ["--model", tmp_path / "model", "--dataset", dataset, "--num_samples", "300", "--batch_size", "10"]
    flags = ["evaluate", *map(str, flags), "--num_inference_steps", "2", "--output"]
    assert main([*flags, str(tmp_path / "1.json")]) == 0
    assert capsys.readouterr().out.count("1.json") == 1
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "cond_ddpm.cli"]
    command = [*launch, *flags, str(tmp_path / "2.json")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, preexec_fn=one_thread_each(2))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2.json") == 1
    results = {processes: json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2)}
    one, two = results[1]["samples"], results[2]["samples"]
    assert one["num_images"] == two["num_images"] == 300 and one["subset"] == two["subset"]
    assert [row["num_images"] for row in two["classes"].values()] == [100] * 3
    one, two = ({name: _figures(found[name]) for name in ("samples", "held_out_real", "copies")} for found in results.values())
    for name, figures in one.items():
        assert len(figures) > 5 and two[name] == pytest.approx(figures, rel=1e-6), name


def _figures(part, name=""):
    """Each number in a part of results.json, by the names that lead to it."""
    if isinstance(part, (dict, list)):
        inner = part.items() if isinstance(part, dict) else enumerate(part)
        return {where: number for key, value in inner for where, number in _figures(value, f"{name}.{key}").items()}
    return {name: part} if isinstance(part, (int, float)) else {}


@pytest.mark.end_to_end
def test_samples_kept_are_the_samples_measured(pipeline, dataset, tmp_path):
    plain = _evaluated(pipeline, dataset, tmp_path)
    protocol = EvaluationConfig(dataset=str(dataset), num_samples=30)
    for name in ("kept.npz", "kept"):
        arguments = {"num_inference_steps": 2, "guidance_scale": 1.5, "batch_size": 4}
        results = evaluate(protocol, tmp_path / "r.json", "model", pipeline, keep=tmp_path / name, progress=False, **arguments)
        assert results["samples"]["frechet_distance"] == pytest.approx(plain["samples"]["frechet_distance"], rel=1e-6)
        as_given = EvaluationConfig(dataset=str(dataset), resolution=SIZE)
        given = evaluate(as_given, tmp_path / "r.json", samples=tmp_path / name, progress=False)
        assert given["samples"]["frechet_distance"] == pytest.approx(plain["samples"]["frechet_distance"], rel=1e-6)
        assert given["samples"]["label_accuracy"] == plain["samples"]["label_accuracy"]


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"images": np.zeros((9, 8, 8, 3), np.uint8), "class_labels": np.zeros(9, int)}, "expected images of 3x16x16"),
        ({"images": np.zeros((9, 16, 16, 3), np.float32), "class_labels": np.zeros(9, int)}, "type uint8, 0 to 255, got"),
        ({"images": np.zeros((9, 16, 16, 3), np.uint8)}, "expected a class for each image"),
        ({"images": np.zeros((9, 16, 16, 3), np.uint8), "class_labels": np.zeros(8, int)}, "for each of 9 images, got (8,)"),
        ({"images": np.zeros((9, 16, 16, 3), np.uint8), "class_labels": np.full(9, 0.7)}, "a whole number as class label"),
        ({"images": np.zeros((9, 16, 16, 3), np.uint8), "class_labels": np.full(9, 3)}, "labels from 0 to 2, got 3 to 3"),
        ({"images": np.zeros((1, 16, 16, 3), np.uint8), "class_labels": np.zeros(1, int)}, "expected two or more, got 1"),
        ({"pictures": np.zeros((9, 16, 16, 3), np.uint8)}, "expected an array `images` or `arr_0`"),
    ],
)
@pytest.mark.end_to_end
def test_samples_that_cannot_be_measured(arrays, words, dataset, tmp_path, capsys):
    np.savez(tmp_path / "given.npz", **arrays)
    flags = ["--samples", tmp_path / "given.npz", "--dataset", dataset, "--output", tmp_path / "r.json", "--resolution", SIZE]
    code = main(["evaluate", *map(str, flags)])
    printed = capsys.readouterr().err
    assert code == 1 and words in printed and "Traceback" not in printed


def test_pictures_in_no_class_folders(dataset, tmp_path):
    for number in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="samples: expected folders CLASS"):
        evaluate(EvaluationConfig(dataset=str(dataset), resolution=16), tmp_path / "r.json", samples=tmp_path)


@pytest.mark.parametrize(
    "features, words",
    [
        ("inception", install_hint("fid")),
        ("dinov2", "hf download facebook/dinov2-large"),
        ("imagenet", install_hint("imagenet")),
        ("vgg", "features: expected one of classifier, inception, dinov2"),
    ],
)
def test_extractors_that_are_not_available(features, words, real, measured, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("torchmetrics.image.fid", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError) as error:
        measured(*real, features=features)
    assert words in str(error.value)


@pytest.mark.end_to_end
def test_dinov2_from_a_folder(real, measured, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=224, patch_size=56)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    results = measured(real[0][:60], real[1][:60], features=str(tmp_path / "dino"))
    assert results["protocol"]["feature_extractor"]["weights"] == "dino"
    assert "label_accuracy" not in results["samples"] and results["samples"]["frechet_distance"] >= 0
    assert results["samples"]["classes"]["circle"]["num_images"] == 20


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "expected either a model or --samples"),
        (["--samples", "x.npz", "--seed", "3"], "--seed: expected none with --samples"),
        (["--samples", "x.npz", "--guidance_scale", "2"], "--guidance_scale: expected none with --samples"),
        (["--samples", "x.npz", "--repeats", "2"], "--repeats: expected none with --samples"),
        (["--model", "m", "--resolution", "8"], "--resolution: expected none with --model"),
    ],
)
def test_flags_that_contradict(flags, words, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--dataset", "x", "--output", "r.json", *flags])
    assert words in capsys.readouterr().err


def test_files_that_are_not_samples(dataset, tmp_path):
    for content in (b"", b"PK\x03\x04 cut off"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"expected an \.npz, got .* which cannot be read"):
            evaluate(EvaluationConfig(dataset=str(dataset)), tmp_path / "r.json", samples=tmp_path / "x.npz")
    (tmp_path / "made/circle").mkdir(parents=True)
    for number, size in enumerate((16, 17)):
        Image.new("RGB", (size, size)).save(tmp_path / f"made/circle/{number}.png")
    with pytest.raises(ValueError, match=r"expected pictures of 16x16 .* got .*1\.png, 17x17 RGB"):
        evaluate(EvaluationConfig(dataset=str(dataset), resolution=16), tmp_path / "r.json", samples=tmp_path / "made")
    with pytest.raises(ValueError, match="output: expected a file to write"):
        evaluate(EvaluationConfig(dataset=str(dataset)), tmp_path, samples=tmp_path / "made")


def test_every_setting_of_the_protocol_has_a_flag_that_takes_effect(monkeypatch, tmp_path):
    """Except for channels, which the samples determine."""
    found = {}
    monkeypatch.setattr(module, "evaluate", lambda protocol, output, **given: found.update(vars(protocol)) or {})
    monkeypatch.setattr(report, "summary", lambda results: "")
    flags = {
        "dataset": "d",
        "dataset_config_name": "c",
        "image_column": "i",
        "label_column": "l",
        "split": "s",
        "test_split": "t",
    }
    flags |= {"features": "f", "weights": "w", "subset": 7, "resolution": 9}
    command = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert main(["evaluate", "--samples", "x.npz", "--output", str(tmp_path / "r.json"), *command]) == 0
    assert {name: found[name] for name in flags} == flags
    assert main(["evaluate", "--samples", "x.npz", "--output", str(tmp_path / "r.json"), "--dataset", "d"]) == 0
    assert found == vars(EvaluationConfig(dataset="d"))


@pytest.mark.end_to_end
def test_evaluated_into_its_own_folder_the_card_has_the_metrics(pipeline, dataset, tmp_path):
    from huggingface_hub import ModelCard

    from cond_ddpm import hub

    model = tmp_path / "pipeline"
    pipeline.save_pretrained(model)
    (tmp_path / "config.json").write_text("{}")  # as in the folder of a run
    flags = ["--num_samples", "12", "--subset", "12", "--num_inference_steps", "2", "--output", str(model / "results.json")]
    assert main(["evaluate", "--model", str(model), "--dataset", str(dataset), *flags]) == 0
    found = json.loads((model / "results.json").read_text())
    card = ModelCard.load(model / "README.md")
    accuracy = next(result for result in card.data.eval_results if result.metric_type == "accuracy")
    assert accuracy.metric_value == found["samples"]["label_accuracy"] and "12 samples" in accuracy.metric_config
    assert found["training"] == "not known" and "not recorded" in card.text
    assert "results-confusion.png" in card.text and (model / "results-confusion.png").is_file()
    assert hub.check(model) == []  # the path of the data set is not published
    assert "<h3>pipeline/results.json</h3>\n<p>samples: 12; " in (tmp_path / "report.html").read_text()


@pytest.fixture
def quick_classifier(monkeypatch):
    """A classifier trained for three epochs, for tests in which its accuracy does not matter."""
    from cond_ddpm.evaluation import classifier

    monkeypatch.setattr(classifier, "RECIPE", classifier.Recipe(epochs=3, min_images_seen=320))


def _without_test(dataset, folder):
    (folder / "data").mkdir()
    (folder / "data/train.parquet").write_bytes((dataset / "train.parquet").read_bytes())
    return folder / "data"


@pytest.mark.hostile(6)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.end_to_end
def test_held_out_images_are_not_compared_with_themselves(dataset, tmp_path):
    """A tenth of the split is held out, and yet copies of any image of the whole split are found among the samples."""
    data = _without_test(dataset, tmp_path)
    train = load_images(str(data), "train", SIZE)
    np.savez(tmp_path / "x.npz", images=train.images.transpose(0, 2, 3, 1), class_labels=train.labels)
    protocol = EvaluationConfig(dataset=str(data), resolution=SIZE)
    results = evaluate(protocol, tmp_path / "r.json", samples=tmp_path / "x.npz", progress=False)
    assert results["held_out_real"]["nearest_training_distance"] > 5  # of other images
    assert results["samples"]["nearest_training_distance"] == 0  # all are copies, also of those held out
    assert "among 600" in results["protocol"]["nearest_training_distance"]
    assert "among 540" in results["protocol"]["nearest_training_distance"]


@pytest.mark.hostile(6)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.end_to_end
def test_held_out_images_that_are_not_held_out_are_reported(pipeline, dataset, tmp_path):
    results = _evaluated(pipeline, dataset, tmp_path, test_split="train")
    assert any("so they are no reference" in warning for warning in results["warnings"])


@pytest.mark.hostile(7)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.end_to_end
def test_unequal_numbers_are_reported(pipeline, dataset, tmp_path):
    """450 real images and 700 samples, which also differ in each class; equal numbers are not mentioned."""
    images, labels = shapes(700, SIZE, 5)
    np.savez(tmp_path / "x.npz", images=images, class_labels=labels)
    protocol = EvaluationConfig(dataset=str(dataset), resolution=SIZE)
    results = evaluate(protocol, tmp_path / "r.json", samples=tmp_path / "x.npz", progress=False)
    assert any("450 held-out real images, but 700 samples" in warning for warning in results["warnings"])
    assert any("differ in 3 of 3 classes" in warning for warning in results["warnings"])
    table = [line.split() for line in summary(results).splitlines()]
    assert next(line for line in table if line[:1] == ["circle"])[-2:] == ["234", "150"]
    equal = evaluate(protocol, tmp_path / "r.json", samples=_kept(dataset, tmp_path), progress=False)
    assert not any("held-out real images, but" in warning or "differ in" in warning for warning in equal["warnings"])


def _kept(dataset, folder):
    test = load_images(str(dataset), "test", SIZE)
    np.savez(folder / "test.npz", images=test.images.transpose(0, 2, 3, 1), class_labels=test.labels)
    return folder / "test.npz"


@pytest.mark.hostile(16)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.parametrize("name", ["kept", "kept.npz"])
@pytest.mark.end_to_end
def test_an_interrupted_evaluation_goes_on_with_the_samples_it_keeps(pipeline, dataset, tmp_path, name, monkeypatch):
    """Interrupted during sampling and again during measuring: no batch is made twice, and the results are bitwise the same."""
    from cond_ddpm import sampling

    protocol = EvaluationConfig(dataset=str(dataset), num_samples=30)
    arguments = {"num_inference_steps": 2, "batch_size": 4, "progress": False}
    whole = evaluate(protocol, tmp_path / "a/r.json", "m", pipeline, keep=tmp_path / "a" / name, **arguments)
    made, original, update = [], sampling.sample_batches, module.Tally.update

    def interrupted(*given, **named):
        for batch in original(*given, **named):
            if len(made) == 3 and batch[0] != made[-1]:
                made.append(None)
                raise KeyboardInterrupt
            made.append(batch[0])
            yield batch

    def stopped(self, rows, images, labels):
        if len(images) == 30 and len(made) == 9:
            made.append(None)
            raise KeyboardInterrupt
        update(self, rows, images, labels)

    monkeypatch.setattr(sampling, "sample_batches", interrupted)
    monkeypatch.setattr(module.Tally, "update", stopped)
    again = lambda: evaluate(protocol, tmp_path / "b/r.json", "m", pipeline, keep=tmp_path / "b" / name, **arguments)  # noqa: E731
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            again()
    results = again()
    assert [rows[0] for rows in made if rows] == list(range(0, 30, 4))
    assert results | {"seconds": 0} == whole | {"seconds": 0}
    files = [{path.relative_to(tmp_path / x): path for path in (tmp_path / x).rglob("*") if path.is_file()} for x in "ab"]
    assert files[0].keys() == files[1].keys() and not [path for path in files[0] if path.name.startswith(".")]
    for path in files[0]:
        assert path.name == "r.json" or files[0][path].read_bytes() == files[1][path].read_bytes(), path


@pytest.mark.hostile(16)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.parametrize("name", [pytest.param("kept", marks=pytest.mark.slow), "kept.npz"])
@pytest.mark.integration
def test_two_processes_killed_go_on_with_the_samples_they_keep(pipeline, dataset, tmp_path, name):
    """One of the two is killed after some batches; the results are as if it had not been killed."""
    import datasets

    pipeline.save_pretrained(tmp_path / "model")
    script = """
import os, sys
from cond_ddpm import sampling
from cond_ddpm.cli import main
from cond_ddpm.evaluation import classifier
classifier.RECIPE = classifier.Recipe(epochs=3, min_images_seen=320)
if sys.argv.pop(1) == "kill":
    original, seen = sampling.sample_batches, []
    def killed(*given, **named):
        for batch in original(*given, **named):
            seen.append(batch)
            if len(seen) == 3 and os.environ["RANK"] == "1":
                os._exit(9)
            yield batch
    sampling.sample_batches = killed
sys.exit(main(sys.argv[1:]))
"""
    (tmp_path / "run.py").write_text(script)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    env["PYTHONPATH"] = str(ROOT)

    def run(folder, how):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", tmp_path / "run.py", how, "evaluate"]
        flags = ["--model", tmp_path / "model", "--dataset", dataset, "--num_samples", "60", "--batch_size", "5"]
        flags += ["--num_inference_steps", "2", "--output", folder / "r.json", "--save_samples", folder / name]
        command = [sys.executable, *map(str, launch), *map(str, flags)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, preexec_fn=one_thread_each(2))

    assert run(tmp_path / "killed", "kill").returncode != 0
    there = set((tmp_path / "killed").rglob("*.png"))
    stamps = {path: path.stat().st_mtime_ns for path in there}
    for folder in ("killed", "whole"):
        done = run(tmp_path / folder, "go")
        assert done.returncode == 0, done.stderr
    killed, whole = (json.loads((tmp_path / folder / "r.json").read_text()) for folder in ("killed", "whole"))
    assert killed["samples"] == whole["samples"]
    kept = [path for path in stamps if path.stat().st_mtime_ns == stamps[path]]
    if name == "kept":
        assert len(kept) >= 20  # two batches of each process or more
    for path in (tmp_path / "whole").rglob("*"):
        if path.suffix in (".npz", ".png") or path.name == "classes.json":
            assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.hostile(19)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.end_to_end
def test_samples_kept_of_any_class_names_are_measured(tmp_path, monkeypatch):
    """They are kept in a folder and evaluated again from there."""
    names = ["cat/dog", "b: c", "a/b", "a_b", "0_a_b"]
    images, _labels = shapes(60, SIZE)
    write_parquet(tmp_path, images, np.arange(60) % 5, names)
    pipeline = CondDDPMPipeline(make_unet("simple", sample_size=SIZE, num_classes=5), _scheduler(), dict(enumerate(names)))
    protocol = EvaluationConfig(dataset=str(tmp_path / "train.parquet"), num_samples=20)
    kept = evaluate(
        protocol, tmp_path / "r.json", "m", pipeline, keep=tmp_path / "kept", num_inference_steps=2, progress=False
    )
    again = EvaluationConfig(dataset=str(tmp_path / "train.parquet"), resolution=SIZE)
    given = evaluate(again, tmp_path / "r.json", samples=tmp_path / "kept", progress=False)
    assert list(given["samples"]["classes"]) == names
    assert given["samples"]["label_accuracy"] == kept["samples"]["label_accuracy"]
    assert [row["num_images"] for row in given["samples"]["classes"].values()] == [4] * 5


def _scheduler():
    from diffusers import DDPMScheduler

    return DDPMScheduler(timestep_spacing="trailing")


@pytest.mark.hostile(20)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.end_to_end
def test_names_in_the_summary_are_escaped(measured, real):
    results = measured(*real)
    for what in ("samples", "held_out_real"):
        classes = results[what]["classes"]
        results[what]["classes"] = {"\x1b[31mred\n": classes["circle"], **classes}
    text = summary({**results, "warnings": ["at most 3 of \x1b[2J"]})
    assert "\x1b" not in text and "\\x1b[31mred\\n" in text and "warning: at most 3 of \\x1b[2J" in text


@pytest.mark.hostile(22)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.parametrize("content", [b"null", b"[]", b"\xff", b"{"])
def test_foreign_results_of_a_model_are_an_error_of_one_line(pipeline, dataset, tmp_path, content, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "model/results.json").write_bytes(content)
    flags = ["--num_samples", "6", "--num_inference_steps", "2", "--output", str(tmp_path / "r.json")]
    assert main(["evaluate", "--model", str(tmp_path / "model"), "--dataset", str(dataset), *flags]) == 1
    assert "error: results.json: expected a JSON object" in capsys.readouterr().err


@pytest.mark.hostile(24)
@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.end_to_end
def test_the_seconds_of_all_parts_are_counted(pipeline, dataset, tmp_path, monkeypatch):
    """By a clock that advances by a second at each reading; in two parts it is read more often than in one."""
    import itertools
    from types import SimpleNamespace

    ticks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0)
    whole = _evaluated(pipeline, dataset, tmp_path)["seconds"]
    original = module.sample_batches

    def interrupted(*arguments, **named):
        for number, batch in enumerate(original(*arguments, **named)):
            if number == 6:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(module, "sample_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _evaluated(pipeline, dataset, tmp_path)
    monkeypatch.setattr(module, "sample_batches", original)
    assert _evaluated(pipeline, dataset, tmp_path)["seconds"] > whole - 3  # less what came after the last save


@pytest.mark.usefixtures("quick_classifier")
@pytest.mark.end_to_end
def test_two_evaluations_of_the_same_data_train_one_classifier(dataset, tmp_path, monkeypatch):
    """The second one waits for the first, and then takes what it has trained."""
    import threading

    from cond_ddpm.evaluation import classifier

    train = load_images(str(dataset), "train", SIZE)
    started, original, calls = threading.Event(), classifier.new_judge, []

    def slow(*arguments):
        calls.append(arguments)
        started.set()
        return original(*arguments)

    monkeypatch.setattr(classifier, "new_judge", slow)
    found = []
    get = lambda: found.append(classifier.get_classifier("convolutional", train, train, tmp_path))  # noqa: E731
    threads = [threading.Thread(target=get) for _ in "ab"]
    threads[0].start()
    started.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and found[0].accuracy == found[1].accuracy
    assert all(torch.equal(one, other) for one, other in zip(*(judge.network.state_dict().values() for judge in found)))
