"""The settings of everything that samples, each said once; `cond-ddpm sample` and `cond-ddpm export`.

May import: `config.settings`. Next in the data flow: `sampling.py` makes images of seeds and labels.
"""

from pathlib import Path
from typing import Any, Literal

from cond_ddpm.config.settings import Settings, names_of, setting

# The names of the published pipeline's SAMPLERS and SPACINGS, which this cannot import: it costs no torch. A test compares.
Sampler = Literal["ddpm", "ddim", "dpm++1", "dpm++2", "dpm++3", "dpm++sde", "unipc", "heun", "euler"]
TimestepSpacing = Literal["leading", "trailing", "linspace", "karras", "quadratic"]


class RevisionConfig(Settings):
    """Which version of a model on the Hub."""

    revision: str | None = setting(default=None, help="Branch, tag or commit of the Hub repository.")


class ModelConfig(RevisionConfig):
    """Which model."""

    model: str = setting(
        help="Pipeline folder, such as RUN/pipeline, Hub repository, or cifar10, which comes with the package.", is_path=True
    )


class SeedConfig(Settings):
    """Which noise."""

    seed: int = setting(
        default=0, help="Seed of the first image; the next image has the next seed.", at_least=0, at_most=2**64 - 1
    )


class NumStepsConfig(Settings):
    """How many steps."""

    num_inference_steps: int | None = setting(
        default=None,
        help="Steps of the sampler; if not given, the model's own, or for ddpm every timestep trained on.",
        at_least=1,
    )


class GuidanceScaleConfig(Settings):
    """How much guidance."""

    guidance_scale: float | None = setting(
        default=None, help="1 is conditional, 0 unconditional; if not given, the model's own."
    )


class SamplerConfig(Settings):
    """How images are made of noise, beside the number of steps and the guidance scale."""

    guidance_interval: tuple[float, float] | None = setting(
        default=None, help="Lowest and highest noise level at which to guide; if not given, all.", at_least=0
    )
    guidance_rescale: float = setting(
        default=0.0, help="How much of the contrast that guidance adds is taken back; 0 for none.", at_least=0, at_most=1
    )
    sampler: Sampler | None = setting(default=None, help="Sampler; if not given, the model's own.")
    timestep_spacing: TimestepSpacing | None = setting(
        default=None, help="Where the steps lie; if not given, the sampler's own spacing."
    )
    batch_size: int = setting(default=100, help="Images at a time in each process.", at_least=1)
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = setting(
        default="no", help="Autocast type; auto is what the hardware does fast."
    )


class CallConfig(NumStepsConfig, GuidanceScaleConfig, SamplerConfig):
    """What a call of the pipeline takes, and what `sampling` in a study or a search may have."""


class NetworksConfig(SeedConfig, SamplerConfig):
    """What every command that samples shares, beside the model, the number of steps and the guidance scale."""

    guide: str | None = setting(
        default=None,
        help="Pipeline folder or Hub repository of a worse model to guide by, in place of the null label.",
        is_path=True,
    )
    fast: bool = setting(
        default=False,
        help="bf16, where the hardware has it, and compiled: half a minute to start, then the fastest for many images.",
    )
    trust_remote_code: bool = setting(
        default=False,
        help="Load a network that was exported with --format torch, which can run any code of whoever exported it.",
    )

    def check(self) -> None:
        super().check()
        if self.fast and self.mixed_precision == "fp16":
            raise ValueError(
                "fast: expected no --mixed_precision fp16 beside it, for it chooses the precision, or takes bf16."
            )


class SamplingConfig(ModelConfig, NetworksConfig, NumStepsConfig, GuidanceScaleConfig):
    """What every command that samples shares."""


def call_arguments(config: Settings) -> dict[str, Any]:
    """The arguments of a call of the pipeline that are among a command's settings."""
    return {name: getattr(config, name) for name in names_of(CallConfig) if name in names_of(type(config))}


class SampleConfig(SamplingConfig):
    """Settings of `cond-ddpm sample`."""

    model: str = setting(
        default="cifar10",
        help="Pipeline folder, such as RUN/pipeline, or Hub repository; if not given, the model that comes with the package.",
        is_path=True,
    )
    class_labels: list[str | int] | None = setting(default=None, help="Names or ids; if not given, every class.", at_least=0)
    unconditional: bool = setting(default=False, help="Images of no class in particular.")
    num_images_per_class: int = setting(default=8, help="Images of each class.", at_least=1)
    output: Path = setting(help="NAME.png, a labelled grid; NAME.npz; or a folder of CLASS/SEED.png.")

    def check(self) -> None:
        super().check()
        if self.unconditional and self.class_labels:
            raise ValueError("unconditional: expected no --class_labels beside it; leave out one of the two.")


class ExportConfig(ModelConfig):
    """Settings of `cond-ddpm export`."""

    format: Literal["onnx", "torch", "web"] = setting(
        help="onnx; torch's own exported program; or web, a page that draws in the browser, for any web host."
    )
    output: Path = setting(help="New folder to write. Commands that draw take it as their --model, unless it is a page.")
    runtime: str | None = setting(
        default=None,
        help="With web: put onnxruntime-web beside the page, which then works without the internet: download, or a folder of"
        " npm's package; if not given, the page loads it from a CDN.",
    )

    def check(self) -> None:
        super().check()
        if self.runtime is not None and self.format != "web":
            raise ValueError(f"runtime: expected --format web beside it, got {self.format}; leave out one of the two.")
