"""Images are the same in any batch, order and number of processes, and are written once."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import NAMES, ROOT, make_unet
from PIL import Image

from cond_ddpm import CondDDPMPipeline, generate, load_images
from cond_ddpm.sampling import sample_batches, save_samples

LABELS, SEEDS = [0, 1, 2, 0, 1, 2, 0, 1], list(range(8))


def test_images_are_the_same_in_any_batch_and_order(tiny_pipeline):
    images = generate(tiny_pipeline, LABELS, SEEDS, num_inference_steps=3)
    assert images.shape == (8, 3, 8, 8) and images.dtype == np.uint8 and len(np.unique(images, axis=0)) == 8
    for batch_size in (1, 3):
        again = generate(tiny_pipeline, LABELS, SEEDS, batch_size=batch_size, num_inference_steps=3)
        assert abs(again.astype(int) - images).max() <= 1
    turned = generate(tiny_pipeline, LABELS[::-1], SEEDS[::-1], num_inference_steps=3)
    assert abs(turned[::-1].astype(int) - images).max() <= 1


def test_two_processes_share_the_images_and_write_each_once(tiny_pipeline, tmp_path):
    """By the command line: the archive and the folder of two processes against those of one, and against `generate`."""
    tiny_pipeline.save_pretrained(tmp_path / "model")
    threads = {"OMP_NUM_THREADS": "1"}
    images = {}
    for processes in (1, 2):
        for output in ("out.npz", "folder"):
            launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "-m", "cond_ddpm.cli", "sample"]
            flags = ["--model", tmp_path / "model", "--class_labels", "cross", "0", "--num_images_per_class", "4"]
            flags += ["--num_inference_steps", "3", "--sampler", "ddpm", "--batch_size", "2", "--guidance_scale", "1.5"]
            flags += ["--output", tmp_path / str(processes) / output]
            command = [sys.executable, *launch, *map(str, flags)]
            done = subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("8 images:") == 1
        with np.load(tmp_path / str(processes) / "out.npz") as archive:
            assert archive["class_labels"].tolist() == [2] * 4 + [0] * 4 and archive["seeds"].tolist() == SEEDS
            images[processes] = archive["images"]
        files = sorted(path.relative_to(tmp_path / str(processes)) for path in tmp_path.glob(f"{processes}/*/*/*"))
        expected = [f"folder/circle/{seed:06d}.png" for seed in range(4, 8)]
        expected += [f"folder/cross/{seed:06d}.png" for seed in range(4)]
        assert list(map(str, files)) == expected
        for row, file in enumerate(expected[4:] + expected[:4]):
            assert np.array_equal(np.asarray(Image.open(tmp_path / str(processes) / file)), images[processes][row])
    assert images[1].shape == (8, 8, 8, 3)
    assert np.array_equal(images[1], images[2])  # the same batches
    arguments = {"num_inference_steps": 3, "sampler": "ddpm", "guidance_scale": 1.5, "batch_size": 2}
    here = generate(tiny_pipeline, [2] * 4 + [0] * 4, SEEDS, **arguments)
    assert abs(here.transpose(0, 2, 3, 1).astype(int) - images[1]).max() <= 1


def test_a_written_folder_is_a_data_set_of_these_classes(tiny_pipeline, tmp_path):
    save_samples(tiny_pipeline, [2, 0, 2], [7, 8, 9], tmp_path / "made", num_inference_steps=2)
    data = load_images(str(tmp_path / "made"), resolution=8)
    images = generate(tiny_pipeline, [0, 2, 2], [8, 7, 9], num_inference_steps=2)
    assert data.class_names == ["circle", "cross"] and data.labels.tolist() == [0, 1, 1]
    assert abs(data.images.astype(int) - images).max() <= 1
    with pytest.raises(ValueError, match="output: expected a new or empty folder"):
        save_samples(tiny_pipeline, [2], [7], tmp_path / "made")
    with pytest.raises(ValueError, match="seeds: expected another one for each image of a class"):
        save_samples(tiny_pipeline, [2, 2], [7, 7], tmp_path / "twice")


def test_seeds_and_labels_of_different_lengths(tiny_pipeline):
    with pytest.raises(ValueError, match="expected one for each of the 2 labels, got 3"):
        generate(tiny_pipeline, [0, 1], [0, 1, 2])


def test_grey_and_unconditional_images(tiny_pipeline, tmp_path):
    grey = CondDDPMPipeline(make_unet(in_channels=1, out_channels=1), tiny_pipeline.scheduler, dict(enumerate(NAMES)))
    assert generate(grey, [0], [0], num_inference_steps=2).shape == (1, 1, 8, 8)
    none = generate(grey, None, [5, 6], num_inference_steps=2)
    assert np.array_equal(none, generate(grey, [1, 0], [5, 6], num_inference_steps=2, guidance_scale=0.0))
    save_samples(grey, None, [5, 6], tmp_path / "made", num_inference_steps=2)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "made/unconditional/000006.png")), none[1, 0])


def test_batches_are_bounded(tiny_pipeline):
    sizes = [(rows, len(images)) for rows, images in sample_batches(tiny_pipeline, LABELS, SEEDS, 3, num_inference_steps=1)]
    assert sizes == [([0, 1, 2], 3), ([3, 4, 5], 3), ([6, 7], 2)]
