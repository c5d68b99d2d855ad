"""Publishing a pipeline folder: it is completed, checked and uploaded to the Hub as one commit, optionally with a demo Space.

May import: `hub.card, hub.checks, hub.folder, web`, the pipeline. Nothing follows in the data flow.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import cond_ddpm
from cond_ddpm.hub.card import MADE_WITH, complete, licence_of
from cond_ddpm.hub.checks import check
from cond_ddpm.hub.folder import is_extra, load_folder, published_files, require_pipeline_folder
from cond_ddpm.pipelines.pipeline_cond_ddpm import COMPANIONS


def publish(
    folder: Path,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    space: bool | str = False,
    space_hardware: str = "cpu",
    licences: tuple[str | None, str | None] = (None, None),
    say: Callable[[str], None] = print,
) -> str | None:
    """Complete a pipeline folder, check it, and upload it to the Hub as one commit, to a new or an existing repository.

    Args:
        folder: what `save_pretrained` wrote, such as RUN/pipeline.
        repo_id: USER/NAME; created if it does not exist.
        private: make the repository private.
        dry_run: show what would be uploaded, and upload nothing.
        space: also publish a demo Space of the same name, which loads this commit; "static" for a page that draws in the
            browser, with its own copy of the network.
        space_hardware: what the Space's packages are for: "cpu", or "gpu", ZeroGPU included.
        licences: of the weights and of the training images, as the Hub names them; None for what the card says already.
        say: called with each line of output.

    Returns:
        The commit's hash, or None for a dry run.

    Raises:
        ValueError: a name that is not allowed; a folder that does not load, or contains what must not be published; a
            repository with other content.
        ConnectionError: no connection to the Hub.
        PermissionError: no token, or one that may not write there.
        OSError: any other error that the Hub reports. After each of the last three, nothing is half published, and the call
            can be repeated.
    """
    check_name(repo_id)
    if private and space:
        raise ValueError("space: expected a public model, which a Space can load without a token; leave out one of the two.")
    require_pipeline_folder(folder)
    complete(folder, repo_id, licences=licences)
    problems = check(folder)
    if problems:
        raise ValueError(f"model: {folder} cannot be published:\n" + "\n".join(f"  {problem}" for problem in problems))
    files = {name: folder / name for name in sorted(published_files(folder))}
    if licence_of(folder) is None:
        say("no licence is given for the weights, and without one others have no right to use them; --license NAME gives one")
    say(f"checked: {folder} loads and samples without cond_ddpm, and its weights are finite")
    _show(f"{'private ' if private else ''}model {repo_id}", files, say)
    with tempfile.TemporaryDirectory() as work:
        demo: dict[str, Path | bytes] = {}
        if space:
            is_static = space == "static"
            demo = (
                _static_space_files(folder, repo_id, Path(work) / "site")
                if is_static
                else _space_files(repo_id, "COMMIT", space_hardware)
            )
            _show(f"Space {repo_id}", demo, say)
        if dry_run:
            say("dry run: nothing was uploaded")
            return None

        commit = upload(repo_id, "model", files, private)
        say(f"{_endpoint()}/{repo_id}")
        say("from diffusers import DiffusionPipeline")
        say(f'pipeline = DiffusionPipeline.from_pretrained("{repo_id}", revision="{commit}", trust_remote_code=True)')
        say("pipeline(class_labels=[0], seeds=[0]).images[0]")
        if space:
            demo = demo if is_static else _space_files(repo_id, commit, space_hardware)
            upload(repo_id, "space", demo, private, "static" if is_static else "gradio")
            say(f"{_endpoint()}/spaces/{repo_id}")
        return commit


def check_name(repo_id: str) -> None:
    """Raise ValueError unless this is a name with an owner that the Hub allows."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise ValueError(
            f"repo_id: expected USER/NAME, made of letters, digits and - _ . only, got {repo_id!r}: {error}"
        ) from None


def check_access() -> str:
    """The user to whom this machine's token belongs. It is checked before a long run, not only when the run is published.

    Raises:
        ConnectionError, PermissionError, OSError: as for `publish`.
    """
    from huggingface_hub import HfApi

    return with_retries("whoami", lambda: HfApi(_endpoint(), _token()).whoami()["name"])


def _show(what: str, files: Mapping[str, Path | bytes], say: Callable[[str], None]) -> None:
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    say(f"{what}: {len(files)} files, {sum(sizes.values()) / 1e6:.2f} MB")
    for name, size in sizes.items():
        say(f"  {size:>12,}  {name}")


# What a Space is built of: versions that were tried together. ZeroGPU has this Python, and torch up to this version.
SPACE_PYTHON, SPACE_GRADIO = "3.12.12", "6.31.0"
SPACE_PINS = {"torch": "2.13.0", "diffusers": "0.42.1", "accelerate": "1.15.0", "safetensors": "0.8.0"}
_APP = '''"""The demo of a model at one commit. Made by cond_ddpm, whose demo is in the folder beside this file."""

import importlib.util

if importlib.util.find_spec("spaces"):
    import spaces  # noqa: F401  before torch: on ZeroGPU it lends a GPU to each call

import torch
from cond_ddpm.demo import Model, launch, make_demo
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

REPO, COMMIT = "{repo_id}", "{commit}"
LINES = f\'\'\'from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{{REPO}}", revision="{{COMMIT}}", trust_remote_code=True)\'\'\'

pipeline = DiffusionPipeline.from_pretrained(snapshot_download(REPO, revision=COMMIT), trust_remote_code=True)
pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
launch(make_demo([Model(REPO, lambda: pipeline, LINES)]))
'''


def _space_files(repo_id: str, commit: str, hardware: str = "cpu") -> dict[str, Path | bytes]:
    """A gradio app that loads this commit of the model; of this package it has the demo alone.

    Args:
        hardware: "cpu" for torch without CUDA, "gpu" for one with it and for ZeroGPU.
    """
    on_gpu = hardware == "gpu"
    card = (
        f"---\ntitle: {repo_id.rpartition('/')[2]}\nsdk: gradio\nsdk_version: {SPACE_GRADIO}\npython_version: {SPACE_PYTHON}\n"
        f"app_file: app.py\nsuggested_hardware: {'zero-a10g' if on_gpu else 'cpu-basic'}\nlicense: apache-2.0\n"
        f"models:\n- {repo_id}\n---\n\n"
        f"Images of a class, by [{repo_id}](https://huggingface.co/{repo_id}). Made with {MADE_WITH}.\n"
    )
    pins = SPACE_PINS if on_gpu else {**SPACE_PINS, "torch": f"{SPACE_PINS['torch']}+cpu"}
    index = [] if on_gpu else ["--extra-index-url https://download.pytorch.org/whl/cpu"]
    requirements = [*index, *(f"{name}=={version}" for name, version in pins.items()), f"gradio[mcp]=={SPACE_GRADIO}"]
    demo = Path(__file__).parents[1] / "demo"
    return {
        "README.md": card.encode(),
        "app.py": _APP.format(repo_id=repo_id, commit=commit).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in [*requirements, *(["spaces"] if on_gpu else [])]).encode(),
        **{f"cond_ddpm/demo/{path.name}": path for path in sorted(demo.iterdir()) if path.suffix in (".py", ".css")},
    }


def _static_space_files(folder: Path, repo_id: str, work: Path) -> dict[str, Path | bytes]:
    """A page that draws in the browser, written to `work`. The headers let a browser give it several threads."""
    from cond_ddpm.web import export_page

    export_page(load_folder(folder), work, repo_id, repo_id.rpartition("/")[2])
    licence = licence_of(folder) or "unknown"  # the page has a copy of the weights
    card = (
        f"---\ntitle: {repo_id.rpartition('/')[2]}\nsdk: static\napp_file: index.html\nlicense: {licence}\n"
        f"models:\n- {repo_id}\ncustom_headers:\n  cross-origin-embedder-policy: require-corp\n"
        "  cross-origin-opener-policy: same-origin\n  cross-origin-resource-policy: cross-origin\n---\n\n"
        f"Images of a class, by [{repo_id}](https://huggingface.co/{repo_id}), drawn in the browser. Made with {MADE_WITH}.\n"
    )
    page = {path.name: path for path in sorted(work.iterdir()) if path.name != "serve.py"}  # which is for one's own machine
    return {"README.md": card.encode(), **page}


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise PermissionError("uploads to the Hub need a token, and there is none; run `hf auth login`, or set HF_TOKEN.")
    return token


def upload(
    repo_id: str, repo_type: str, files: Mapping[str, Path | bytes], private: bool, space_sdk: str | None = None
) -> str:
    """Create the repository if necessary, and make one commit that leaves it with these files and no older companions.

    Returns:
        The commit's hash.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(_endpoint(), _token())

    def attempt() -> str:
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=space_sdk)
        now = api.space_info(repo_id) if repo_type == "space" else api.model_info(repo_id)
        there = {file.rfilename for file in now.siblings or ()} - {".gitattributes"}
        ours = set(COMPANIONS) | {name for name in there if name in files or is_extra(name)}
        foreign = sorted(there - ours) if repo_type == "model" else []
        if "model_index.json" in there and "pipeline_cond_ddpm.py" not in there:
            foreign = ["model_index.json"]
        if foreign:
            raise ValueError(
                f"repo_id: expected a new repository, or one with such a pipeline, got {repo_id}, which contains"
                f" {', '.join(foreign[:5])}; choose another name."
            )
        if private and now.private is False:
            raise ValueError(
                f"private: expected a private repository, but {repo_id} exists and is public; change that on the Hub."
            )
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        stale = sorted((there & set(COMPANIONS)) - set(files)) if repo_type == "model" else []
        operations += [CommitOperationDelete(name) for name in stale]  # the user's own files there are kept
        message = f"Published by cond_ddpm {cond_ddpm.__version__}"
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=now.sha).oid

    return with_retries(repo_id, attempt)


def with_retries(what: str, call: Callable[[], str], waits: tuple[float, ...] = (1, 3)) -> str:
    """`call()`, repeated after a server error or a lost connection; any other error is raised in plain words.

    Args:
        what: the repository or request, for the error.
        call: what may be repeated safely.
        waits: seconds to wait before each repetition.
    """
    # HTTPError is the base of HfHubHTTPError, and of any error of the connection, whichever HTTP library is below.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    for wait in (*waits, None):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise ConnectionError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it.") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status < 500 or wait is None:
                raise plain_error(what, status, error) from None
        except (HTTPError, json.JSONDecodeError) as error:
            if wait is None:
                raise ConnectionError(
                    f"no connection to {_endpoint()}, or it was cut, or the answer was not that of the Hub"
                    f" ({type(error).__name__}); either all or nothing was published: repeat the command."
                ) from None
        time.sleep(wait)
    raise AssertionError("unreachable")


def plain_error(what: str, status: int, error) -> OSError:
    """The error to raise for an HTTP status of the Hub: what it means and what to do."""
    said = f" The Hub says: {error.server_message}" if error.server_message else ""
    if status == 401:
        return PermissionError(
            f"{what}: the Hub does not know this token (401); `hf auth login`, or set HF_TOKEN to another.{said}"
        )
    if status == 403:
        return PermissionError(f"{what}: this token may not write there (403); use your own name, or a token that may.{said}")
    if status in (409, 412):
        return OSError(f"{what}: it is being changed by someone else just now ({status}); repeat the command.{said}")
    advice = "repeat the command later" if status >= 500 else "nothing was published"
    return OSError(f"{what}: the Hub answered {status}; {advice}.{said}")
