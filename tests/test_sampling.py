import numpy as np
import pytest
from conftest import make_unet

from cond_ddpm import CondDDPMPipeline, generate


def test_images_are_the_same_in_any_batch_and_order(tiny_pipeline):
    labels, seeds = [0, 1, 2, 0, 1, 2, 0, 1], list(range(8))
    images = generate(tiny_pipeline, labels, seeds, num_inference_steps=3)
    assert images.shape == (8, 3, 8, 8) and images.dtype == np.uint8 and len(np.unique(images, axis=0)) == 8
    for batch_size in (1, 3):
        again = generate(tiny_pipeline, labels, seeds, batch_size=batch_size, num_inference_steps=3)
        assert abs(again.astype(int) - images).max() <= 1
    turned = generate(tiny_pipeline, labels[::-1], seeds[::-1], num_inference_steps=3)
    assert abs(turned[::-1].astype(int) - images).max() <= 1


def test_seeds_and_labels_of_different_lengths(tiny_pipeline):
    with pytest.raises(ValueError, match="expected one for each of the 2 labels, got 3"):
        generate(tiny_pipeline, [0, 1], [0, 1, 2])


def test_grey_images(tiny_pipeline):
    grey = CondDDPMPipeline(make_unet(in_channels=1, out_channels=1), tiny_pipeline.scheduler)
    assert generate(grey, [0], [0], num_inference_steps=2).shape == (1, 1, 8, 8)
