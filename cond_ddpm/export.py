"""Exports the network to one file for other runtimes, and makes a pipeline that samples from such a file.

May import: `files, fingerprints`, the pipeline. Next in the data flow: `CondDDPMPipeline` samples with the exported network in
place of the UNet.
"""

import copy
import io
import json
import shutil
import warnings
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput

from cond_ddpm import install_hint
from cond_ddpm.files import is_free, write
from cond_ddpm.fingerprints import file_checksum
from cond_ddpm.pipelines.pipeline_cond_ddpm import (
    SAMPLERS,
    CondDDPMPipeline,
    _check_numbers,
    installed_scheduler,
    one_line_errors,
)

FILES = {"onnx": "unet.onnx", "torch": "unet.pt2"}
TOLERANCE = 1e-4  # the largest difference from the network, whose output has a variance of about 1
HALF_TOLERANCE = 1e-2  # likewise with weights that have been rounded to half precision


def export(pipeline: CondDDPMPipeline, format: str, output: Path, half_weights: bool = False) -> float:
    """Write a folder with the network, for batches of any size, its scheduler and its class names.

    Args:
        pipeline: exported as float32 for the CPU. The pipeline itself is not changed.
        format: `onnx`, for onnxruntime and other runtimes; or `torch`, a `torch.export` program.
        output: a new or empty folder for `unet.onnx` or `unet.pt2`, `export.json` and `scheduler/`. `load_exported` reads it.
        half_weights: of `onnx`: store the large weights in half precision, so that the file has half the size. They become
            float32 when the file is loaded, so that all arithmetic is in single precision.

    Returns:
        The largest difference from the network, over batches of several sizes and the timesteps of every sampler.

    Raises:
        ValueError: a folder with other files; an unknown format, or one whose packages are missing; an exported network.
        FloatingPointError: the difference is more than 1e-4, or 1e-2 with weights in half precision.
    """
    if format not in FILES:
        raise ValueError(f"format: expected one of {', '.join(FILES)}, got {format!r}.")
    if not is_free(output):
        raise ValueError(f"output: expected a new or empty folder, got {output}.")
    unet: ModelMixin = getattr(pipeline.unet, "_orig_mod", pipeline.unet)  # without torch.compile's wrapper
    if isinstance(unet, ExportedUNet):
        raise ValueError("model: expected a network with its weights, got an exported one; export the original model.")
    network = _TensorsOnly(copy.deepcopy(unet).cpu().float()).eval()  # the caller's network keeps its type and its device
    config = unet.config
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with torch.no_grad():
            # The example has two images, because torch would take a batch of one for a constant.
            batch = [{0: torch.export.Dim("batch")}] * 3
            program = torch.export.export(network, _example(config, 2), dynamic_shapes=batch)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it contains paths of this machine
            if format == "torch":
                content = io.BytesIO()  # where a file cannot be written, torch's own writer aborts the process
                torch.export.save(program, content)
                write(partial / FILES[format], content.getvalue())
            else:
                write(partial / FILES[format], _onnx_file(program, batch, half_weights))
        record = {
            "format": format,
            "checksum": file_checksum(partial / FILES[format]),
            "unet": {name: value for name, value in config.items() if not name.startswith("_")},
            "id2label": pipeline.id2label,
            "class_dropout_prob": pipeline.class_dropout_prob,
            "guidance_scale": pipeline.guidance_scale,
            "num_inference_steps": pipeline.num_inference_steps,
            "timestep_dtype": "float32",  # folders of earlier versions lack this entry; theirs is int64
        }
        write(partial / "export.json", json.dumps(record, indent=2) + "\n")
        pipeline.scheduler.save_pretrained(partial / "scheduler")
        difference = _difference(network, load_exported(partial, trust_remote_code=True).unet, _timesteps(pipeline))
        tolerance = HALF_TOLERANCE if half_weights else TOLERANCE
        if not difference <= tolerance:
            raise FloatingPointError(
                f"{format}: expected a difference of at most {tolerance} from the network, got {difference:.1e};"
                + (" weights in half precision" if half_weights else " its exporter")
                + " may be at fault: try a newer torch, or another format."
            )
        output.mkdir(parents=True, exist_ok=True)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return difference


def load_exported(folder: Path, threads: int | None = None, trust_remote_code: bool = False) -> CondDDPMPipeline:
    """A pipeline that samples with an exported network. It needs neither torch's weights nor the network's code.

    Folders that an earlier version exported take whole timesteps only, so they refuse the samplers heun and euler.

    Args:
        folder: a folder that `export` wrote.
        threads: number of threads for onnxruntime; None for as many as torch has.
        trust_remote_code: load a program that torch exported. torch unpickles parts of it and evaluates its expressions, so it
            can run any code. ONNX files contain no code.

    Raises:
        ValueError: onnxruntime is not installed; a file is not what `export` wrote; a program that is not trusted.
    """
    with one_line_errors(str(folder)):
        record = json.loads((folder / "export.json").read_text())
        file = folder / FILES[record["format"]]
        if record["format"] == "torch" and not trust_remote_code:
            raise ValueError(
                f"expected a network that can be loaded without running code, got {file}, a program that torch exported, which"
                " can run any code; if you trust whoever made it, give trust_remote_code, else export it with --format onnx."
            )
        checksum = file_checksum(file) if file.is_file() else ""
        if checksum and record.get("checksum", checksum) != checksum:  # folders of earlier versions have none
            raise ValueError(f"expected the file whose checksum is in export.json, got another {file}; copy it again.")
        run = _OnnxRun(file, threads or torch.get_num_threads()) if record["format"] == "onnx" else _TorchRun(file)
        timestep_dtype = getattr(torch, record.get("timestep_dtype", "int64"))
        unet = ExportedUNet(run, record["unet"], checksum, timestep_dtype)
        with torch.no_grad():
            unet(*_example(unet.config, 1))  # what the record says of the file holds
        scheduler_class = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        scheduler = installed_scheduler("diffusers", scheduler_class).from_pretrained(folder, subfolder="scheduler")
        _check_numbers(scheduler)
        names = ("id2label", "class_dropout_prob", "guidance_scale", "num_inference_steps")
        settings = {name: record[name] for name in names if name in record}
        return CondDDPMPipeline(unet, scheduler, **settings)


class ExportedUNet(torch.nn.Module):
    """An exported network with the interface of a UNet, for `CondDDPMPipeline`; float32 on the CPU.

    Args:
        run: (sample (B, C, H, W) float32, timestep (B,), class_labels (B,) int64) -> prediction (B, C, H, W).
        config: the config of the UNet.
        checksum: of the exported file, in hexadecimal; it identifies the network in place of its weights.
        timestep_dtype: the type of the timesteps that `run` takes.

    Raises:
        ValueError: (when called) a fractional timestep, if `run` takes only whole ones.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, run, config: dict, checksum: str, timestep_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.run, self.config, self.timestep_dtype = run, FrozenDict(config), timestep_dtype
        self.register_buffer("checksum", torch.frombuffer(bytearray.fromhex(checksum), dtype=torch.uint8))  # for state_dict

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor, return_dict: bool = True
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        timestep = torch.as_tensor(timestep).expand(len(sample))
        converted = timestep.to(self.timestep_dtype)
        if not self.timestep_dtype.is_floating_point and not torch.equal(converted.to(timestep.dtype), timestep):
            raise ValueError(
                f"timestep: expected a whole number, because this export is of an earlier version, got {timestep[0]:g}; export"
                " the model again, or take a sampler other than heun and euler."
            )
        prediction = self.run(sample.float(), converted, class_labels)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)


class _OnnxRun:
    def __init__(self, file: Path, threads: int):
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"format: onnx needs onnxruntime, which is not installed; {install_hint('onnx')}.") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        names = [given.name for given in self.session.get_inputs()]
        given = dict(zip(names, (sample.numpy(), timestep.numpy(), class_labels.numpy()), strict=True))
        return torch.from_numpy(self.session.run(None, given)[0])


class _TorchRun:
    def __init__(self, file: Path):
        self.module = torch.export.load(file).module()

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        return self.module(sample, timestep, class_labels)


class _TensorsOnly(torch.nn.Module):
    """The network as a function from tensors to a tensor, which is what can be exported."""

    def __init__(self, unet: torch.nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, class_labels, return_dict=False)[0]


def _example(config, batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    labels = torch.randint(config.num_classes + 1, (batch,), generator=generator)  # also the null label
    return sample, torch.zeros(batch), labels  # timesteps are floats, because some samplers have fractional ones


def _onnx_file(program: torch.export.ExportedProgram, dynamic_shapes: list[dict], half_weights: bool = False) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError(
            f"format: onnx needs the packages onnx and onnxscript, which are not installed; {install_hint('onnx')}."
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own code
        exported = torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=["sample", "timestep", "class_labels"],
            output_names=["prediction"],
            verbose=False,
        )
    assert exported is not None  # as always with dynamo=True
    model = exported.model_proto
    _remove_metadata(model)
    if half_weights:
        _halve_weights(model.graph)
    return model.SerializeToString()


def _remove_metadata(message) -> None:
    """Remove torch's notes about where in the code each part of an ONNX model comes from: an eighth of the file."""
    for field, value in message.ListFields():
        if field.name == "metadata_props":
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                _remove_metadata(part)


def _halve_weights(graph, smallest: int = 1024) -> None:
    """Store each float32 weight of at least `smallest` numbers as float16, and convert it back by a node before its first use.

    Runtimes fold such a node of a constant when they load the file. Smaller weights, such as biases, are not worth a node.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size >= smallest and np.abs(values).max() <= np.finfo(np.float16).max:
            name, stored = weight.name, f"{weight.name}.half"
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
            casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.single", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _timesteps(pipeline: CondDDPMPipeline) -> torch.Tensor:
    """The first, the last and some between, and all those, also fractional, that any sampler needs for 20 steps."""
    last = pipeline.scheduler.config.num_train_timesteps - 1
    timesteps = {round(share * last) for share in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)}
    for sampler in SAMPLERS:
        scheduler = pipeline.make_scheduler(sampler)
        scheduler.set_timesteps(min(20, last + 1))
        timesteps.update(scheduler.timesteps.tolist())
    return torch.tensor(sorted(t for t in timesteps if 0 <= t <= last), dtype=torch.float32)


@torch.no_grad()
def _difference(network: torch.nn.Module, exported: ExportedUNet, timesteps: torch.Tensor) -> float:
    """The largest difference, in batches of 1, 2 and 5 images at six of the timesteps, and in one batch of all timesteps."""
    largest = 0.0
    few = timesteps[torch.linspace(0, len(timesteps) - 1, 6).round().long()]
    for index, timestep in enumerate([*(t.expand(batch) for batch in (1, 2, 5) for t in few), timesteps]):
        sample, _, labels = _example(exported.config, len(timestep), seed=index)
        expected = network(sample, timestep, labels)
        largest = max(largest, (exported(sample, timestep, labels).sample - expected).abs().max().item())
    return largest
