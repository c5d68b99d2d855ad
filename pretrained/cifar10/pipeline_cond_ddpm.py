"""CondDDPMPipeline: class labels and noise -> images. Published beside the model, so this file must stay self-contained.

May import: the standard library, torch, diffusers (absolute names), nothing of ours.
What is trained by `cond_ddpm/train.py` is saved by `save_pretrained` here: the one writer of the published folder.
"""

import contextlib
import copy
import difflib
import importlib
import inspect
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    HeunDiscreteScheduler,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.hub_utils import _get_model_file
from diffusers.utils.torch_utils import randn_tensor

# How timesteps are chosen, as settings of a scheduler. "quadratic" is ours, see `_set_timesteps`.
SPACINGS = {
    "leading": {"timestep_spacing": "leading", "use_karras_sigmas": False},
    "trailing": {"timestep_spacing": "trailing", "use_karras_sigmas": False},
    "linspace": {"timestep_spacing": "linspace", "use_karras_sigmas": False},
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},  # Karras 2022, eq. 5
    "quadratic": {"use_karras_sigmas": False},
}
# The samplers by name: a diffusers scheduler, and its settings. All deterministic but ddpm and dpm++sde.
# ddim (eta 0) is DPM-Solver++ of order 1 (Lu 2022, DPM-Solver++, sec. 4.1), which unlike diffusers' DDIMScheduler steps to
# the right timestep at any spacing.
_DPM = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
SAMPLERS = {
    "ddpm": ("DDPMScheduler", SPACINGS["trailing"]),
    "ddim": ("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 1, **SPACINGS["trailing"]}),
    "dpm++1": ("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 1, **SPACINGS["karras"]}),
    "dpm++2": ("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 2, **SPACINGS["karras"]}),
    "dpm++3": ("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 3, **SPACINGS["karras"]}),
    "dpm++sde": (
        "DPMSolverMultistepScheduler",
        {**_DPM, "solver_order": 2, **SPACINGS["karras"], "algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, **SPACINGS["karras"]}),
    "heun": ("HeunDiscreteScheduler", SPACINGS["karras"]),
    "euler": ("EulerDiscreteScheduler", SPACINGS["karras"]),
}
# The schedulers that in the loop below come to the exact solution of Gaussian data (tests/test_samplers.py). diffusers' others
# need other networks or arguments, or go wrong without a word: CogVideoXDDIMScheduler gives half the deviation at 320 steps.
TESTED_SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
    *("HeunDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"),
)
# What may lie beside the model in its folder: the card, what was measured, pictures. Saved again with what was loaded.
COMPANIONS = (
    *("README.md", "results.json", "samples.png", "loss.png"),
    *("results-confusion.png", "results-neighbours.png"),
)
DEFAULT_SAMPLER = "dpm++2"  # what training saves with the model, for 20 steps


@dataclass
class CondDDPMPipelineOutput(ImagePipelineOutput):
    """The `images`; and with `return_intermediates=k` how they came to be, in the network's range, on the CPU.

    Args:
        intermediate_timesteps: (k,), from the first, of pure noise, to the last.
        intermediate_samples: x_t, (k, N, C, H, W), of about unit variance.
        intermediate_predictions: the x_0 predicted there, (k, N, C, H, W).
    """

    intermediate_timesteps: torch.Tensor | None = None
    intermediate_samples: torch.Tensor | None = None
    intermediate_predictions: torch.Tensor | None = None


class CondDDPMPipeline(DiffusionPipeline):
    """Images of the classes asked for, from a class-conditional UNet and a diffusers scheduler with its betas.

    Args:
        unet: a model with `forward(sample, timestep, class_labels)` and, in its config, `sample_size`, `in_channels` and
            `num_classes`; label `num_classes` is its null label.
        scheduler: one of `TESTED_SCHEDULERS`, or one's own; another one is made by
            `Scheduler.from_config(pipeline.scheduler.config)`. The predicted x_0 is clipped to [-1, 1], where images are,
            unless its config has `clip_sample` False.
        id2label: name of each class id, `{0: "airplane", ...}`; None where classes have no names.
        class_dropout_prob: share of labels replaced by the null label in training; at 0 that label means nothing, so
            guidance by it is refused. None is not known.
        guidance_scale: of a call that gives none; see `__call__`. A network that was trained for short needs much of it.

    Raises:
        ValueError: names that are not one for each class; a share or a scale that is no number; guidance by a null label
            that was never trained.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ("sample", "pred_original_sample")

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,  # of strings as keys, when diffusers loads it
        class_dropout_prob: float | None = None,
        guidance_scale: float = 1.0,
    ):
        super().__init__()
        channels = {unet.config.in_channels, getattr(unet.config, "out_channels", unet.config.in_channels)}
        if len(channels) > 1:
            raise ValueError(
                f"unet: expected as many channels out as in, got {sorted(channels)}; variances are not sampled by."
            )
        if id2label is not None:
            try:
                id2label = {int(label): str(name) for label, name in id2label.items()}  # JSON made the ids strings
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"id2label: expected {{id: name}} of each class, got {id2label!r}.") from None
            if sorted(id2label) != list(range(unet.config.num_classes)):
                raise ValueError(
                    f"id2label: expected a name for each id from 0 to {unet.config.num_classes - 1}, got ids"
                    f" {sorted(id2label)}; name every class of the model, or none."
                )
            if len(set(id2label.values())) < len(id2label):
                raise ValueError(f"id2label: expected a name of its own for each class, got {list(id2label.values())}.")
        if class_dropout_prob is not None and not (_is_finite(class_dropout_prob) and 0 <= class_dropout_prob <= 1):
            raise ValueError(f"class_dropout_prob: expected a share from 0 to 1 or None, got {class_dropout_prob!r}.")
        # `from_config` hands on what was set, not what was left at its default, and other schedulers have other betas by
        # default: what this one has counts as set.
        scheduler.register_to_config(_use_default_values=[])
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=id2label, class_dropout_prob=class_dropout_prob, guidance_scale=guidance_scale)
        self.id2label, self.class_dropout_prob, self.guidance_scale = id2label, class_dropout_prob, guidance_scale
        self._check_guidance([0], guidance_scale, None, 0.0, None)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self._companions: dict[str, bytes] | None = None
        self._source: tuple[str, dict] | None = None  # where loaded from: folder or repository, and how it is asked for

    def label_ids(self, class_labels: int | str | Sequence[int | str] | torch.Tensor) -> list[int]:
        """The ids of labels given as ids, names, or a mixture.

        Raises:
            ValueError: an unknown name or an id outside [0, num_classes); says which there are.
        """
        if hasattr(class_labels, "tolist"):  # a tensor or an array, also of one number
            class_labels = class_labels.tolist()
        if isinstance(class_labels, str) or not isinstance(class_labels, Sequence):
            class_labels = [class_labels]
        if len(class_labels) == 0:
            raise ValueError("class_labels: expected at least one class, got none; give an id or a name for each image.")
        return [self._label_id(label) for label in class_labels]

    def _label_id(self, label: int | str) -> int:
        num_classes = self.unet.config.num_classes
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
            index = label.__index__()  # int and numpy's integers, not 7.0
        except (AttributeError, TypeError):
            raise ValueError(f"class_labels: expected ids or names, got {label!r}; give whole numbers.") from None
        if isinstance(label, bool) or not 0 <= index < num_classes:
            raise ValueError(f"class_labels: expected ids from 0 to {num_classes - 1}, got {label}.")
        return index

    def make_scheduler(self, sampler: str | None = None, timestep_spacing: str | None = None) -> SchedulerMixin:
        """A new scheduler, which no other call steps with, of the betas and the prediction type of this pipeline's own.

        Args:
            sampler: a name in `SAMPLERS`; None is the pipeline's own scheduler.
            timestep_spacing: a name in `SPACINGS`; None is the sampler's own.

        Raises:
            ValueError: an unknown name; a scheduler of diffusers that is not one of `TESTED_SCHEDULERS`, or predicts by
                something else than epsilon, sample or v_prediction.
        """
        if sampler is not None and sampler not in SAMPLERS:
            raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}.")
        if timestep_spacing is not None and timestep_spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing: expected one of {', '.join(SPACINGS)}, got {timestep_spacing!r}.")
        class_, changes = type(self.scheduler), {}
        if sampler is not None:
            class_name, changes = SAMPLERS[sampler]
            class_ = getattr(importlib.import_module("diffusers"), class_name)
        _check_tested(class_, self.scheduler.config)
        if sampler is None and timestep_spacing is None:
            # A copy, for `from_config` would lose what a scheduler, such as a user's own subclass, has beside its config.
            return copy.deepcopy(self.scheduler)
        changes = {**changes, **SPACINGS.get(timestep_spacing, {})}
        setting = {"karras": "use_karras_sigmas", "quadratic": None, None: None}.get(timestep_spacing, "timestep_spacing")
        if setting and setting not in inspect.signature(class_).parameters:
            raise ValueError(
                f"timestep_spacing: expected a scheduler that has {setting}, got {class_.__name__}, which has not."
            )
        return class_.from_config({**self.scheduler.config, "_use_default_values": []}, **changes)

    @staticmethod
    def default_steps(scheduler: SchedulerMixin) -> int:
        """20, or all the timesteps trained on for DDPM, which is poor at fewer."""
        train_steps = scheduler.config.num_train_timesteps
        return train_steps if isinstance(scheduler, (DDPMScheduler, DDPMParallelScheduler)) else min(20, train_steps)

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
        sampler: str | None = None,
        timestep_spacing: str | None = None,
        batch_size: int = 100,
        output_type: str = "pil",
        return_dict: bool = True,
        return_intermediates: int | None = None,
        callback_on_step_end: Callable[["CondDDPMPipeline", int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> "CondDDPMPipelineOutput | tuple":
        """Sample `num_images_per_label` images for each label.

        With `seeds`, or a list of generators, an image is a function of its label and its own seed: bitwise the same in the
        same place of any batch of the same size, and to within 1/255 (float32) in another place or batch size, where the
        rows of a matrix product may be rounded differently. `cond_ddpm.generate` makes the same batches on any number of
        processes.

        A call changes nothing of the pipeline: it steps with a scheduler of its own. So threads can call one pipeline at the
        same time, and a callback can call it again. (Not where diffusers' CPU offload moves the network about.)

        Args:
            class_labels: ids, names, or both mixed; None for images of no class in particular.
            generator: one for each image, or a single one for them all.
            num_inference_steps: steps of the scheduler, at most its `num_train_timesteps`. None is 20, or all of them for
                DDPM, which is poor at fewer. Heun's method costs two forwards a step (but the last), all others one.
            guidance_scale: `w` in `uncond + w * (cond - uncond)` (Ho & Salimans 2022, written so that 1 is conditional and
                0 unconditional, both at one forward a step; other values cost two, in one batch). None is the pipeline's own
                `guidance_scale`, but 1 where no class is asked for.
            num_images_per_label: images of each label, one after the other.
            seeds: one for each image, in place of generators.
            guidance_interval: guide only at noise levels lo < sigma <= hi, where sigma = sqrt((1 - alphas_cumprod) /
                alphas_cumprod), and be conditional elsewhere (Kynkaanniemi 2024); None is everywhere.
            guidance_rescale: how far, from 0 to 1, to bring the guided prediction's standard deviation back to the
                conditional one's (Lin 2024, eq. 15 and 16).
            guide: a pipeline of a worse network for the same images and schedule, whose conditional prediction takes the
                place of the unconditional one (autoguidance, Karras 2024).
            sampler: one of `SAMPLERS`, in place of the pipeline's own scheduler.
            timestep_spacing: one of `SPACINGS`, in place of the sampler's.
            batch_size: images at a time, which bounds the memory.
            output_type: "pil", "np" (B, H, W, C in [0, 1]) or "pt" (B, C, H, W in [0, 1]).
            return_dict: False for a plain tuple.
            return_intermediates: how many of the steps, evenly spaced from the first to the last, to keep x_t and the
                predicted x_0 of.
            callback_on_step_end: called after each step with the pipeline, the step's index, its timestep and a dict of the
                tensors asked for; a `sample` in the dict that it returns takes the sample's place.
            callback_on_step_end_tensor_inputs: among "sample" (the scheduler's, after the step) and "pred_original_sample".

        Returns:
            `CondDDPMPipelineOutput`.

        Raises:
            ValueError: an argument that does not fit; guidance by a null label that was never trained; a scheduler that is
                not one of `TESTED_SCHEDULERS`, or a spacing of timesteps that it gets wrong; a network whose predictions
                are not finite.
        """
        labels = self._image_labels(class_labels, num_images_per_label)
        if guidance_scale is None:
            guidance_scale = 1.0 if class_labels is None else self.guidance_scale
        if seeds is not None and generator is not None:
            raise ValueError("seeds: expected no generator beside them; give one of the two.")
        if seeds is not None:
            seeds = list(seeds) if isinstance(seeds, Iterable) else [seeds]
            _check_length("seeds", seeds, labels)
            generator = [torch.Generator().manual_seed(whole_number("seeds", seed, 0, 2**64 - 1)) for seed in seeds]
        if isinstance(generator, (list, tuple)):
            generator = list(generator)
            _check_length("generator", generator, labels)
        self._check_guidance(class_labels, guidance_scale, guidance_interval, guidance_rescale, guide)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: expected 'pil', 'np' or 'pt', got {output_type!r}.")
        batch_size = whole_number("batch_size", batch_size, 1)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            names = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs: expected names among {names}, got {sorted(unknown)}.")

        scheduler = self.make_scheduler(sampler, timestep_spacing)
        steps = self._num_steps(scheduler, num_inference_steps)
        quadratic = timestep_spacing == "quadratic"
        _set_timesteps(scheduler, steps, quadratic, self._execution_device)
        forwards = len(scheduler.timesteps)
        kept = _evenly_spaced(return_intermediates, forwards)

        images, intermediates = [], []
        starts = range(0, len(labels), batch_size)
        with self.progress_bar(total=len(starts) * forwards) as bar:
            for start in starts:
                rows = slice(start, start + batch_size)
                _set_timesteps(scheduler, steps, quadratic, self._execution_device)  # forgets the batch before
                sample, of_batch = self._denoise(
                    scheduler,
                    labels[rows],
                    generator[rows] if isinstance(generator, list) else generator,
                    (guidance_scale, guidance_interval or (0.0, math.inf), guidance_rescale, guide),
                    kept,
                    (callback_on_step_end, callback_on_step_end_tensor_inputs),
                    bar,
                )
                images += self.image_processor.postprocess(sample, output_type="pil" if output_type == "pil" else "pt")
                intermediates.append(of_batch)
        self.maybe_free_model_hooks()
        if output_type != "pil":
            images = torch.stack(images)
        steps_kept = (
            (scheduler.timesteps[kept].cpu(), *(torch.cat(tensors, dim=1) for tensors in zip(*intermediates))) if kept else ()
        )
        output = CondDDPMPipelineOutput(
            VaeImageProcessor.pt_to_numpy(images) if output_type == "np" else images,
            *steps_kept,
        )
        return output if return_dict else output.to_tuple()

    def _denoise(self, scheduler, labels, generator, guidance, kept, callback, bar) -> tuple[torch.Tensor, tuple]:
        """The loop: noise -> (B, C, H, W) in [-1, 1], in float32 whatever the network's type; and what is to be kept."""
        config, device = self.unet.config, self._execution_device
        guidance_scale, (low, high), guidance_rescale, guide = guidance
        callback, tensor_inputs = callback
        cond_labels = torch.tensor(labels, device=device)
        null_labels = torch.full_like(cond_labels, config.num_classes)
        sigmas = _noise_levels(scheduler)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        step_kwargs = {"generator": generator} if takes_generator else {}
        noisy, predicted = [], []

        def predict(unet, model_input, timestep, told):
            return unet(model_input.to(unet.dtype), timestep, told).sample.float()

        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        sample = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32) * scheduler.init_noise_sigma
        for index, (timestep, sigma) in enumerate(zip(scheduler.timesteps, sigmas)):
            model_input = scheduler.scale_model_input(sample, timestep)  # x_t = alpha x_0 + sigma alpha noise
            scale = guidance_scale if low < sigma <= high else 1.0
            if scale == 1.0:
                prediction = predict(self.unet, model_input, timestep, cond_labels)
            elif guide is not None:
                cond = predict(self.unet, model_input, timestep, cond_labels)
                prediction = _guided(predict(guide.unet, model_input, timestep, cond_labels), cond, scale, guidance_rescale)
            elif scale == 0.0 and not guidance_rescale:
                prediction = predict(self.unet, model_input, timestep, null_labels)
            else:
                told = torch.cat([null_labels, cond_labels])
                both = predict(self.unet, torch.cat([model_input, model_input]), timestep, told)
                prediction = _guided(*both.chunk(2), scale, guidance_rescale)
            if index in (0, len(sigmas) - 1) and not prediction.isfinite().all():  # not at each step: it waits for the device
                raise ValueError(
                    f"unet: expected finite predictions, got NaN or infinity at timestep {timestep:g}; its weights are broken"
                    " or its type overflows: load it again, in float32 or bfloat16."
                )
            prediction, original = _clip_predicted_original(scheduler, prediction, model_input, sigma)
            sample = scheduler.step(prediction, timestep, sample, **step_kwargs).prev_sample

            if index in kept:
                noisy.append(model_input.cpu())
                predicted.append(original.cpu())
            if callback is not None:
                tensors = {"sample": sample, "pred_original_sample": original}
                changed = callback(self, index, timestep, {name: tensors[name] for name in tensor_inputs})
                sample = (changed or {}).get("sample", sample)
            bar.update()
        return sample, (torch.stack(noisy), torch.stack(predicted)) if kept else ()

    def _image_labels(self, class_labels, num_images_per_label: int) -> list[int]:
        num_images_per_label = whole_number("num_images_per_label", num_images_per_label, 1)
        if class_labels is None:
            self._check_null_label("class_labels=None")
            return [self.unet.config.num_classes] * num_images_per_label
        return [label for label in self.label_ids(class_labels) for _ in range(num_images_per_label)]

    def _check_null_label(self, what: str) -> None:
        if self.class_dropout_prob == 0:
            raise ValueError(
                f"{what}: expected a model trained with its labels dropped now and then, got one whose null label was never"
                " trained (class_dropout_prob 0); give class_labels and guidance_scale 1, or a guide."
            )

    def _check_guidance(self, class_labels, guidance_scale, guidance_interval, guidance_rescale, guide) -> None:
        if not _is_finite(guidance_scale):
            raise ValueError(f"guidance_scale: expected a finite number, got {guidance_scale!r}.")
        interval = (0.0, math.inf) if guidance_interval is None else guidance_interval
        if not isinstance(interval, Sequence) or len(interval) != 2 or not 0 <= interval[0] < interval[1]:
            raise ValueError(f"guidance_interval: expected noise levels (lo, hi), 0 <= lo < hi, got {guidance_interval}.")
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale: expected a share from 0 to 1, got {guidance_rescale}.")
        if guidance_scale == 1 and (guide is not None or guidance_interval is not None or guidance_rescale):
            raise ValueError(
                "guidance_scale: expected another than 1 with guide, guidance_interval or guidance_rescale, which have no"
                " effect at 1, got 1; set it, or leave them out."
            )
        if guide is None:
            if guidance_scale != 1:
                self._check_null_label(f"guidance_scale={guidance_scale:g}")
            if class_labels is None and guidance_scale not in (0, 1):
                raise ValueError(
                    f"guidance_scale: expected 1 with class_labels=None, got {guidance_scale}; there is no class to guide to."
                )
            return
        if not isinstance(guide, DiffusionPipeline) or not hasattr(guide, "label_ids"):
            raise ValueError(f"guide: expected a CondDDPMPipeline, got {type(guide).__name__}; load one by from_pretrained.")
        for name in ("sample_size", "in_channels", "out_channels", "num_classes"):
            mine, its = (getattr(network.config, name, None) for network in (self.unet, guide.unet))
            if mine != its:
                raise ValueError(f"guide: expected a network of the same {name}, {mine}, got {its}.")
        if guide.unet.device != self.unet.device:
            raise ValueError(
                f"guide: expected it on {self.unet.device}, got {guide.unet.device}; move it by guide.to(device)."
            )
        if class_labels is None:
            guide._check_null_label("class_labels=None with this guide")
        if (self.id2label or {}) and (guide.id2label or {}) and self.id2label != guide.id2label:
            raise ValueError(f"guide: expected the classes {self.id2label}, got {guide.id2label}.")
        mine, its = self.scheduler, guide.scheduler
        same_betas = torch.equal(mine.alphas_cumprod.cpu(), its.alphas_cumprod.cpu())
        if not same_betas or mine.config.prediction_type != its.config.prediction_type:
            raise ValueError(
                f"guide: expected the noise schedule and prediction_type of this pipeline ({mine.config.prediction_type}),"
                f" got {'others' if not same_betas else its.config.prediction_type}; train them with the same."
            )

    def _num_steps(self, scheduler: SchedulerMixin, num_inference_steps: int | None) -> int:
        train_steps = scheduler.config.num_train_timesteps
        if num_inference_steps is None:
            return self.default_steps(scheduler)
        return whole_number("num_inference_steps", num_inference_steps, 1, train_steps, " (the steps trained on)")

    def save_config(self, save_directory: str, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json, and beside it the companions and the code of each class that diffusers does not have.

        diffusers would name our classes by their dotted module, which its loader rejects, and copy no code; with
        [file stem, class] and the file in the folder, `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`
        loads it where this package is not installed.
        """
        if push_to_hub:
            raise ValueError("save_config writes no weights; to publish, call pipeline.push_to_hub(repo_id).")
        super().save_config(save_directory, **kwargs)
        folder = Path(save_directory)
        for name, content in self.companions.items():
            (folder / name).write_bytes(content)
        code = {"_class_name": _copy_code(type(self), folder)}
        for name, component in self.components.items():
            component = getattr(component, "_orig_mod", component)  # torch.compile's wrapper is not what is published
            if not type(component).__module__.startswith("diffusers."):
                code[name] = _copy_code(type(component), folder / name)
            if (folder / name / component.config_name).is_file():
                _edit_json(folder / name / component.config_name, {})
        _edit_json(folder / self.config_name, code)

    @property
    def companions(self) -> dict[str, bytes]:
        """Files that `save_pretrained` writes too, by name, one of `COMPANIONS`: card, results, pictures.

        If they have not been set, those that lie where this was loaded from. (None, if that was the Hub and by diffusers,
        which does not keep the revision.)
        """
        if self._companions is None:
            folder = self.config.get("_name_or_path")
            source = self._source or ((folder, {}) if folder and Path(folder).is_dir() else None)
            self._companions = {}
            for name in COMPANIONS if source else ():
                with contextlib.suppress(OSError, ValueError):  # there is none of that name, or no folder any more
                    self._companions[name] = Path(_get_model_file(source[0], weights_name=name, **source[1])).read_bytes()
        return self._companions

    @companions.setter
    def companions(self, files: dict[str, bytes]) -> None:
        if set(files) - set(COMPANIONS):
            raise ValueError(f"companions: expected names among {', '.join(COMPANIONS)}, got {', '.join(files)}.")
        self._companions = dict(files)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        unet: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        id2label: dict[int, str] | None = None,
        class_dropout_prob: float | None = None,
        guidance_scale: float | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        device_map: str | dict | None = None,
        cache_dir: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        proxies: dict | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "CondDDPMPipeline":
        """Load a folder or a Hub repository with the installed classes; none of its code is executed.

        (diffusers' own `from_pretrained` would import the code that the folder brings, since it names it.)

        Args:
            pretrained_model_name_or_path: what `save_pretrained` wrote, or the name of its repository.
            unet, scheduler, id2label, class_dropout_prob, guidance_scale: given, they are used in place of the saved ones.
            torch_dtype, variant, device_map: of the UNet's `from_pretrained`.
            cache_dir, force_download, local_files_only, proxies, revision, token: as everywhere in diffusers.

        Raises:
            ValueError: the folder holds another pipeline, or one whose network this package does not have; weights that lack
                a tensor; a file that is not what `save_pretrained` wrote.
            OSError: there is no such folder or repository, or a file of it is missing or no JSON.
        """
        where = str(pretrained_model_name_or_path)
        hub = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "proxies": proxies,
            "revision": revision,
            "token": token,
        }
        index = cls.load_config(where, **hub)
        class_name = index.get("_class_name") if isinstance(index, dict) else None
        if (class_name[-1] if isinstance(class_name, list) and class_name else class_name) != cls.__name__:
            raise ValueError(
                f"{where}: expected a {cls.__name__}, got a {class_name} in its model_index.json; load another pipeline by"
                " DiffusionPipeline.from_pretrained."
            )
        if unet is None:
            unet_class = _installed_model(*_module_and_class(index, "unet"))
            weights = {"torch_dtype": torch_dtype, "variant": variant, "device_map": device_map}
            with says_which_part(f"{where}, unet"):
                _component_config(unet_class, where, "unet", hub)
                unet = unet_class.from_pretrained(where, subfolder="unet", **hub, **weights)
        if scheduler is None:
            scheduler_class = installed_scheduler(*_module_and_class(index, "scheduler"))
            with says_which_part(f"{where}, scheduler"):
                scheduler = scheduler_class.from_config(_component_config(scheduler_class, where, "scheduler", hub))
        if class_dropout_prob is None:
            class_dropout_prob = index.get("class_dropout_prob")
        if guidance_scale is None:
            guidance_scale = index.get("guidance_scale", 1.0)
        pipeline = cls(unet, scheduler, id2label or index.get("id2label"), class_dropout_prob, guidance_scale)
        pipeline.register_to_config(_name_or_path=where)
        pipeline._source = (where, hub)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: "CondDDPMPipeline", **kwargs) -> "CondDDPMPipeline":
        """Another pipeline of the same network and scheduler, which are shared, not copied.

        Args:
            pipeline: a `CondDDPMPipeline`.
            kwargs: arguments of this class in place of the pipeline's own, and those of diffusers' `from_pipe`; `dtype`, the
                network's by default, changes the shared network.
        """
        # diffusers wants components of exactly the annotated class, ModelMixin, and would make the network float32.
        kwargs.setdefault("unet", pipeline.unet)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", kwargs["unet"].dtype)
        other = super().from_pipe(pipeline, **kwargs)
        other._source, other._companions = getattr(pipeline, "_source", None), getattr(pipeline, "_companions", None)
        return other


def _is_finite(value: float) -> bool:
    """Whether it is a number, also torch's or numpy's, and a finite one."""
    try:
        return math.isfinite(value)
    except (TypeError, ValueError):
        return False


def whole_number(name: str, value: int, low: int, high: int | None = None, what: str = "") -> int:
    """A whole number in a range, also numpy's."""
    number = value.__index__() if hasattr(value, "__index__") and not isinstance(value, bool) else None
    if number is None or number < low or (high is not None and number > high):
        expected = f"{low} or more" if high is None else f"{low} to {high}{what}"
        raise ValueError(f"{name}: expected {expected}, got {value!r}.")
    return number


def _check_length(name: str, given: list, labels: list[int]) -> None:
    if len(given) != len(labels):
        raise ValueError(f"{name}: expected {len(labels)}, one for each image, got {len(given)}.")


def _check_tested(class_: type[SchedulerMixin], config: dict) -> None:
    """Raise for a scheduler of diffusers, or a class derived from one, that is not among the tested ones."""
    bases = [base for base in class_.__mro__ if issubclass(base, SchedulerMixin) and base is not SchedulerMixin]
    origin = next((base.__name__ for base in bases if base.__module__.startswith("diffusers.")), None)  # None: all one's own
    if origin is not None and origin not in TESTED_SCHEDULERS:
        raise ValueError(
            f"scheduler: expected one that was tested in this loop, {', '.join(TESTED_SCHEDULERS)}, got {class_.__name__};"
            " set pipeline.scheduler to one of them by from_config(pipeline.scheduler.config), or give a sampler."
        )
    kinds = ["epsilon", "v_prediction"] + ["sample"] * (origin != "EulerAncestralDiscreteScheduler")  # which has none of that
    if config.get("prediction_type", "epsilon") not in kinds:
        raise ValueError(
            f"prediction_type: expected one of {', '.join(kinds)} with {class_.__name__}, got {config['prediction_type']!r}."
        )


def _evenly_spaced(count: int | None, steps: int) -> list[int]:
    """Indices of `count` of the steps, the first and the last among them."""
    if count is None:
        return []
    if steps < 2:
        raise ValueError(f"return_intermediates: expected two steps or more to show, got {steps}; take more steps.")
    count = whole_number("return_intermediates", count, 2, steps, ", the steps there are")
    return [round(i * (steps - 1) / (count - 1)) for i in range(count)]


def _set_timesteps(scheduler: SchedulerMixin, steps: int, quadratic: bool, device: torch.device) -> None:
    """As many timesteps as asked for, falling, among those trained on; else a ValueError.

    Quadratic spacing, dense where there is little noise: t_i = (T - 1) (i / n)^2, as in DDIM (Song 2021, app. D.2), but from
    the last timestep and not from 0.8 T, so that it starts where the noise is.
    """
    name, last = type(scheduler).__name__, scheduler.config.num_train_timesteps - 1
    if quadratic:
        if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(
                f"timestep_spacing: expected a scheduler that takes timesteps with 'quadratic', got {name}; take"
                " sampler='dpm++2', 'ddim', 'ddpm', 'heun' or 'euler'."
            )
        timesteps = [max(round(last * (i / steps) ** 2), i - 1) for i in range(1, steps + 1)]
        scheduler.set_timesteps(timesteps=timesteps[::-1], device=device)
    else:
        scheduler.set_timesteps(steps, device=device)

    if hasattr(scheduler, "set_begin_index"):
        # Else diffusers looks for the first timestep, and where rounding has made it the second's equal, begins at that.
        scheduler.set_begin_index(0)
    timesteps = scheduler.timesteps.tolist()
    strides = {here - there for here, there in itertools.pairwise(timesteps)}
    if isinstance(scheduler, HeunDiscreteScheduler):  # each timestep but the first comes twice
        timesteps = timesteps[:1] + timesteps[1::2]
    advice = "take another number of steps or another timestep_spacing"
    falling = min(strides, default=0) >= 0 and len(set(_noise_levels(scheduler))) == steps
    if len(timesteps) != steps or min(timesteps) < 0 or max(timesteps) > last or not falling:
        # diffusers' "trailing" has a timestep -1 for 61 steps, 103, and 60 others; its "leading" only zeros for 1000.
        raise ValueError(
            f"num_inference_steps: {name} makes wrong timesteps ({len(timesteps)}, from {max(timesteps):g} to"
            f" {min(timesteps):g}) of {steps} steps on {last + 1}; {advice}, or another sampler."
        )
    alphas_cumprod = scheduler.alphas_cumprod
    if alphas_cumprod[int(timesteps[0])] > max(0.01, 1.5 * alphas_cumprod[-1]):
        # diffusers' "leading" starts at 500 of 1000 for 501 steps, and at 0 for 1.
        raise ValueError(
            f"num_inference_steps: {name} starts {steps} steps at timestep {timesteps[0]:g}, where images are not yet noise;"
            f" {advice}."
        )
    if isinstance(scheduler, (DDIMScheduler, DDIMParallelScheduler)) and strides - {(last + 1) // steps}:
        # Its step goes to t - T // n, whatever the next timestep is (diffusers #11347).
        raise ValueError(
            f"num_inference_steps: {name} can only step by {last + 1} // {steps}, but its timesteps are spaced otherwise;"
            f" take sampler='ddim', which is right at any spacing, or {advice}."
        )


def _noise_levels(scheduler: SchedulerMixin) -> list[float]:
    """sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod) at each of the scheduler's timesteps."""
    if hasattr(scheduler, "sigmas"):  # DPM-Solver, UniPC, Heun, Euler; then one more, of the image itself
        return scheduler.sigmas[: len(scheduler.timesteps)].tolist()
    alphas_cumprod = scheduler.alphas_cumprod[scheduler.timesteps.long().cpu()]
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt().tolist()


def _guided(base: torch.Tensor, cond: torch.Tensor, scale: float, rescale: float) -> torch.Tensor:
    """`base + scale * (cond - base)`, its standard deviation brought back to that of `cond` by the share `rescale`."""
    guided = base + scale * (cond - base)
    if rescale:
        dims = tuple(range(1, cond.ndim))
        guided = guided * (1 + rescale * (cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True) - 1))
    return guided


def _clip_predicted_original(
    scheduler: SchedulerMixin, prediction: torch.Tensor, sample: torch.Tensor, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prediction whose x_0 is clipped to the range of images, and that x_0; `sample` is x_t of about unit variance.

    In terms of the prediction, so that a scheduler's step takes noise and x_0 from one and the same: DDIM's own clipping,
    with the noise of the unclipped x_0, lets x_t drift off the schedule, and with guidance digits become blobs.
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
        prediction = (sample - alpha * original) / std
    elif config.prediction_type == "v_prediction":
        prediction = (alpha * sample - original) / std
    else:
        prediction = original
    return prediction, original


def _copy_code(class_: type, folder: Path) -> list[str]:
    """Copy the file that defines `class_` into `folder`; return [file stem, class], as model_index.json names it."""
    source = Path(inspect.getsourcefile(class_))
    target = folder / source.name
    if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)
    return [source.stem, class_.__name__]


def _edit_json(file: Path, changes: dict) -> None:
    """Apply `changes`; drop `_name_or_path`, which would publish where on this machine the model was loaded from."""
    content = json.loads(file.read_text()) | changes
    content.pop("_name_or_path", None)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _installed_model(stem: str, class_name: str) -> type[ModelMixin]:
    """The class of that name from the package around this file; its modules only, whatever a repository names."""
    package = __name__.rpartition(".pipelines.")[0] or "cond_ddpm"  # the published copy of this file is in no package
    try:
        found = getattr(importlib.import_module(f"{package}.models.{stem}"), class_name)
    except (ImportError, AttributeError):
        raise ValueError(
            f"unet: expected a network of the installed package, got {class_name} from {stem}.py; install the newest"
            " cond_ddpm, or, if you trust the code in that folder, load it by"
            " DiffusionPipeline.from_pretrained(..., trust_remote_code=True)."
        ) from None
    return found


def installed_scheduler(module: str, class_name: str) -> type[SchedulerMixin]:
    """diffusers' class of that name."""
    found = getattr(importlib.import_module("diffusers"), class_name, None) if module == "diffusers" else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(
            f"scheduler: expected one of diffusers, got {class_name} from {module}; give one by from_pretrained(...,"
            " scheduler=...)."
        )
    return found


def _module_and_class(index: dict, name: str) -> list[str]:
    """How model_index.json names a component."""
    named = index.get(name)
    if not isinstance(named, list) or len(named) != 2 or not all(isinstance(part, str) for part in named):
        raise ValueError(f"{name}: expected [module, class] in model_index.json, got {named!r}; save the pipeline again.")
    return named


def _component_config(class_: type, where: str, name: str, hub: dict) -> dict:
    """What its JSON file says; diffusers would take {} for all defaults, also of the betas, and a text for a repository."""
    config = class_.load_config(where, subfolder=name, **hub)
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(
            f"{where}, {name}: expected the settings of a {class_.__name__} in {class_.config_name}, got {str(config)[:80]!r};"
            " save or download it again."
        )
    return config


@contextlib.contextmanager
def says_which_part(where: str) -> Iterator[None]:
    """Whatever a damaged file makes its reader raise becomes a ValueError of one line, which says what was read."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ValueError, OSError)) and not isinstance(error, (json.JSONDecodeError, UnicodeError)):
            raise  # it says so itself
        text = " ".join(str(error).split())
        raise ValueError(
            f"{where}: expected files as they were saved, got {type(error).__name__}: {text}; save or download them again."
        ) from error
