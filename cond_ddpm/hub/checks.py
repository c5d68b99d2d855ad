"""Problems that prevent a pipeline folder from being published: it must load for everyone and contain nothing private.

May import: `fingerprints, hub.folder, text`. Next in the data flow: `upload.py`.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cond_ddpm.fingerprints import weights_checksum
from cond_ddpm.hub.folder import (
    expected_files,
    is_extra,
    load_folder,
    published_files,
    read_results,
    require_pipeline_folder,
)
from cond_ddpm.text import shown


def check(folder: Path) -> list[str]:
    """The problems that prevent a folder from being published, one line each.

    The folder is loaded as users without this package will load it.

    Raises:
        ValueError: it is not a pipeline folder.
    """
    require_pipeline_folder(folder)
    required, known = expected_files(folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    there = {name for name in there if "__pycache__/" not in name}
    problems = [f"{name} is missing" for name in sorted(required - there)]
    problems += [
        f"{name} does not belong in a pipeline folder; remove it" for name in sorted(there - known) if not is_extra(name)
    ]
    for name in sorted(published_files(folder) & there):
        problems += [f"{name} {problem}" for problem in _private_text(folder / name, folder)]
    if problems:
        return problems  # before any code of the folder is run

    pipeline = load_folder(folder)
    checksum = weights_checksum(pipeline.unet)
    results = read_results(pipeline.companions)
    measured = results.get("protocol", {}).get("weights_checksum", checksum)
    if measured != checksum:
        problems.append(f"results.json was measured with other weights ({measured}, not {checksum}); evaluate the model again")
    broken = [name for name, tensor in pipeline.unet.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        return [*problems, f"its weights have values that are not finite, in {', '.join(broken[:3])}"]
    return problems + load_without_package(folder)


# Tokens of the Hub (of users, organisations and OAuth), GitHub, GitLab, AWS, Google, Slack, PyPI, OpenAI and similar services;
# signed web tokens; private keys.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,}|hf_oauth_[\w.-]{20,}|api_org_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|glpat-[\w-]{20,}|A[KS]IA[0-9A-Z]{16}(?![0-9A-Za-z])|AIza[\w-]{35}|xox[abeprs]-[\w-]{20,}"
    r"|pypi-[\w-]{50,}|sk-[\w-]{32,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.ASCII,
)
# Paths of at least two names from the root, paths in a home folder, and paths on a Windows drive or share. Not what follows
# letters, a dot or another slash, as in relative paths and "and/or", and not a Markdown link within a site. URLs are removed
# first.
_LOCAL_PATH = re.compile(
    r"(?<![\w.~/\\])(?<!\]\()/(?:[\w.@+~%-]+/)+[\w.@+~%-]+"
    r"|(?<![\w~/])~(?:[^\W\d][\w.-]*)?/[\w.-]+"
    r"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\+[\w.$@~-]+|/(?!/)[\w.$@~-]+)"
    r"|(?<![\w\\])\\\\{1,3}[\w.?$-]+\\+[\w.$-]+|(?<![\w:/.])//[\w.$-]+/[\w.$-]+|(?<!\w)file:/+[^\s\"'<>]*",
    re.IGNORECASE,
)

_URL = re.compile(r"\b(?!file:)[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)


def _private_text(file: Path, folder: Path) -> list[str]:
    """What a file contains that must not be published: tokens, and paths on this machine (also that of the folder itself)."""
    from huggingface_hub import get_token

    is_text = file.suffix.lower() not in (".safetensors", ".png", ".jpg", ".jpeg", ".gif")
    content, problems = file.read_bytes().decode("utf-8" if is_text else "latin-1", errors="replace"), []
    if file.suffix in (".json", ".ipynb"):  # as JSON is read: `\/` is a slash, and `\\` is one backslash
        with contextlib.suppress(ValueError, RecursionError):  # loading the folder reports these
            content = "\n".join(_strings(json.loads(content)))
    token = get_token() or ""
    if _TOKEN.search(content) or (len(token) > 8 and token in content):
        problems.append("contains a token; remove it, and revoke the token if anyone else may have seen it")
    if is_text:
        path = _LOCAL_PATH.search(_URL.sub("", content))
        places = (folder.resolve().parent, Path.cwd(), Path.home())
        own = next((place for place in places if len(place.parts) > 1 and f"{place}/" in content), None)
        if path or own:
            problems.append(f"contains a path on this machine, {shown(path.group() if path else str(own))}; remove it")
    return problems


def _strings(value) -> Iterator[str]:
    """All strings in the content of a JSON file, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value:
            yield from _strings(inner)
        if isinstance(value, dict):
            yield from _strings(list(value.values()))


# What users without this package will run. The code in the folder has no access to tokens.
LOAD_SCRIPT = """
import sys
sys.modules["cond_ddpm"] = None  # as if it were not installed
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
pipeline([0], seeds=[0], num_inference_steps=min(20, pipeline.scheduler.config.num_train_timesteps))
"""


def load_without_package(folder: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as home:
        keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-I", "-c", LOAD_SCRIPT, str(folder.resolve())],
            env={**keep, "HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1"},
            cwd=home,
            capture_output=True,
            text=True,
        )
    said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return [f"it does not load and sample without this package: {said}"] if done.returncode else []
