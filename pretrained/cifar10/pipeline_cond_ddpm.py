"""CondDDPMPipeline draws images of given classes from noise. This file is published beside the model's weights.

May import: the standard library, torch and diffusers, by absolute names; nothing of this package, so that it works alone.
Next in the data flow: `cond_ddpm/sampling.py` calls the pipeline for any number of images on any number of processes.
"""

import contextlib
import copy
import difflib
import hashlib
import importlib
import inspect
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

# How the timesteps are chosen, as settings of a scheduler. "quadratic" is our own; see `_set_timesteps`.
SPACINGS: dict[str, dict[str, Any]] = {
    "leading": {"timestep_spacing": "leading", "use_karras_sigmas": False},
    "trailing": {"timestep_spacing": "trailing", "use_karras_sigmas": False},
    "linspace": {"timestep_spacing": "linspace", "use_karras_sigmas": False},
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},  # Karras 2022, eq. 5
    "quadratic": {"use_karras_sigmas": False},
}
# The samplers by name: a diffusers scheduler and its settings. All are deterministic except ddpm and dpm++sde.
# ddim (eta 0) is DPM-Solver++ of order 1 (Lu 2022, DPM-Solver++, sec. 4.1). Unlike diffusers' DDIMScheduler, it steps to the
# right timestep with any spacing.
_ODE = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
_SDE = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", SPACINGS["trailing"]),
    "ddim": ("DPMSolverMultistepScheduler", {**_ODE, "solver_order": 1, **SPACINGS["trailing"]}),
    "dpm++1": ("DPMSolverMultistepScheduler", {**_ODE, "solver_order": 1, **SPACINGS["karras"]}),
    "dpm++2": ("DPMSolverMultistepScheduler", {**_ODE, "solver_order": 2, **SPACINGS["karras"]}),
    "dpm++3": ("DPMSolverMultistepScheduler", {**_ODE, "solver_order": 3, **SPACINGS["karras"]}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 2, **SPACINGS["karras"]}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, **SPACINGS["karras"]}),
    "heun": ("HeunDiscreteScheduler", SPACINGS["karras"]),
    "euler": ("EulerDiscreteScheduler", SPACINGS["karras"]),
}
DEFAULT_SAMPLER = "dpm++2"  # training saves it with the model
# The schedulers that reach the exact solution for Gaussian data with this pipeline (tests/test_samplers.py). Others need other
# networks or arguments, or silently give wrong images: CogVideoXDDIMScheduler halves the standard deviation.
TESTED_SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
    *("HeunDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"),
)
# Optional files of a pipeline folder: the model card, the results, pictures. A loaded pipeline saves them again.
COMPANIONS = (
    *("README.md", "results.json", "samples.png", "loss.png", "guidance.png"),
    *("results-confusion.png", "results-neighbours.png", "results-copies.png"),
)
# An entry of the metadata of a file of weights: the checksum of all its tensors. safetensors itself would not notice a damage.
CHECKSUM = "sha256"


@dataclass
class CondDDPMPipelineOutput(ImagePipelineOutput):
    """The `images`, and with `return_intermediates=k` the steps that led to them, in the network's range, on the CPU.

    Args:
        images: as `output_type` asks for.
        intermediate_timesteps: (k,), from the first one, of pure noise, to the last.
        intermediate_samples: x_t, (k, N, C, H, W), with a variance of about 1.
        intermediate_predictions: x_0 as predicted at these timesteps, (k, N, C, H, W).

    Both are NaN at steps that an interrupted call did not take.
    """

    intermediate_timesteps: torch.Tensor | None = None
    intermediate_samples: torch.Tensor | None = None
    intermediate_predictions: torch.Tensor | None = None


@dataclass(frozen=True)
class Guidance:
    """The guided prediction `base + scale * (cond - base)`; its settings are arguments of `CondDDPMPipeline.__call__`.

    The base is the unconditional prediction (classifier-free guidance, Ho & Salimans 2022) or, where there is a `guide`, the
    conditional prediction of that worse network (autoguidance, Karras 2024).
    """

    null_label: int  # for the unconditional prediction
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = 0.0
    guide: ModelMixin | None = None

    def predict(
        self, unet: ModelMixin, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor, sigma: float
    ) -> torch.Tensor:
        """The prediction (B, C, H, W) in float32 for `sample`, which is x_t (B, C, H, W) at noise level `sigma`."""
        low, high = self.interval
        if self.scale == 1 or not low < sigma <= high:
            return _forward(unet, sample, timestep, class_labels)
        null_labels = torch.full_like(class_labels, self.null_label)
        if self.guide is not None:
            cond = _forward(unet, sample, timestep, class_labels)
            base = _forward(self.guide, sample, timestep, class_labels)
        elif self.scale == 0 and not self.rescale:
            return _forward(unet, sample, timestep, null_labels)
        else:  # both in one batch, which is faster than two
            labels = torch.cat([null_labels, class_labels])
            base, cond = _forward(unet, torch.cat([sample, sample]), timestep, labels).chunk(2)
        guided = base + self.scale * (cond - base)
        if self.rescale:  # each image by itself (Lin 2024, eq. 15 and 16)
            deviations = cond.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
            guided = guided * (1 + self.rescale * (deviations - 1))
        return guided


@dataclass
class _Call:
    """What a callback can see and change of the call that it belongs to."""

    num_timesteps: int
    guidance_scale: float
    interrupt: bool = False


# The call that this thread is in. It is no attribute of the pipeline, which threads may share, and which a callback may call.
_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextlib.contextmanager
def _running(call: _Call) -> Iterator[None]:
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def _of_call(name: str) -> property:
    return property(lambda self: getattr(_CALL.get(), name), lambda self, value: setattr(_CALL.get(), name, value))


class CondDDPMPipeline(DiffusionPipeline):
    """Draws images of given classes with a class-conditional UNet and a diffusers scheduler.

    Args:
        unet: a model with `forward(sample, timestep, class_labels)` whose config has `sample_size`, `in_channels` and
            `num_classes`; label `num_classes` is its null label.
        scheduler: one of `TESTED_SCHEDULERS`, or a class of your own. To change it, use
            `Scheduler.from_config(pipeline.scheduler.config)`. The predicted x_0 is clipped to [-1, 1], the range of images,
            unless the scheduler's config has `clip_sample` False.
        id2label: the name of each class id, `{0: "airplane", ...}`; None if the classes have no names.
        class_dropout_prob: share of the labels that were replaced by the null label in training. At 0 the null label was
            never trained, so guidance by it is refused. None if it is not known.
        guidance_scale: the default of `__call__`. Briefly trained networks need stronger guidance.
        num_inference_steps: the default of `__call__`, but for DDPM, which needs all timesteps. None is 20, as in every
            folder that was saved before this was a setting.

    Raises:
        ValueError: not exactly one name for each class; a share, a scale or a number of steps out of range; guidance by a
            null label that was never trained.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ("sample", "pred_original_sample", "latents")  # "latents" is diffusers' name of the sample
    # What callbacks read and change, by diffusers' names; there is none outside of a call.
    num_timesteps, _guidance_scale, _interrupt = _of_call("num_timesteps"), _of_call("guidance_scale"), _of_call("interrupt")

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,  # diffusers loads it with strings as keys
        class_dropout_prob: float | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
    ):
        super().__init__()
        channels = unet.config.in_channels
        if getattr(unet.config, "out_channels", channels) != channels:
            got = unet.config.out_channels
            raise ValueError(f"unet: expected as many output channels as input channels, {channels}, got {got}.")
        if id2label is not None:
            id2label = _checked_names(id2label, unet.config.num_classes)
        if class_dropout_prob is not None and not (_is_finite(class_dropout_prob) and 0 <= class_dropout_prob <= 1):
            raise ValueError(f"class_dropout_prob: expected a share from 0 to 1 or None, got {class_dropout_prob!r}.")
        if num_inference_steps is not None:
            # `default_steps` takes no more than there are.
            num_inference_steps = whole_number("num_inference_steps", num_inference_steps, 1)
        # Mark every setting as given: `from_config` passes on only those, and classes differ in their defaults.
        scheduler.register_to_config(_use_default_values=[])
        self.register_modules(unet=unet, scheduler=scheduler)
        defaults = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
        self.register_to_config(id2label=id2label, class_dropout_prob=class_dropout_prob, **defaults)
        self.id2label, self.class_dropout_prob = id2label, class_dropout_prob
        self.guidance_scale, self.num_inference_steps = guidance_scale, num_inference_steps
        self._make_guidance(guidance_scale)  # refuses a scale that no call could use
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self._companions: dict[str, bytes] | None = None
        self._of_hub: dict | None = None  # arguments that find other files of the repository on the Hub it was loaded from

    def class_name(self, label: int | None) -> str:
        """The name of a class id: "horse", or "class 7" where classes have no names; "any class" for None."""
        return "any class" if label is None else (self.id2label or {}).get(label, f"class {label}")

    def label_ids(self, class_labels: int | str | Sequence[int | str] | torch.Tensor) -> list[int]:
        """The ids of labels that are given as ids, as names, or as a mixture of both.

        Raises:
            ValueError: an unknown name, or an id outside [0, num_classes).
        """
        if hasattr(class_labels, "tolist"):  # a tensor or an array, even of a single number
            class_labels = class_labels.tolist()
        if isinstance(class_labels, str) or not isinstance(class_labels, Sequence):
            class_labels = [class_labels]
        if len(class_labels) == 0:
            raise ValueError("class_labels: expected at least one class, got none; give an id or a name for each image.")
        return [self._label_id(label) for label in class_labels]

    def _label_id(self, label: int | str) -> int:
        ids = {name: label for label, name in (self.id2label or {}).items()}
        if isinstance(label, str):
            if label in ids:
                return ids[label]
            if not ids:
                raise ValueError(f"class_labels: this model's classes have no names; got {label!r}, give ids instead.")
            near = difflib.get_close_matches(label, ids, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"class_labels: expected one of {', '.join(ids)}, got {label!r}.{hint}")
        try:
            index = label.__index__()  # accepts int and numpy's integers, but not 7.0
        except (AttributeError, TypeError):
            raise ValueError(f"class_labels: expected ids or names, got {label!r}; give whole numbers.") from None
        last = self.unet.config.num_classes - 1
        if isinstance(label, bool) or not 0 <= index <= last:
            raise ValueError(f"class_labels: expected ids from 0 to {last}, got {label}.")
        return index

    def make_scheduler(self, sampler: str | None = None, timestep_spacing: str | None = None) -> SchedulerMixin:
        """A new scheduler with the betas and the prediction type of this pipeline's own.

        Args:
            sampler: a name in `SAMPLERS`; None for a copy of the pipeline's own scheduler.
            timestep_spacing: a name in `SPACINGS`; None for the sampler's own.

        Raises:
            ValueError: an unknown name; a diffusers scheduler that is not in `TESTED_SCHEDULERS`; a prediction type other
                than epsilon, sample or v_prediction.
        """
        if sampler is not None and sampler not in SAMPLERS:
            raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}.")
        if timestep_spacing is not None and timestep_spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing: expected one of {', '.join(SPACINGS)}, got {timestep_spacing!r}.")
        scheduler_class = type(self.scheduler)
        changes = {} if timestep_spacing is None else SPACINGS[timestep_spacing]
        if sampler is not None:
            class_name, of_sampler = SAMPLERS[sampler]
            scheduler_class, changes = getattr(diffusers, class_name), {**of_sampler, **changes}
        _check_tested(scheduler_class, self.scheduler.config)
        if sampler is None and timestep_spacing is None:
            # A copy, because `from_config` would lose any state that a scheduler of your own has beside its config.
            return copy.deepcopy(self.scheduler)
        setting = {"karras": "use_karras_sigmas", "quadratic": None, None: None}.get(timestep_spacing, "timestep_spacing")
        if setting and setting not in inspect.signature(scheduler_class).parameters:
            raise ValueError(
                f"timestep_spacing: expected a scheduler that has the setting {setting} for {timestep_spacing!r}, got"
                f" {scheduler_class.__name__}, which does not."
            )
        return scheduler_class.from_config({**self.scheduler.config, "_use_default_values": []}, **changes)

    def default_steps(self, scheduler: SchedulerMixin) -> int:
        """The pipeline's own number of steps, or for DDPM all training timesteps, because its samples are poor with fewer."""
        train_steps = scheduler.config.num_train_timesteps
        is_ddpm = isinstance(scheduler, (diffusers.DDPMScheduler, diffusers.DDPMParallelScheduler))
        return train_steps if is_ddpm else min(self.num_inference_steps or 20, train_steps)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        num_images_per_label: int = 1,
        seeds: int | Sequence[int] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        guide: "CondDDPMPipeline | None" = None,
        latents: torch.Tensor | None = None,
        sampler: str | None = None,
        timestep_spacing: str | None = None,
        timesteps: Sequence[int] | None = None,
        batch_size: int = 100,
        output_type: str = "pil",
        return_dict: bool = True,
        return_intermediates: int | None = None,
        callback_on_step_end: Callable[["CondDDPMPipeline", int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample", "latents"),
    ) -> "CondDDPMPipelineOutput | tuple":
        """Draw `num_images_per_label` images of each label.

        With `seeds` or a list of generators, an image depends only on its label and its own seed. It is bitwise the same at
        the same place of any batch of the same size; elsewhere it is the same to within 1/255 (float32), because the rows of
        a matrix product may be rounded differently.

        A call leaves the pipeline unchanged. So threads may call one pipeline at the same time, and a callback may call it
        again, unless diffusers' CPU offload moves the network.

        Args:
            class_labels: ids, names, or a mixture; None for unconditional images.
            generator: one for each image, or a single one for all.
            num_inference_steps: steps of the scheduler, at most its `num_train_timesteps`. None is the pipeline's own, or
                all of them for DDPM. Heun's method takes two forward passes a step, except the last; all other samplers take
                one.
            guidance_scale: `w` in `uncond + w * (cond - uncond)` (Ho & Salimans 2022): 1 is conditional and 0 unconditional,
                at one forward pass a step; other values cost two. None is the pipeline's own, or 1 without class labels.
            num_images_per_label: images of each label, one after the other.
            seeds: one for each image, in place of generators.
            guidance_interval: guide only at noise levels lo < sigma <= hi, where sigma = sqrt((1 - alphas_cumprod) /
                alphas_cumprod), and use the conditional prediction elsewhere (Kynkaanniemi 2024). None guides everywhere.
            guidance_rescale: how far, from 0 to 1, to move the standard deviation of the guided prediction back to that of
                the conditional one (Lin 2024, eq. 15 and 16).
            guide: a pipeline with a worse network for the same images and noise schedule, whose conditional prediction
                replaces the unconditional one (autoguidance, Karras 2024).
            latents: the noise to start from, (N, C, H, W) of variance 1, in place of that drawn from the seeds or generators.
            sampler: one of `SAMPLERS`, in place of the pipeline's own scheduler.
            timestep_spacing: one of `SPACINGS`, in place of the sampler's own.
            timesteps: the timesteps themselves, the highest first, in place of a number and a spacing; for samplers that take
                them: dpm++, ddim, ddpm, heun and euler.
            batch_size: images in a batch; limits the memory.
            output_type: "pil", "np" (N, H, W, C in [0, 1]), "pt" (N, C, H, W in [0, 1]) or "latent" (N, C, H, W in the
                network's range, [-1, 1], as the last step gave it).
            return_dict: False for a plain tuple.
            return_intermediates: number of steps, from the first to the last, of which to return x_t and the predicted x_0.
            callback_on_step_end: called after each step with the pipeline, the step's index, its timestep and a dict of the
                requested tensors. A new `sample` (or `latents`) in the dict that it returns replaces the sample. As in
                diffusers, it finds the number of steps in the pipeline's `num_timesteps`, may change `_guidance_scale` for the
                steps to come (1 turns guidance off, 0 is unconditional), and ends the call by `_interrupt = True`; the call
                then returns the images that it has begun. All three belong to this call alone.
            callback_on_step_end_tensor_inputs: any of "sample" (the scheduler's, after the step), "latents" (the same) and
                "pred_original_sample". The `tensor_inputs` of one of diffusers' callback objects take precedence.

        Raises:
            ValueError: an argument out of range; guidance by a null label that was never trained; a scheduler that is not in
                `TESTED_SCHEDULERS`, or timesteps that it gets wrong; a network whose predictions are not finite.
        """
        ids = [self.unet.config.num_classes] if class_labels is None else self.label_ids(class_labels)
        num_images_per_label = whole_number("num_images_per_label", num_images_per_label, 1)
        labels = [label for label in ids for _ in range(num_images_per_label)]
        generator = _image_generators(generator, seeds, len(labels))
        guidance = self._make_guidance(guidance_scale, guidance_interval, guidance_rescale, guide, class_labels is None)
        if output_type not in ("latent", "pil", "np", "pt"):
            raise ValueError(f"output_type: expected 'latent', 'pil', 'np' or 'pt', got {output_type!r}.")
        batch_size = whole_number("batch_size", batch_size, 1)
        tensor_inputs = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        unknown = set(tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            names = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs: expected names among {names}, got {sorted(unknown)}.")

        train_steps = self.scheduler.config.num_train_timesteps
        if timesteps is not None:
            if num_inference_steps is not None or timestep_spacing is not None:
                raise ValueError("timesteps: expected neither num_inference_steps nor timestep_spacing beside it.")
            timesteps = [whole_number("timesteps", timestep, 0, train_steps - 1) for timestep in timesteps]
            if sorted(set(timesteps), reverse=True) != timesteps:
                raise ValueError(f"timesteps: expected the highest first, and each once, got {timesteps}.")
            timestep_spacing, num_inference_steps = "quadratic", len(timesteps)
        scheduler = self.make_scheduler(sampler, timestep_spacing)
        steps = self.default_steps(scheduler) if num_inference_steps is None else num_inference_steps
        steps = whole_number("num_inference_steps", steps, 1, train_steps, " (the training timesteps)")
        if timestep_spacing == "quadratic" and timesteps is None:
            timesteps = _quadratic(steps, train_steps - 1)
        _set_timesteps(scheduler, steps, timesteps, self._execution_device)
        forwards = len(scheduler.timesteps)
        kept = _evenly_spaced(return_intermediates, forwards)
        size = self.unet.config.sample_size
        shape = (len(labels), self.unet.config.in_channels, size, size)
        kept_samples, kept_predictions = torch.full((2, len(kept), *shape), torch.nan)
        if latents is not None and latents.shape != shape:
            raise ValueError(f"latents: expected noise of shape {shape}, got {tuple(latents.shape)}.")
        call = _Call(forwards, guidance.scale)

        def after_step(index, timestep, noisy, original, sample):
            """Keep the intermediates, call the callback, and return the sample to continue with."""
            if index in kept:
                kept_samples[kept.index(index), batch] = noisy.cpu()
                kept_predictions[kept.index(index), batch] = original.cpu()
            if callback_on_step_end is not None:
                tensors = {"sample": sample, "latents": sample, "pred_original_sample": original}
                requested = {name: tensors[name] for name in tensor_inputs}
                returned = callback_on_step_end(self, index, timestep, requested) or {}
                changed = [returned[name] for name in ("sample", "latents") if returned.get(name, sample) is not sample]
                sample = changed[0] if changed else sample
            bar.update()
            return sample

        pictures, starts = [], range(0, len(labels), batch_size)
        with self.progress_bar(total=len(starts) * forwards) as bar, _running(call):
            for start in starts:
                batch = slice(start, start + batch_size)
                generators = generator[batch] if isinstance(generator, list) else generator
                noise = None if latents is None else latents[batch]
                sample = self._denoise(call, copy.deepcopy(scheduler), guidance, labels[batch], generators, noise, after_step)
                as_type = output_type if output_type in ("latent", "pil") else "pt"
                pictures += self.image_processor.postprocess(sample, output_type=as_type)
                if call.interrupt:
                    break
        self.maybe_free_model_hooks()
        images = pictures if output_type == "pil" else torch.stack(pictures)
        if output_type == "np":
            images = VaeImageProcessor.pt_to_numpy(images)
        output = CondDDPMPipelineOutput(images)
        if kept:
            begun = (kept_samples[:, : len(pictures)], kept_predictions[:, : len(pictures)])
            output = CondDDPMPipelineOutput(images, scheduler.timesteps[kept].cpu(), *begun)
        return output if return_dict else output.to_tuple()

    def _denoise(
        self,
        call: _Call,
        scheduler: SchedulerMixin,
        guidance: Guidance,
        labels: list[int],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        after_step: Callable,
    ) -> torch.Tensor:
        """One batch, from noise to images (B, C, H, W) in [-1, 1], in float32 whatever the type of the network's weights."""
        config, device = self.unet.config, self._execution_device
        class_labels = torch.tensor(labels, device=device)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        step_arguments = {"generator": generator} if takes_generator else {}
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        sample = latents.to(device, torch.float32) * scheduler.init_noise_sigma
        sigmas = _noise_levels(scheduler)
        for index, (timestep, sigma) in enumerate(zip(scheduler.timesteps, sigmas)):
            noisy = scheduler.scale_model_input(sample, timestep)  # x_t = alpha x_0 + sigma alpha noise
            prediction = guidance.predict(self.unet, noisy, timestep, class_labels, sigma)
            if (
                index in (0, len(sigmas) - 1) and not prediction.isfinite().all()
            ):  # not at every step, because this waits for the device
                raise ValueError(
                    f"unet: expected finite predictions, got NaN or infinity at timestep {timestep:g}; its weights are"
                    " damaged, or its type overflows: load it again, in float32 or bfloat16."
                )
            prediction, original = _clip_predicted_original(scheduler, prediction, noisy, sigma)
            sample = scheduler.step(prediction, timestep, sample, **step_arguments).prev_sample
            sample = after_step(index, timestep, noisy, original, sample)
            if call.interrupt:
                break
            if call.guidance_scale != guidance.scale:  # a callback changed it
                if call.guidance_scale != 1 and guidance.guide is None:
                    _check_null_label(self, f"_guidance_scale={call.guidance_scale:g}")
                guidance = replace(guidance, scale=call.guidance_scale)
        return sample

    def _make_guidance(self, scale=None, interval=None, rescale=0.0, guide=None, unconditional: bool = False) -> Guidance:
        """The guidance that these arguments of `__call__` describe; a ValueError if this pipeline cannot have it."""
        if scale is None:
            scale = 1.0 if unconditional else self.guidance_scale
        if not _is_finite(scale):
            raise ValueError(f"guidance_scale: expected a finite number, got {scale!r}.")
        levels = (0.0, math.inf) if interval is None else interval
        if not isinstance(levels, Sequence) or len(levels) != 2 or not 0 <= levels[0] < levels[1]:
            raise ValueError(f"guidance_interval: expected noise levels (lo, hi), 0 <= lo < hi, got {interval}.")
        if not 0 <= rescale <= 1:
            raise ValueError(f"guidance_rescale: expected a share from 0 to 1, got {rescale}.")
        if scale == 1 and (guide is not None or interval is not None or rescale):
            raise ValueError(
                "guidance_scale: expected a value other than 1 with guide, guidance_interval or guidance_rescale, which have"
                " no effect at 1, got 1; set it, or leave them out."
            )
        if unconditional:
            _check_null_label(self, "class_labels=None")
        if guide is not None:
            self._check_guide(guide)
            if unconditional:
                _check_null_label(guide, "class_labels=None with this guide")
        elif scale != 1:
            _check_null_label(self, f"guidance_scale={scale:g}")
            if unconditional and scale != 0:
                raise ValueError(
                    f"guidance_scale: expected 0 or 1 with class_labels=None, got {scale}; there is no class to guide towards."
                )
        return Guidance(self.unet.config.num_classes, scale, tuple(levels), rescale, None if guide is None else guide.unet)

    def _check_guide(self, guide: "CondDDPMPipeline") -> None:
        """Only public attributes of the guide are read: its class may be the one that came with its own folder."""
        if not isinstance(guide, DiffusionPipeline) or not hasattr(guide, "label_ids"):
            raise ValueError(f"guide: expected a CondDDPMPipeline, got {type(guide).__name__}; load one by from_pretrained.")
        for name in ("sample_size", "in_channels", "out_channels", "num_classes"):
            own, other = (getattr(network.config, name, None) for network in (self.unet, guide.unet))
            if own != other:
                raise ValueError(f"guide: expected a network of the same {name}, {own}, got {other}.")
        if guide.unet.device != self.unet.device:
            raise ValueError(
                f"guide: expected it on {self.unet.device}, got {guide.unet.device}; move it by guide.to(device)."
            )
        if self.id2label and guide.id2label and self.id2label != guide.id2label:
            raise ValueError(f"guide: expected the classes {self.id2label}, got {guide.id2label}.")
        own, other = self.scheduler, guide.scheduler
        same_betas = torch.equal(own.alphas_cumprod.cpu(), other.alphas_cumprod.cpu())
        if not same_betas or own.config.prediction_type != other.config.prediction_type:
            raise ValueError(
                f"guide: expected the noise schedule and prediction_type of this pipeline ({own.config.prediction_type}),"
                f" got {other.config.prediction_type if same_betas else 'another noise schedule'}; train both with the same."
            )

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json, the companions, the code of each class that is not diffusers' own, the weights' checksums.

        diffusers alone would copy no code and would name our classes by their dotted module, which its loader rejects. With
        [file stem, class] and the file in the folder, `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`
        loads the folder where this package is not installed.
        """
        if push_to_hub:
            raise ValueError("save_config writes no weights; to publish them too, call pipeline.push_to_hub(repo_id).")
        super().save_config(save_directory, **kwargs)
        folder = Path(save_directory)
        for name, content in self.companions.items():
            (folder / name).write_bytes(content)
        code = {"_class_name": _copy_code(type(self), folder)}
        for name, component in self.components.items():
            component = getattr(component, "_orig_mod", component)  # publish the network without torch.compile's wrapper
            if not type(component).__module__.startswith("diffusers."):
                code[name] = _copy_code(type(component), folder / name)
            if (folder / name / component.config_name).is_file():
                _edit_json(folder / name / component.config_name, {})
            for weights in (folder / name).glob("*.safetensors"):
                _add_checksum(weights)
        _edit_json(folder / self.config_name, code)

    @property
    def companions(self) -> dict[str, bytes]:
        """The contents of the files in `COMPANIONS`, by name, which `save_pretrained` writes too.

        Until they are set, they are read from where this pipeline was loaded. (There are none if diffusers loaded it from the
        Hub, because diffusers does not keep the revision.)
        """
        if self._companions is None:
            where, hub, self._companions = self.name_or_path, self._of_hub or {}, {}
            is_folder = bool(where) and Path(where).is_dir()
            for name in COMPANIONS if is_folder or hub else ():
                file = Path(where, name) if is_folder else _installed("files").hub_file(where, name, **hub)
                with contextlib.suppress(OSError):  # there is no such file, or the folder is gone
                    if file is not None:
                        self._companions[name] = file.read_bytes()
        return self._companions

    @companions.setter
    def companions(self, files: dict[str, bytes]) -> None:
        if set(files) - set(COMPANIONS):
            raise ValueError(f"companions: expected names among {', '.join(COMPANIONS)}, got {', '.join(files)}.")
        self._companions = dict(files)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        unet: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        id2label: dict[int, str] | None = None,
        class_dropout_prob: float | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        variant: str | None = None,
        device_map: str | dict | None = None,
        cache_dir: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        proxies: dict | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        *,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        max_memory: dict | None = None,
        low_cpu_mem_usage: bool | None = None,
        offload_folder: str | Path | None = None,
        offload_state_dict: bool | None = None,
        use_safetensors: bool | None = None,
        disable_mmap: bool | None = None,
        quantization_config: Any = None,
        trust_remote_code: bool = False,
    ) -> "CondDDPMPipeline":
        """Load a folder or a Hub repository with the installed classes; unlike diffusers' loader, run none of its code.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or the name of a repository with its files.
            unet, scheduler, id2label, class_dropout_prob, guidance_scale, num_inference_steps: used in place of the saved
                ones.
            dtype: of the network, or, as in diffusers, a dict with the entry "unet" or "default"; `torch_dtype` is its old
                name.
            device_map: as in the UNet's `from_pretrained`; "balanced" is the accelerator, if there is one.
            variant, max_memory, low_cpu_mem_usage, offload_folder, offload_state_dict, use_safetensors, disable_mmap: as in
                the UNet's `from_pretrained`; None is its default.
            quantization_config: likewise.
            trust_remote_code: accepted as everywhere in diffusers; no code of the repository is run in either case.
            cache_dir, force_download, local_files_only, proxies, revision, token: as everywhere in diffusers.

        Raises:
            ValueError: the folder holds another pipeline, or a network that this package does not have; the weights lack a
                tensor, or are not those of the checksum that `save_pretrained` put into their file; there are none of this
                variant; a file is not what `save_pretrained` wrote.
            OSError: there is no such folder or repository; a file is missing or not JSON.
        """
        where = str(pretrained_model_name_or_path)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "force_download": force_download, "proxies": proxies}
        hub |= {"local_files_only": local_files_only, "revision": revision, "token": token}
        index = cls.load_config(where, **hub)
        class_name = index.get("_class_name") if isinstance(index, dict) else None
        if (class_name[-1] if isinstance(class_name, list) and class_name else class_name) != cls.__name__:
            raise ValueError(
                f"{where}: expected a {cls.__name__}, got a {class_name} in its model_index.json; load other pipelines by"
                " DiffusionPipeline.from_pretrained."
            )
        if unet is None:
            unet_class = _installed_model(*_module_and_class(index, "unet"))
            if device_map == "balanced":  # of all networks over all devices; here there is one
                accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
                device_map = None if accelerator is None else accelerator.type
            weights: dict[str, Any] = {
                "torch_dtype": _network_dtype(dtype, torch_dtype),
                "variant": variant,
                "device_map": device_map,
                "max_memory": max_memory,
                "low_cpu_mem_usage": low_cpu_mem_usage,
                "offload_folder": offload_folder,
                "offload_state_dict": offload_state_dict,
                "use_safetensors": use_safetensors,
                "disable_mmap": disable_mmap,
                "quantization_config": quantization_config,
            }
            weights = {name: value for name, value in weights.items() if value is not None}
            with one_line_errors(f"{where}, unet"):
                _component_config(unet_class, where, "unet", hub)
                _check_weights(Path(where, "unet"), variant)
                try:
                    unet = unet_class.from_pretrained(where, subfolder="unet", **hub, **weights)
                except OSError as error:
                    if variant is None:
                        raise
                    # in the words of diffusers' own pipelines
                    raise ValueError(
                        f"{where}: You are trying to load the model files of the `variant={variant}`, but no such modeling"
                        f" files are available: {' '.join(str(error).split())}"
                    ) from error
            _log(f"Loaded unet as {unet_class.__name__} from `unet` subfolder of {where}.")
        if scheduler is None:
            scheduler_class = installed_scheduler(*_module_and_class(index, "scheduler"))
            with one_line_errors(f"{where}, scheduler"):
                scheduler = scheduler_class.from_config(_component_config(scheduler_class, where, "scheduler", hub))
                _check_numbers(scheduler)
            _log(f"Loaded scheduler as {scheduler_class.__name__} from `scheduler` subfolder of {where}.")
        if class_dropout_prob is None:
            class_dropout_prob = index.get("class_dropout_prob")
        if guidance_scale is None:
            guidance_scale = index.get("guidance_scale", 1.0)
        if num_inference_steps is None:
            num_inference_steps = index.get("num_inference_steps")
        names = id2label or index.get("id2label")
        pipeline = cls(unet, scheduler, names, class_dropout_prob, guidance_scale, num_inference_steps)
        pipeline.register_to_config(_name_or_path=where)
        pipeline._of_hub = None if Path(where).is_dir() else hub
        if isinstance(device_map, str):  # as in diffusers
            pipeline.hf_device_map = device_map
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "CondDDPMPipeline":
        """Another pipeline that shares the network and the scheduler of this one; they are not copied.

        Args:
            pipeline: a `CondDDPMPipeline`, or another pipeline with such a network and scheduler.
            kwargs: arguments of this class in place of the pipeline's own; and `dtype`, or `torch_dtype`, to which the shared
                network is then converted. (diffusers would convert it to float32 if neither is given.)
        """
        dtype = _network_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        kwargs.pop("trust_remote_code", None)  # no code is loaded here
        names = list(inspect.signature(cls).parameters)
        given = {name: value for name, value in pipeline.config.items() if name in names} | pipeline.components
        other = cls(**{name: value for name, value in given.items() if name in names} | kwargs)
        if pipeline.name_or_path is not None:
            other.register_to_config(_name_or_path=pipeline.name_or_path)
        other._of_hub = getattr(pipeline, "_of_hub", None)
        other._companions = getattr(pipeline, "_companions", None)
        return other if dtype is None else other.to(dtype=dtype)


def _is_finite(value: float) -> bool:
    """Whether a value is a finite number, also one of torch's or numpy's."""
    try:
        return math.isfinite(value)
    except (TypeError, ValueError):
        return False


def whole_number(name: str, value: int, low: int, high: int | None = None, what: str = "") -> int:
    """The value as an int, also from numpy's integers; a ValueError outside [low, high] or for anything else."""
    number = value.__index__() if hasattr(value, "__index__") and not isinstance(value, bool) else None
    if number is None or number < low or (high is not None and number > high):
        expected = f"{low} or more" if high is None else f"{low} to {high}{what}"
        raise ValueError(f"{name}: expected {expected}, got {value!r}.")
    return number


def _checked_names(id2label: dict, num_classes: int) -> dict[int, str]:
    """The names by ids, which are strings where they come from JSON."""
    try:
        names = {int(label): str(name) for label, name in id2label.items()}
    except (AttributeError, TypeError, ValueError):
        names = {}
    if sorted(names) != list(range(num_classes)) or len(set(names.values())) < num_classes:
        raise ValueError(
            f"id2label: expected {{id: name}} with a different name for each id from 0 to {num_classes - 1}, got {id2label!r};"
            " name every class of the model, or none."
        )
    return names


def _check_null_label(pipeline: CondDDPMPipeline, argument: str) -> None:
    if pipeline.class_dropout_prob == 0:
        raise ValueError(
            f"{argument}: expected a model trained with label dropout, got one whose null label was never trained"
            " (class_dropout_prob 0); give class_labels and guidance_scale 1, or a guide."
        )


def _image_generators(generator, seeds, num_images: int) -> torch.Generator | list[torch.Generator] | None:
    """A list with a generator for each image if there are seeds or several generators; otherwise the one given, or None."""
    if seeds is not None and generator is not None:
        raise ValueError("seeds: expected no generator as well; give one of the two.")
    if seeds is not None:
        seeds = list(seeds) if isinstance(seeds, Iterable) else [seeds]
        generator = [torch.Generator().manual_seed(whole_number("seeds", seed, 0, 2**64 - 1)) for seed in seeds]
    if isinstance(generator, (list, tuple)) and len(generator) != num_images:
        name = "generator" if seeds is None else "seeds"
        raise ValueError(f"{name}: expected {num_images}, one for each image, got {len(generator)}.")
    return list(generator) if isinstance(generator, tuple) else generator


def _check_tested(scheduler_class: type[SchedulerMixin], config: dict) -> None:
    """A ValueError for a scheduler of diffusers, or a class derived from one, that is not among the tested ones."""
    bases = [base for base in scheduler_class.__mro__ if issubclass(base, SchedulerMixin) and base is not SchedulerMixin]
    origin = next((base.__name__ for base in bases if base.__module__.startswith("diffusers.")), None)  # None: all your own
    if origin is not None and origin not in TESTED_SCHEDULERS:
        raise ValueError(
            f"scheduler: expected one that was tested with this pipeline, {', '.join(TESTED_SCHEDULERS)}, got"
            f" {scheduler_class.__name__}; set pipeline.scheduler to one of them by from_config(pipeline.scheduler.config), or"
            " give a sampler."
        )
    types = ["epsilon", "v_prediction"]
    if origin != "EulerAncestralDiscreteScheduler":  # its step does not know this type
        types.append("sample")
    if config.get("prediction_type", "epsilon") not in types:
        raise ValueError(
            f"prediction_type: expected one of {', '.join(types)} with {scheduler_class.__name__}, got"
            f" {config['prediction_type']!r}."
        )


def _check_numbers(scheduler: SchedulerMixin) -> None:
    """Raise a TypeError for settings of which diffusers makes a scheduler, but one that fails at the first image."""
    limit, betas = scheduler.config.get("clip_sample_range", 1.0), scheduler.config.get("trained_betas")
    if not isinstance(limit, (int, float)):
        raise TypeError(f"clip_sample_range: expected a number, got {str(limit)[:80]!r}")
    steps = scheduler.config.num_train_timesteps
    if betas is not None and not (isinstance(betas, (list, tuple)) and len(betas) == steps):
        raise TypeError(f"trained_betas: expected a number for each of {steps} timesteps, got {str(betas)[:80]!r}")


def _evenly_spaced(count: int | None, steps: int) -> list[int]:
    """Indices of `count` of the steps, including the first and the last."""
    if count is None:
        return []
    if steps < 2:
        raise ValueError(f"return_intermediates: expected two or more steps to choose from, got {steps}; take more steps.")
    count = whole_number("return_intermediates", count, 2, steps, " (the number of steps)")
    return [round(i * (steps - 1) / (count - 1)) for i in range(count)]


def _quadratic(steps: int, last: int) -> list[int]:
    """Dense where there is little noise: t_i = last (i / n)^2, as in DDIM (Song 2021, app. D.2), but from the last timestep
    instead of 0.8 of it, so that sampling starts at pure noise."""
    return [max(round(last * (i / steps) ** 2), i - 1) for i in range(steps, 0, -1)]


def _set_timesteps(scheduler: SchedulerMixin, steps: int, timesteps: list[int] | None, device: torch.device) -> None:
    """Set these timesteps or, if none are given, `steps` by the scheduler's own spacing.

    Raises:
        ValueError: the scheduler cannot, or gets them wrong.
    """
    if timesteps is not None:
        if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(
                "timestep_spacing: expected a scheduler that takes timesteps with 'quadratic' or with timesteps of your own,"
                f" got {type(scheduler).__name__}; take sampler='dpm++2', 'ddim', 'ddpm', 'heun' or 'euler'."
            )
        scheduler.set_timesteps(timesteps=timesteps, device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise diffusers searches for the first timestep, and begins at the second if rounding has made it equal.
        scheduler.set_begin_index(0)
    _check_timesteps(scheduler, steps)


def _check_timesteps(scheduler: SchedulerMixin, steps: int) -> None:
    """A ValueError unless there are `steps` different timesteps that fall from pure noise, all of them trained."""
    name, last = type(scheduler).__name__, scheduler.config.num_train_timesteps - 1
    timesteps = scheduler.timesteps.tolist()
    strides = {here - there for here, there in itertools.pairwise(timesteps)}
    if isinstance(scheduler, diffusers.HeunDiscreteScheduler):  # every timestep except the first appears twice
        timesteps = timesteps[:1] + timesteps[1::2]
    advice = "take another number of steps or another timestep_spacing"
    falling = min(strides, default=0) >= 0 and len(set(_noise_levels(scheduler))) == steps
    if len(timesteps) != steps or min(timesteps) < 0 or max(timesteps) > last or not falling:
        # diffusers' "trailing" has a timestep -1 for 61 steps, 103, and 60 others; its "leading" has only zeros for 1000.
        raise ValueError(
            f"num_inference_steps: {name} makes wrong timesteps ({len(timesteps)}, from {max(timesteps):g} to"
            f" {min(timesteps):g}) for {steps} of {last + 1} steps; {advice}, or another sampler."
        )
    alphas_cumprod = scheduler.alphas_cumprod
    if alphas_cumprod[int(timesteps[0])] > max(0.01, 1.5 * alphas_cumprod[-1]):
        # diffusers' "leading" starts at 500 of 1000 for 501 steps, and at 0 for 1 step.
        raise ValueError(
            f"num_inference_steps: {name} starts {steps} steps at timestep {timesteps[0]:g}, where images are not yet noise;"
            f" {advice}."
        )
    is_ddim = isinstance(scheduler, (diffusers.DDIMScheduler, diffusers.DDIMParallelScheduler))
    if is_ddim and strides - {(last + 1) // steps}:
        # Its step goes to t - T // n, whatever the next timestep is (diffusers #11347).
        raise ValueError(
            f"num_inference_steps: {name} can only step by {last + 1} // {steps}, but its timesteps are spaced differently;"
            f" take sampler='ddim', which is right for any spacing, or {advice}."
        )


def _noise_levels(scheduler: SchedulerMixin) -> list[float]:
    """sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod) at each of the scheduler's timesteps."""
    if hasattr(scheduler, "sigmas"):  # DPM-Solver, UniPC, Heun and Euler have one more, for the image itself
        return scheduler.sigmas[: len(scheduler.timesteps)].tolist()
    alphas_cumprod = scheduler.alphas_cumprod[scheduler.timesteps.long().cpu()]
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt().tolist()


def _forward(unet: ModelMixin, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
    """The network's prediction as float32, (B, C, H, W), for a sample of any dtype."""
    return unet(sample.to(unet.dtype), timestep, class_labels).sample.float()


def _clip_predicted_original(
    scheduler: SchedulerMixin, prediction: torch.Tensor, sample: torch.Tensor, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prediction whose x_0 is clipped to the range of images, and this x_0; all (B, C, H, W), `sample` is x_t.

    The prediction itself is changed, so that a scheduler's step computes its noise from the clipped x_0 too. DDIM's own
    clipping keeps the noise of the unclipped x_0: then x_t drifts off the noise schedule, and guided digits become blobs.
    """
    config = scheduler.config
    alpha = 1 / math.sqrt(1 + sigma**2)  # sqrt(alphas_cumprod)
    std = math.sqrt(1 - alpha**2)
    if config.prediction_type == "epsilon":
        original = (sample - std * prediction) / alpha
    elif config.prediction_type == "v_prediction":
        original = alpha * sample - std * prediction
    else:
        original = prediction
    if not config.get("clip_sample", True):
        return prediction, original
    limit = config.get("clip_sample_range", 1.0)
    original = original.clamp(-limit, limit)
    if config.prediction_type == "epsilon":
        return (sample - alpha * original) / std, original
    if config.prediction_type == "v_prediction":
        return (alpha * sample - original) / std, original
    return original, original


def _copy_code(class_: type, folder: Path) -> list[str]:
    """Copy the file that defines `class_` into `folder`; return [file stem, class], its entry in model_index.json."""
    source = Path(inspect.getfile(class_))
    target = folder / source.name
    if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)
    return [source.stem, class_.__name__]


def _edit_json(file: Path, changes: dict) -> None:
    """Apply `changes`, and remove `_name_or_path`, which would publish a path of this machine."""
    content = json.loads(file.read_text()) | changes
    content.pop("_name_or_path", None)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _header_and_tensors(file: Path) -> tuple[dict, memoryview]:
    """The header of a safetensors file, and all its tensors as bytes."""
    content = memoryview(file.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(bytes(content[8:end])), content[end:]


def _add_checksum(file: Path) -> None:
    """Write the checksum of its tensors into the metadata of a safetensors file, unless there is one."""
    header, tensors = _header_and_tensors(file)
    metadata = header.get("__metadata__", {})
    if CHECKSUM in metadata:
        return
    header["__metadata__"] = {**metadata, CHECKSUM: hashlib.sha256(tensors).hexdigest()}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # for tensors aligned in memory
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as opened:
        for part in (len(text).to_bytes(8, "little"), text, tensors):
            opened.write(part)
    os.replace(partial, file)


def _check_weights(folder: Path, variant: str | None) -> None:
    """Compare the tensors of a folder's files with their checksums; files of other programs and earlier versions have none.

    Raises:
        ValueError: they differ.
    """
    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    for file in (*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*.safetensors")):
        header, tensors = _header_and_tensors(file)
        expected = header.get("__metadata__", {}).get(CHECKSUM)
        if expected is not None and hashlib.sha256(tensors).hexdigest() != expected:
            raise ValueError(
                f"{file}: expected the tensors whose checksum is in the file's metadata, got others: it is damaged; save or"
                " download it again. If you changed them yourself, save them by save_pretrained, or without that metadata."
            )


def _network_dtype(dtype, torch_dtype) -> torch.dtype | None:
    """The network's type, which is given under either name, and may be an entry of a dict, as in diffusers."""
    if dtype is not None and torch_dtype is not None:
        raise ValueError(f"dtype: expected either dtype or its old name torch_dtype, got both, {dtype} and {torch_dtype}.")
    dtype = torch_dtype if dtype is None else dtype
    return dtype.get("unet", dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype


def _log(message: str) -> None:
    """Log what was loaded where diffusers' own loader does, so that its verbosity applies here too."""
    logging.get_logger("diffusers.pipelines.pipeline_utils").info(message)


def _installed(module: str) -> Any:
    """A module of the package around this file; of the installed package where this file is a published copy."""
    return importlib.import_module(f"{__name__.rpartition('.pipelines.')[0] or 'cond_ddpm'}.{module}")


def _installed_model(stem: str, class_name: str) -> type[ModelMixin]:
    """The network class of that name in the package, whatever code a repository has."""
    try:
        return getattr(_installed(f"models.{stem}"), class_name)
    except (ImportError, AttributeError):
        raise ValueError(
            f"unet: expected a network of the installed package, got {class_name} from {stem}.py; install the newest"
            " cond_ddpm, or, if you trust the code in that folder, load it by"
            " DiffusionPipeline.from_pretrained(..., trust_remote_code=True)."
        ) from None


def installed_scheduler(module: str, class_name: str) -> type[SchedulerMixin]:
    """The scheduler class of that name in diffusers."""
    found = getattr(diffusers, class_name, None) if module == "diffusers" else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(
            f"scheduler: expected one of diffusers, got {class_name} from {module}; give one by from_pretrained(...,"
            " scheduler=...)."
        )
    return found


def _module_and_class(index: dict, name: str) -> list[str]:
    """The entry of a component in model_index.json."""
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise ValueError(f"{name}: expected [module, class] in model_index.json, got {entry!r}; save the pipeline again.")
    return entry


def _component_config(class_: type[ModelMixin] | type[SchedulerMixin], where: str, name: str, hub: dict) -> dict:
    """The settings in a component's JSON file. diffusers itself would accept an empty file, and use its default betas."""
    config = class_.load_config(where, subfolder=name, **hub)
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(
            f"{where}, {name}: expected the settings of a {class_.__name__} in {class_.config_name}, got {str(config)[:80]!r};"
            " save or download it again."
        )
    return config


@contextlib.contextmanager
def one_line_errors(where: str) -> Iterator[None]:
    """Turn any error that a damaged file causes into a ValueError of one line that names what was read."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ValueError, OSError)) and not isinstance(error, (json.JSONDecodeError, UnicodeError)):
            raise  # its message already says so
        text = " ".join(str(error).split())
        raise ValueError(
            f"{where}: expected the files that save_pretrained wrote, got {type(error).__name__}: {text}; save or download"
            " them again."
        ) from error
