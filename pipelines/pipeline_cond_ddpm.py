"""CondDDPMPipeline: class labels and noise -> images. Published beside the model, so this file must stay self-contained.

May import: the standard library, torch, diffusers (absolute names), nothing of ours.
What is trained by `cond_ddpm/train.py` is saved by `save_pretrained` here: the one writer of the published folder.
"""

import difflib
import importlib
import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor


class CondDDPMPipeline(DiffusionPipeline):
    """Images of the classes asked for, from a class-conditional UNet and any diffusers scheduler with its betas.

    Args:
        unet: a model with `forward(sample, timestep, class_labels)` and, in its config, `sample_size`, `in_channels` and
            `num_classes`; label `num_classes` is its null label.
        scheduler: a diffusers scheduler; another one is made by `Scheduler.from_config(pipeline.scheduler.config)`.
        id2label: name of each class id, `{0: "airplane", ...}`; None where classes have no names.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin, id2label: dict[int, str] | None = None):
        super().__init__()
        if id2label is not None:
            id2label = {int(label): str(name) for label, name in id2label.items()}  # JSON made the ids strings
            if sorted(id2label) != list(range(unet.config.num_classes)):
                raise ValueError(
                    f"id2label: expected a name for each id from 0 to {unet.config.num_classes - 1}, got ids"
                    f" {sorted(id2label)}; name every class of the model, or none."
                )
            if len(set(id2label.values())) < len(id2label):
                raise ValueError(f"id2label: expected a name of its own for each class, got {list(id2label.values())}.")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.id2label = id2label
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

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

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 1000,
        guidance_scale: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample one image for each label.

        Args:
            class_labels: an id, a name, or a list of them; one image each.
            generator: one for the batch, or one for each image, which makes an image the same in any batch.
            num_inference_steps: steps of the scheduler, at most its `num_train_timesteps`.
            guidance_scale: `w` in `uncond + w * (cond - uncond)` (Ho & Salimans 2022, written so that 1 is conditional
                and 0 unconditional, both at one forward a step; other values cost two).
            output_type: "pil", "np" (B, H, W, C in [0, 1]) or "pt" (B, C, H, W in [0, 1]).
            return_dict: False for a plain tuple.

        Returns:
            `ImagePipelineOutput` whose `images` are of the type asked for.

        Raises:
            ValueError: an unknown label, a number of generators or steps or an output type that does not fit.
        """
        labels = self.label_ids(class_labels)
        batch, device, config = len(labels), self._execution_device, self.unet.config
        generator = list(generator) if isinstance(generator, tuple) else generator
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"generator: expected one generator, or {batch} (one for each label), got {len(generator)}.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: expected 'pil', 'np' or 'pt', got {output_type!r}.")
        train_steps = self.scheduler.config.num_train_timesteps
        if not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= train_steps:
            raise ValueError(
                f"num_inference_steps: expected 1 to {train_steps} (the steps trained on), got {num_inference_steps}."
            )

        shape = (batch, config.in_channels, config.sample_size, config.sample_size)
        sample = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        sample = sample * self.scheduler.init_noise_sigma

        cond_labels = torch.tensor(labels, device=device)
        null_labels = torch.full_like(cond_labels, config.num_classes)
        # What this scheduler's step can take. DDIM, where it clips the predicted x_0, must also take the noise from the
        # clipped x_0, or x_t drifts away from the schedule: with guidance, digits become blobs.
        step_kwargs = {"generator": generator, "use_clipped_model_output": True}
        taken = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {name: value for name, value in step_kwargs.items() if name in taken}

        for timestep in self.progress_bar(self.scheduler.timesteps):
            model_input = self.scheduler.scale_model_input(sample, timestep)
            if guidance_scale == 1.0 or guidance_scale == 0.0:
                told = cond_labels if guidance_scale == 1.0 else null_labels
                prediction = self.unet(model_input, timestep, told).sample
            else:
                told = torch.cat([null_labels, cond_labels])
                uncond, cond = self.unet(torch.cat([model_input, model_input]), timestep, told).sample.chunk(2)
                prediction = uncond + guidance_scale * (cond - uncond)
            sample = self.scheduler.step(prediction, timestep, sample, **step_kwargs).prev_sample

        images = self.image_processor.postprocess(sample, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_config(self, save_directory: str, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json, and beside it the code of each class that diffusers does not have.

        diffusers would name our classes by their dotted module, which its loader rejects, and copy no code; with
        [file stem, class] and the file in the folder, `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`
        loads it where this package is not installed.
        """
        if push_to_hub:
            raise ValueError("save_config writes no weights; to publish, call pipeline.push_to_hub(repo_id).")
        super().save_config(save_directory, **kwargs)
        folder = Path(save_directory)
        code = {"_class_name": _copy_code(type(self), folder)}
        for name, component in self.components.items():
            component = getattr(component, "_orig_mod", component)  # torch.compile's wrapper is not what is published
            if not type(component).__module__.startswith("diffusers."):
                code[name] = _copy_code(type(component), folder / name)
            if (folder / name / component.config_name).is_file():
                _edit_json(folder / name / component.config_name, {})
        _edit_json(folder / self.config_name, code)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        unet: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        id2label: dict[int, str] | None = None,
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
            unet, scheduler, id2label: given, they are used in place of the saved ones.
            torch_dtype, variant, device_map: of the UNet's `from_pretrained`.
            cache_dir, force_download, local_files_only, proxies, revision, token: as everywhere in diffusers.

        Raises:
            ValueError: the folder holds another pipeline, or one whose network this package does not have.
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
        class_name = index["_class_name"]
        if (class_name if isinstance(class_name, str) else class_name[-1]) != cls.__name__:
            raise ValueError(
                f"{where}: expected a {cls.__name__}, got a {class_name}; load it by DiffusionPipeline.from_pretrained."
            )
        if unet is None:
            unet_class = _installed_model(*index["unet"])
            weights = {"torch_dtype": torch_dtype, "variant": variant, "device_map": device_map}
            unet = unet_class.from_pretrained(where, subfolder="unet", **hub, **weights)
        if scheduler is None:
            scheduler_class = getattr(importlib.import_module("diffusers"), index["scheduler"][1])
            scheduler = scheduler_class.from_pretrained(where, subfolder="scheduler", **hub)
        pipeline = cls(unet=unet, scheduler=scheduler, id2label=id2label or index.get("id2label"))
        pipeline.register_to_config(_name_or_path=where)
        return pipeline


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
