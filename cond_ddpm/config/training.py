"""The settings of a training run, `cond-ddpm train` and `train_cond_ddpm.py`.

May import: `config.settings, config.data, config.publishing`. Next in the data flow: `cond_ddpm/data/` loads what `dataset`
names.
"""

from pathlib import Path
from typing import Any, Literal

from cond_ddpm.config.data import PreparationConfig
from cond_ddpm.config.publishing import LicenceConfig
from cond_ddpm.config.settings import setting

Model = Literal["simple", "attention", "hybrid"]


class TrainConfig(PreparationConfig, LicenceConfig):
    """Settings of `train`, named as in diffusers' training scripts, except that `batch_size` is the whole batch.

    The defaults are the hybrid UNet's recipe. The presets of the original study have that study's.
    """

    # The data
    dataset: str = setting(
        default="cifar10",
        help="Hub id, local folder or parquet file of the labelled images, or the embedded mnist5k.",
        is_path=True,
    )
    train_split: str = setting(default="train", help="Split to train on.")
    class_sampling: Literal["natural", "balanced"] = setting(
        default="natural",
        help="natural: each image once in an epoch; balanced: each class equally often, so small classes repeat.",
    )

    augmentation_prob: float = setting(
        unless_chosen=0.0,
        help="Probability of each change of a training image (shifted, enlarged, turned; mirrored, unless random_flip does"
        " that), of which the network is told, so that its samples do not have it; 0 for none.",
        at_least=0,
        at_most=1,
    )

    # The network
    init_from: str | None = setting(
        default=None,
        help="Pipeline folder or Hub id whose weights the training starts from. The network's options, and the images' size"
        " and channels, are its own unless given; classes of the same name keep what it has learned of them.",
        is_path=True,
    )
    model: Model = setting(unless_chosen="hybrid", help="Which UNet.")
    unet: dict[str, Any] = setting(
        default=dict, help="Any argument of that UNet, as --unet.NAME VALUE: --unet.block_out_channels [64,128]."
    )

    # The diffusion
    num_train_timesteps: int = setting(default=1000, help="Number of timesteps of the noise schedule.", at_least=1)
    beta_start: float = setting(default=1e-4, help="First beta of the noise schedule.", above=0, below=1)
    beta_end: float = setting(default=0.02, help="Last beta of the noise schedule.", above=0, below=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = setting(
        default="linear", help="How the betas go from the first to the last; squaredcos_cap_v2 is the cosine schedule."
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = setting(
        default="v_prediction", help="What the UNet predicts."
    )
    timestep_sampling: Literal["uniform", "logit_normal"] = setting(
        default="uniform", help="Distribution of the timesteps trained on."
    )
    min_snr_gamma: float | None = setting(
        default=5.0, help="Gamma of the min-SNR loss weights (5 in the paper); null for an unweighted loss.", above=0
    )
    class_dropout_prob: float = setting(
        default=0.1,
        help="Probability that a label is replaced by the null label, which classifier-free guidance needs.",
        at_least=0,
        at_most=1,
    )
    model_guidance_scale: float = setting(
        default=1.0,
        help="Guidance that the network itself learns (model guidance), so that samples need one forward pass a step and"
        " guidance_scale 1; 1 for none.",
        at_least=1,
        may_change=True,
    )
    model_guidance_share: float = setting(
        default=0.5,
        help="Share of the run, at its end, that learns that guidance. The best weights are chosen anew when it begins.",
        at_least=0,
        at_most=1,
        may_change=True,
    )

    # How long, and with it how large a network, in what steps
    minutes: float | None = setting(
        default=None,
        help="Minutes to train for, by which the size of the network, the batch, the steps and the learning rate are chosen"
        " where they are not given (docs/how_to/minutes.md). If no length is given at all, 30.",
        above=0,
        may_change=True,
        replaces="max_train_minutes",
    )
    num_epochs: int = setting(unless_chosen=50, help="Passes over the training images.", at_least=1, may_change=True)
    max_train_steps: int | None = setting(
        default=None, help="Stop after this many optimizer steps, whatever num_epochs says.", at_least=1, may_change=True
    )
    max_train_minutes: float | None = setting(
        default=None,
        help="Stop after this time, to which the learning-rate schedule adapts; or at max_train_steps, if that is sooner.",
        above=0,
        may_change=True,
    )
    validation_epochs: int = setting(
        unless_chosen=1,
        help="Passes over the training images after which the weights are validated, and kept if they are the best so far.",
        at_least=1,
    )

    # The optimizer
    batch_size: int = setting(
        unless_chosen=64,
        help="Images in an optimizer step, over all processes together; if not given, no more than there are to train on.",
        at_least=1,
    )
    optimizer: Literal["adamw", "muon"] = setting(
        default="muon",
        help="muon orthogonalises the updates of the hidden weight matrices, and AdamW updates the rest; adamw updates all.",
    )
    muon_iterations: Literal[3, 5] = setting(
        default=5, help="Iterations by which muon orthogonalises an update: 5 as published, or 3, which cost less."
    )
    learning_rate: float = setting(
        unless_chosen=3e-3,
        help="Learning rate after warm-up. Muon's updates are scaled to AdamW's, so one fits both.",
        above=0,
    )
    lr_scheduler: Literal["constant", "cosine", "linear", "1-sqrt"] = setting(
        default="linear", help="Learning-rate schedule after warm-up: constant, or a decay to zero by the end of the run."
    )
    lr_decay_share: float = setting(
        default=0.5,
        help="Share of the run, at its end, over which the learning rate decays.",
        at_least=0,
        at_most=1,
        may_change=True,
    )
    lr_warmup_steps: int = setting(unless_chosen=200, help="Steps of linear warm-up.", at_least=0)
    adam_beta1: float = setting(default=0.9, help="AdamW's decay rate of the first moment.", at_least=0, below=1)
    adam_beta2: float = setting(default=0.95, help="AdamW's decay rate of the second moment.", at_least=0, below=1)
    adam_epsilon: float = setting(default=1e-8, help="AdamW's epsilon.", above=0)
    weight_decay: float = setting(default=0.01, help="Decoupled weight decay.", at_least=0)
    max_grad_norm: float = setting(default=1.0, help="Clip the gradient to this norm; 0 for no clipping.", at_least=0)
    gradient_accumulation_steps: int = setting(
        default=1, help="Parts in which each process computes its share of the batch, to need less memory.", at_least=1
    )

    # The machine
    mixed_precision: Literal["no", "fp16", "bf16", "auto"] | None = setting(
        default=None,
        help="Autocast type; auto is what is fast on the hardware it begins on; if not given, that of `accelerate launch`.",
    )
    compile: bool = setting(
        default=False,
        help="torch.compile the UNet: up to a minute at the start, then faster; left out, with a warning, where there is no"
        " compiler.",
        may_change=True,
    )
    channels_last: bool = setting(
        default=False, help="Memory format of the convolutions: faster with compile, slower without it on CPUs."
    )
    num_cpu_threads: int | None = setting(
        default=None,
        help="CPU threads of each process; if not given, OMP_NUM_THREADS; if nobody set that, the usable cores divided by the"
        " processes on this machine (the 1 that `accelerate launch` and torchrun set by themselves does not count).",
        at_least=1,
        at_most=1024,
        may_change=True,
    )

    # The averages, and when to stop
    use_ema: bool = setting(default=True, help="Keep a moving average of the weights, which is validated, sampled and saved.")
    ema_std: float = setting(
        default=0.05, help="Relative width of that average, as a share of the run so far (EDM2).", above=0, below=0.288
    )
    num_ema_snapshots: int = setting(
        default=20,
        help="How many times to save two averages, from which `cond-ddpm ema` makes others; 0 for never.",
        at_least=0,
        may_change=True,
    )
    patience: int | None = setting(
        default=10,
        help="Stop when the validation loss has not improved for this many validations; null for never.",
        at_least=1,
        may_change=True,
    )
    seed: int = setting(
        default=0,
        help="Seed of the weights, the order and the noise; a run is a function of it.",
        at_least=0,
        at_most=2**32 - 1,
    )

    # The run folder
    output_dir: str = setting(default="runs/cond-ddpm", help="Folder of the run.", may_change=True, is_path=True)
    overwrite_output_dir: bool = setting(default=False, help="Replace the run that is there.", may_change=True)
    resume_from_checkpoint: str | None = setting(
        default=None,
        help="Resume from `latest` (or start, if there is no checkpoint yet), from a checkpoint-N of the run, or from a path.",
        may_change=True,
        is_path=True,
    )
    checkpointing_steps: int = setting(
        default=500, help="Write checkpoint-N every this many steps, and at the end; 0 for never.", at_least=0, may_change=True
    )
    checkpoints_total_limit: int | None = setting(
        default=2, help="How many checkpoints to keep; null for all.", at_least=1, may_change=True
    )
    report_to: Literal["tensorboard", "wandb", "trackio", "none"] = setting(
        default="tensorboard", help="Tracker of losses and images; metrics.jsonl is always written.", may_change=True
    )
    logging_steps: int | None = setting(
        default=None,
        help="Read the losses every this many steps; if not given, 1 on a CPU and 10 where reading waits for the device.",
        at_least=1,
        may_change=True,
    )
    save_images_epochs: int = setting(
        unless_chosen=5,
        help="Draw a grid of samples every this many epochs that are validated, and at the end; 0 for never.",
        at_least=0,
        may_change=True,
    )
    num_images_per_class: int = setting(default=8, help="Columns of that grid.", at_least=1, may_change=True)
    num_inference_steps: int = setting(
        unless_chosen=10,
        help="Steps of the sampler for that grid, and default of the saved pipeline.",
        at_least=1,
        may_change=True,
    )
    guidance_scale: float = setting(
        unless_chosen=1.0, help="Guidance of that grid, and default of the saved pipeline; 1 for none.", may_change=True
    )
    push_to_hub: bool = setting(
        default=False, help="Publish the pipeline at the end of the run, as `cond-ddpm publish` does.", may_change=True
    )
    hub_model_id: str | None = setting(default=None, help="USER/NAME to publish it under.", may_change=True)
    hub_private_repo: bool = setting(default=False, help="Make the repository private.", may_change=True)

    def check(self) -> None:
        super().check()
        if self.minutes is not None and self.max_train_minutes not in (None, self.minutes):
            raise ValueError(
                f"max_train_minutes: expected none with minutes, which sets it, got {self.max_train_minutes:g}; give one of"
                " them."
            )
        for name in ("dataset", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a name or a path, got nothing.")
        if self.push_to_hub != (self.hub_model_id is not None):
            raise ValueError("push_to_hub, hub_model_id: expected both or neither; give --hub_model_id USER/NAME.")
        if self.beta_schedule == "squaredcos_cap_v2" and (self.beta_start, self.beta_end) != (1e-4, 0.02):
            raise ValueError("beta_start, beta_end: expected none with beta_schedule squaredcos_cap_v2, which has no betas.")
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"beta_start: expected at most beta_end, {self.beta_end:g}, got {self.beta_start:g}; noise grows with time."
            )
        for name in ("guidance_scale", "model_guidance_scale"):
            if self.class_dropout_prob == 0 and getattr(self, name) not in (None, 1):
                raise ValueError(
                    f"{name}: expected 1 with class_dropout_prob 0, which trains no null label to guide by, got"
                    f" {getattr(self, name)}; drop some labels, such as --class_dropout_prob 0.1."
                )

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)


class TrainCommandConfig(TrainConfig):
    """Those of `cond-ddpm train`, which can also only look, and measures."""

    choose_guidance: bool | None = setting(
        default=None,
        help="After the training, try several values of guidance_scale, and make the best, by a judge, the pipeline's default;"
        " this takes at most 5% of the training's time, and is not done after less than two minutes. If not given, it is done"
        " unless guidance_scale is given.",
    )
    dry_run: bool = setting(default=False, help="Print what would run and how long, and run nothing.")
