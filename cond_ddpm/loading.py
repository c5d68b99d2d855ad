"""What `--model` names, as a pipeline: a folder, a trained model of the package, an exported network, or a Hub repository.

May import: `config, export, hardware, pretrained_models, processes`, the pipeline. Next in the data flow: `commands.py` and
`api.py` sample from the pipeline or measure it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cond_ddpm.config.sampling import NetworksConfig, call_arguments
from cond_ddpm.pretrained_models import pretrained, pretrained_pipelines

if TYPE_CHECKING:
    from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline


def load(model: str, revision: str | None, config: NetworksConfig) -> tuple["CondDDPMPipeline", dict[str, Any]]:
    """The pipeline, on this process's device, and the arguments to call it with."""
    from cond_ddpm.hardware import precision_for
    from cond_ddpm.processes import process_state

    device = process_state().device
    pipeline = from_pretrained(model, revision, config.trust_remote_code).to(device)
    arguments = call_arguments(config)
    if config.guide is not None:
        arguments["guide"] = from_pretrained(config.guide, trust_remote_code=config.trust_remote_code).to(device)
    is_exported = next(pipeline.unet.parameters(), None) is None
    if (config.fast or config.mixed_precision != "no") and is_exported:
        raise ValueError("fast, mixed_precision: expected neither with an exported model, which runs as it was exported.")
    if config.fast:
        arguments["mixed_precision"] = "bf16" if config.mixed_precision == "bf16" else precision_for(device)
        for one in (pipeline, arguments.get("guide")):
            if one is not None:
                one.unet.compile()
    return pipeline, arguments


def from_pretrained(model: str, revision: str | None = None, trust_remote_code: bool = False) -> "CondDDPMPipeline":
    folder = Path(model)
    if not folder.exists() and model in pretrained_pipelines():
        model, revision = str(pretrained(model)), None
    if (folder / "export.json").is_file():
        from cond_ddpm.export import load_exported

        return load_exported(folder, trust_remote_code=trust_remote_code)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        hint = "; a run's is its pipeline/, and `cond-ddpm ema --run RUN --std 0.05 --step N` writes one of an earlier step"
        raise ValueError(f"expected a pipeline folder, with a model_index.json, got {model}{hint}")
    from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline

    if Path(model).exists():
        return CondDDPMPipeline.from_pretrained(model, revision=revision)
    if model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1:
        raise FileNotFoundError(
            f"model: expected a pipeline folder or a Hub id, got {model}, which does not exist; check the path."
        )
    offline = not _hub_answers(model)
    try:
        return CondDDPMPipeline.from_pretrained(model, revision=revision, local_files_only=offline)
    except OSError as error:
        if not offline:
            raise
        raise ConnectionError(
            f"model: there is no folder {model!r} here; as a Hub id it is not in the cache, and the Hub cannot be reached."
            " Give the path of a pipeline folder, take a model that comes with the package"
            f" (--model {', '.join(pretrained_pipelines())}), or go online."
        ) from error


def _hub_answers(model: str) -> bool:
    """Whether the Hub can be reached, by one quick request; without a connection, loading would retry for a minute."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(model, timeout=5)
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError):
        return True  # what is wrong with this id, loading says
    except Exception:  # a missing connection raises different errors by platform and library version
        return False
    return True
