"""Fingerprints of values, files and weights, by which caches, checkpoints and records recognise what they were made from.

May import: nothing of ours. Their values are on users' disks and in published results, so they must never change;
`tests/test_fingerprints.py` holds known answers.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHORT = 16  # hexadecimal digits that are enough to tell apart what one user has


def sha256(blocks: Iterable[Any]) -> str:
    """The SHA-256 hash of blocks of bytes (or of contiguous arrays), as if they were one, in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def value_fingerprint(value: Any, digits: int = SHORT) -> str:
    """Fingerprint of a value by its JSON; what JSON does not have, such as a path, is taken as a string."""
    return sha256([json.dumps(value, default=str).encode()])[:digits]


def file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_checksum(network: Any) -> str:
    """Checksum of a torch module's parameters and buffers, the same whatever floating-point type they are stored in.

    A conversion that rounds changes it. `results.json` records it.
    """
    tensors = sorted(network.state_dict().items())
    return sha256(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes() for name, tensor in tensors)[:SHORT]
