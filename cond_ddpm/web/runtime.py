"""onnxruntime-web, by which the page runs the network: which files of which version, and a copy of them for a page offline.

May import: `files`. Next in the data flow: `page.py`.
"""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

VERSION = "1.30.0"
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"  # serves the files of npm's package as they are
FOLDER = "runtime"
# For each way to compute, its files: length and SHA-384. The package is under the MIT licence, which its modules name.
BUILDS: dict[str, dict[str, dict[str, Any]]] = {
    "wasm": {
        "module": {
            "file": "ort.wasm.bundle.min.mjs",
            "bytes": 73054,
            "sha384": "3cb5b3fa71c4547a63c01b0ed1855dbd08fa9f9f35e08bfc1376fc146d11a7fb8802d8c530228ea4feba88fcde76b206",
        },
        "wasm": {
            "file": "ort-wasm-simd-threaded.wasm",
            "bytes": 14239897,
            "sha384": "be3049d73eeaae1913c98b0da8a785e9cecdfa7389494f78733128fadbd972ef06ef92696ab1aaf6407e9139c450d54c",
        },
    },
    "webgpu": {
        "module": {
            "file": "ort.webgpu.bundle.min.mjs",
            "bytes": 117732,
            "sha384": "d67b4c7b28fecf97625fabc147987ece52413dce2236f842c44ea795a9a687c75a05870b059933af00e4b898e1c08f9f",
        },
        "wasm": {
            "file": "ort-wasm-simd-threaded.asyncify.wasm",
            "bytes": 26781914,
            "sha384": "10f5432d3c6e3baeb776464efe970a245eaf3b2c9fabfe73f45635a24b0dd145855f60011f8c030d940778da1495e591",
        },
    },
}


def runtime_entry(is_beside: bool) -> dict[str, Any]:
    """The entry `runtime` of model.json: where the files are, beside the page or on the CDN, and what is expected in them."""
    return {"version": VERSION, "url": f"{FOLDER}/" if is_beside else CDN, "builds": BUILDS}


def copy_runtime(source: str, folder: Path) -> None:
    """Write the runtime's files to a folder.

    Args:
        source: `download`, or a folder of npm's package onnxruntime-web.
        folder: made.

    Raises:
        ValueError: the folder does not have the files of this version.
        ConnectionError: a file cannot be downloaded.
    """
    folder.mkdir(parents=True)
    for part in (part for build in BUILDS.values() for part in build.values()):
        content = _downloaded(part["file"]) if source == "download" else _read(Path(source).expanduser(), part["file"])
        if hashlib.sha384(content).hexdigest() != part["sha384"]:
            raise ValueError(
                f"runtime: expected {part['file']} of onnxruntime-web {VERSION}, got a file of {len(content):,} bytes that is"
                f" another; `npm pack onnxruntime-web@{VERSION}` fetches the package."
            )
        (folder / part["file"]).write_bytes(content)


def _downloaded(name: str) -> bytes:
    try:
        with urllib.request.urlopen(CDN + name, timeout=60) as response:
            return response.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ConnectionError(
            f"runtime: {CDN}{name} cannot be downloaded ({error}); give a folder of npm's package onnxruntime-web {VERSION}."
        ) from None


def _read(package: Path, name: str) -> bytes:
    for file in (package / "dist" / name, package / name):
        if file.is_file():
            return file.read_bytes()
    raise ValueError(
        f"runtime: expected `download`, or a folder of npm's package onnxruntime-web {VERSION} with dist/{name}, got"
        f" {package}; `npm pack onnxruntime-web@{VERSION}` fetches it as an archive."
    )
