"""The settings of a run: one frozen dataclass, from which the command line and the YAML files are derived.

May import: the standard library and jsonargparse. Next on the data's way: `data.py` loads what `dataset` names.
"""

import dataclasses
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

Model = Literal["simple", "attention", "hybrid"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`, named as in diffusers' training scripts; only `batch_size` means the whole batch.

    The defaults are the hybrid's recipe; `benchmarks/RESULTS.md` says what of it was compared. The study's are in its presets.

    Args:
        dataset: Hub id, local folder or parquet file (`load_dataset` reads it), or the embedded `mnist5k`.
        dataset_config_name: configuration of the data set, where it has several.
        train_split: split to train on.
        image_column: column of the images; found by its type if not given.
        label_column: column of the labels; found by its type if not given.
        resolution: height and width in pixels; images are scaled and centre-cropped to it.
        channels: 1 for grey, 3 for RGB; if not given, what the first image has.
        random_flip: mirror half of the images; if not given, unless the classes are digits or letters.
        num_validation_images: held out from the training split, for the validation loss that early stopping watches.
        model: which UNet.
        unet: any argument of that UNet, as --unet.NAME VALUE, such as --unet.block_out_channels [64,128].
        num_train_timesteps: steps of the noise schedule.
        beta_start: first beta of the noise schedule.
        beta_end: last beta of the noise schedule.
        beta_schedule: how the betas go from first to last.
        prediction_type: what the UNet predicts.
        timestep_sampling: distribution of the timesteps trained on.
        min_snr_gamma: weight the loss by min-SNR with this gamma (5 in its paper); null for no weights.
        class_dropout_prob: share of labels replaced by the null label, which classifier-free guidance needs.
        batch_size: images in an optimizer step, over all processes together.
        num_epochs: passes over the training images.
        max_train_steps: stop after so many optimizer steps, however many epochs that is.
        max_train_minutes: stop after so much time, to which the learning rate's course adapts; or max_train_steps, if sooner.
        optimizer: muon orthogonalises the updates of the hidden matrices; all else gets AdamW.
        learning_rate: after warm-up; Muon's steps are scaled to AdamW's, so that both take the same.
        lr_scheduler: course of the learning rate: constant, or down to zero by the end of the run.
        lr_decay_share: share of the run, at its end, over which it goes down.
        lr_warmup_steps: steps of linear warm-up.
        adam_beta1: AdamW's decay of the first moment.
        adam_beta2: AdamW's decay of the second moment.
        adam_epsilon: AdamW's epsilon.
        weight_decay: of the optimizer, decoupled from the gradient.
        max_grad_norm: clip gradients to this norm; 0 for no clipping.
        gradient_accumulation_steps: parts in which each process goes through its share of the batch, to need less memory.
        mixed_precision: autocast type; if not given, what `accelerate launch` says.
        compile: torch.compile the UNet; slow to start, then faster.
        channels_last: memory format of the convolutions: faster with compile, slower without it on CPUs (GroupNorm).
        num_cpu_threads: threads of each process on the CPU; if not given, OMP_NUM_THREADS; if nobody set that, the usable
            cores divided by the processes here (`accelerate launch` and torchrun set 1, which is not taken for a wish).
        use_ema: keep a moving average of the weights, which is validated, sampled and saved.
        ema_std: relative width of that average's power-function profile, a share of the run so far (EDM2).
        num_ema_snapshots: how many times to keep two averages, for `cond-ddpm ema` to make others of; 0 for never.
        patience: stop when the validation loss has not improved for so many epochs; null for never.
        seed: of weights, order, noise; the run is a function of it.
        output_dir: folder of the run.
        overwrite_output_dir: replace what an earlier run left there.
        resume_from_checkpoint: go on from `latest` (or start, if there is none yet), checkpoint-N or a path.
        checkpointing_steps: write checkpoint-N every so many steps, and at the end; 0 for never.
        checkpoints_total_limit: how many to keep; null for all.
        report_to: where losses and images also go: tensorboard, wandb, trackio, or none. metrics.jsonl is always written.
        logging_steps: read losses back every so many steps; if not given, 1 on the CPU and 10 where reading waits.
        save_images_epochs: write a grid of samples every so many epochs, and at the end; 0 for never.
        num_images_per_class: columns of that grid.
        num_inference_steps: steps of the pipeline's sampler for that grid.
        guidance_scale: of that grid, and of the saved pipeline where a call gives none; 1 for none.
        push_to_hub: publish the pipeline when the run is over, as `cond-ddpm publish` does.
        hub_model_id: USER/NAME to publish it under.
        hub_private_repo: only for those whom its owner lets in.
    """

    dataset: str = "cifar10"
    dataset_config_name: str | None = None
    train_split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    resolution: int = 32
    channels: Literal[1, 3] | None = None
    random_flip: bool | None = None
    num_validation_images: int = 1000

    model: Model = "hybrid"
    unet: dict[str, Any] = dataclasses.field(default_factory=dict)

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    min_snr_gamma: float | None = 5.0
    class_dropout_prob: float = 0.1

    batch_size: int = 64
    num_epochs: int = 50
    max_train_steps: int | None = None
    max_train_minutes: float | None = None
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 3e-3
    lr_scheduler: Literal["constant", "cosine", "linear", "1-sqrt"] = "linear"
    lr_decay_share: float = 0.5
    lr_warmup_steps: int = 200
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    compile: bool = False
    channels_last: bool = False
    num_cpu_threads: int | None = None
    use_ema: bool = True
    ema_std: float = 0.05
    num_ema_snapshots: int = 20
    patience: int | None = 10
    seed: int = 0

    output_dir: str = "runs/cond-ddpm"
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = None
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = 2
    report_to: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    logging_steps: int | None = None
    save_images_epochs: int = 5
    num_images_per_class: int = 8
    num_inference_steps: int = 20
    guidance_scale: float = 1.0
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False

    # What may differ between a checkpoint and the run that goes on from it, since it changes no step that was done.
    MAY_CHANGE_AT_RESUME: ClassVar[frozenset[str]] = frozenset(
        {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit"}
        | {"report_to", "logging_steps", "num_epochs", "max_train_steps", "max_train_minutes", "patience", "compile"}
        | {"num_cpu_threads", "save_images_epochs", "num_images_per_class", "num_inference_steps", "guidance_scale"}
        | {"num_ema_snapshots", "push_to_hub", "hub_model_id", "hub_private_repo"}
    )

    def __post_init__(self):
        for name in ("dataset", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a name or a path, got nothing.")
        if self.push_to_hub != (self.hub_model_id is not None):
            raise ValueError("push_to_hub, hub_model_id: expected both or neither; give --hub_model_id USER/NAME.")
        if self.beta_schedule == "squaredcos_cap_v2" and (self.beta_start, self.beta_end) != (1e-4, 0.02):
            raise ValueError("beta_start, beta_end: expected none with beta_schedule squaredcos_cap_v2, which has no betas.")
        if self.class_dropout_prob == 0 and self.guidance_scale != 1:
            raise ValueError(
                f"guidance_scale: expected 1 with class_dropout_prob 0, which trains no null label to guide by, got"
                f" {self.guidance_scale}; drop some labels, such as --class_dropout_prob 0.1."
            )
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                expected = f"from {low} to {high}" if high < _INF else f"{low} or more"
                raise ValueError(f"{name}: expected {expected}, got {value}.")
        for name, type_ in get_type_hints(type(self)).items():
            value = getattr(self, name)
            for choices in (get_args(t) for t in (type_, *get_args(type_)) if get_origin(t) is Literal):
                if value is not None and value not in choices:
                    raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}.")


_INF = float("inf")
_RANGES = {
    "resolution": (1, _INF),
    "num_validation_images": (1, _INF),
    "num_train_timesteps": (1, _INF),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "min_snr_gamma": (0, _INF),
    "class_dropout_prob": (0, 1),
    "batch_size": (1, _INF),
    "num_epochs": (1, _INF),
    "max_train_steps": (1, _INF),
    "learning_rate": (0, _INF),
    "lr_warmup_steps": (0, _INF),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "weight_decay": (0, _INF),
    "max_grad_norm": (0, _INF),
    "num_cpu_threads": (1, 1024),
    "gradient_accumulation_steps": (1, _INF),
    "lr_decay_share": (0, 1),
    "max_train_minutes": (0, _INF),
    "num_ema_snapshots": (0, _INF),
    "checkpointing_steps": (0, _INF),
    "checkpoints_total_limit": (1, _INF),
    "logging_steps": (1, _INF),
    "patience": (1, _INF),
    "save_images_epochs": (0, _INF),
    "num_images_per_class": (1, _INF),
    "num_inference_steps": (1, _INF),
}


def checked_arguments(class_: type, arguments: dict[str, Any], prefix: str, skip: set[str]) -> dict[str, Any]:
    """`arguments` checked against the signature of `class_`, which stays their one definition; defaults filled in.

    Raises:
        ValueError: an argument that the class does not have, one of `skip`, or a value of the wrong type.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    names = parser.add_class_arguments(class_, skip=skip)
    for name in arguments:
        if name not in names:
            reason = "is set by the data" if name in skip else f"is not one of {', '.join(names)}"
            raise ValueError(f"{prefix}.{name}: expected an argument of {class_.__name__}, got one that {reason}.")
    try:
        return parser.parse_object(arguments).as_dict()
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{prefix}: {' '.join(str(error).split())}") from None
