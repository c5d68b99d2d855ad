"""Known answers: caches, checkpoints and published results of earlier versions are recognised by these values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cond_ddpm.data import LabelledImages, data_fingerprint
from cond_ddpm.fingerprints import file_checksum, sha256, value_fingerprint, weights_checksum


@pytest.mark.parametrize(
    "value, expected",
    [
        (["x", [("a.png", 3, 4, 5)]], "7a90725b568887bb"),
        (["é", None, True], "f2656f9f2b55ea0b"),
        (["a", {"b": Path("x")}, 1.5], "c6b8a83d18fe826b"),
    ],
)
def test_fingerprints_of_values(value, expected):
    assert value_fingerprint(value) == expected
    assert value_fingerprint(value, digits=64).startswith(expected) and len(value_fingerprint(value, digits=64)) == 64


def test_hash_of_blocks_is_that_of_the_whole(tmp_path):
    """The answer for "abc" is the one in FIPS 180-2, appendix B.1."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256([b"a", np.frombuffer(b"bc", np.uint8)]) == sha256([b"abc"]) == file_checksum(tmp_path / "abc") == expected


def test_checksum_of_weights_is_known_and_does_not_depend_on_their_type():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    with torch.no_grad():
        for shift, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + shift)
    assert weights_checksum(network) == weights_checksum(network.bfloat16()) == "87fa90fcee0001f3"
    network[0].weight.data[0, 0] = 0.5
    assert weights_checksum(network) != "87fa90fcee0001f3"


def test_fingerprint_of_data():
    data = LabelledImages(np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4), np.array([1]), ["a", "b"])
    assert data_fingerprint(data) == "f2bf22b0cd1ea17c"


def test_keys_of_unfinished_samples_and_of_long_class_names():
    from cond_ddpm.sampling import _folder, _ProgressRecord

    key = "4a72386a027702c1f4fdf182d13b71437ba1606b177123eb73a11eb0bd2feeb8"
    assert _ProgressRecord(Path("out"), [1, "a"], 0).key == key
    assert _folder("x" * 200, False) == "x" * 80 + "%%aa20c23e32018340"
    assert _folder("\ud800" * 60, False) == "%ED%A0%80" * 8 + "%ED%A0%8%%99bee90d0187cbc5"
