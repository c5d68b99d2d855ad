"""What a machine with a GPU is needed for, in stages that end themselves and go on from files carried back. `make gpu`

    python benchmarks/gpu.py tests      --output OUT      the tests marked `cuda`
    python benchmarks/gpu.py throughput --output OUT      images per second and share of the GPU's peak, of each preset
    python benchmarks/gpu.py train      --output OUT --total_minutes 60 [-- --FLAG VALUE ...]      flags of the training
    python benchmarks/gpu.py evaluate   --output OUT [-- --FLAG VALUE ...]      flags of the evaluation

No internet is needed; CIFAR-10 is looked for as the tests look for it, or --dataset names it. A stage ends within --minutes.
What it leaves in --output is to be kept: at most 60 MB in files of at most 15 MB. Bring this folder to the next machine, and
the same command goes on: with the tests and measurements that are missing, and where training and evaluation stopped.

Of a training, --output keeps the averaged weights alone, as a pipeline folder in bf16 shards, and its progress. So on a new
machine it goes on from its averages, with an optimizer that has no moments yet; where --work is still there, exactly. --tiny
tries all of it on a CPU, in seconds: a tiny network, digits, and those tests on the CPU.
"""

import argparse
import copy
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

PRESETS = ("hybrid_cifar10_cpu", "hybrid_cifar10", "attention_cifar10", "simple_cifar10")
MOST, MOST_OF_A_FILE = 60e6, 15e6
TO_STOP = 60  # seconds that a program may take to write what it has, once it is told to stop; less where there are few
TINY = ["--config", "quickstart", "--resolution", "8", "--batch_size", "16", "--num_validation_images", "16"]
TINY += ["--unet", "{block_out_channels: [8, 16], layers_per_block: 1, pos_dim: 16}", "--save_images_epochs", "0"]


class Limit:
    """The time by which a stage must have ended."""

    def __init__(self, minutes: float):
        self.end, self.to_stop = time.monotonic() + 60 * minutes, min(TO_STOP, 60 * minutes / 5)

    def left(self) -> float:
        """Seconds until a program must be told to stop."""
        return self.end - self.to_stop - time.monotonic()

    def run(self, command: list, log: Path | None = None, **environment: str) -> tuple[int, str]:
        """A program's exit code and what it printed, its errors if logged. It is told to stop in time, or killed."""
        command, env = [str(part) for part in command], {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        with log.open("w+") if log else tempfile.TemporaryFile("w+") as output:
            child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT if log else None)
            for seconds, stop in ((max(1.0, self.left()), child.terminate), (0.8 * self.to_stop, child.kill), (None, None)):
                try:
                    code = child.wait(seconds)
                    break
                except subprocess.TimeoutExpired:
                    stop()
            output.seek(0)
            return code, output.read()


def tests(given: argparse.Namespace, limit: Limit) -> dict:
    """The outcome of each test marked `cuda`; those that passed before are left out."""
    file, log = given.output / "tests.json", given.output / "tests.txt"
    outcomes = json.loads(file.read_text()) if file.is_file() else {}
    passed = [word for name, outcome in outcomes.items() if outcome == "PASSED" for word in ("--deselect", name)]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "cuda", "tests/test_cuda.py", *passed]
    environment = {"COND_DDPM_CUDA_TESTS": "cpu"} if given.tiny else {}
    code, said = limit.run(command, log, **environment)
    outcomes |= dict(re.findall(r"^(tests/\S+) (PASSED|FAILED|SKIPPED|ERROR)", said, re.MULTILINE))
    file.write_text(json.dumps(outcomes, indent=2) + "\n")
    counts = {outcome: sum(one == outcome for one in outcomes.values()) for outcome in sorted(set(outcomes.values()))}
    return {**counts, "ended": "all were run" if code in (0, 1, 5) else "stopped by the time"}


def throughput(given: argparse.Namespace, limit: Limit) -> dict:
    """Each preset, eager and compiled; what was measured before is left out."""
    file = given.output / "throughput.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for preset in PRESETS[:1] if given.tiny else PRESETS:
        for compiled in (False,) if given.tiny else (False, True):
            name = f"{preset}{', compiled' if compiled else ''}"
            if name in found or limit.left() < (0 if given.tiny else 60):
                continue
            command = [sys.executable, __file__, "measure", *_arguments(given), "--", *_of_preset(given, preset)]
            code, said = limit.run([*command, "--compile", str(compiled).lower()])
            if code == 0:
                found[name] = json.loads(said.splitlines()[-1])
                file.write_text(json.dumps(found, indent=2) + "\n")
            print(f"{name}: {found.get(name, 'not measured: it failed, or the time was up')}", flush=True)
    return {name: f"{row['images_per_second']:.0f} images/s, {row['share_of_peak']:.1%}" for name, row in found.items()}


def measure(given: argparse.Namespace) -> dict:
    """Training and sampling of the settings that the flags give, and the peak of bf16 products in the same process."""
    import machine
    import torch

    from cond_ddpm.cli import parse_train
    from cond_ddpm.models import forward_flop
    from cond_ddpm.processes import make_accelerator
    from cond_ddpm.sampling import generate
    from cond_ddpm.training.batches import load_training_data
    from cond_ddpm.training.state import TrainingState
    from cond_ddpm.training.step import train_step

    config = parse_train(given.flags)
    accelerator = make_accelerator(config)
    config, data = load_training_data(config, accelerator)
    state = TrainingState.create(config, accelerator, data)
    forward, seconds = forward_flop(state.pipeline.unet), 0.5 if given.tiny else 10.0
    for _ in range(3):
        train_step(state, data, 1e-4).item()  # compiles and allocates
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(5):
            loss = train_step(state, data, 1e-4)
        loss.item()  # waits for the device
        steps += 5
    images = steps * config.batch_size / (time.perf_counter() - started)
    peak = machine.matmul_flops(256 if given.tiny else 8192, device=str(accelerator.device))
    memory = torch.cuda.max_memory_allocated() / 1e9 if accelerator.device.type == "cuda" else None
    if config.compile:
        state.pipeline.unet.compile()
    drawn = 16 if given.tiny else 512
    draw = lambda: generate(state.pipeline, [0] * drawn, range(drawn), drawn, num_inference_steps=20, mixed_precision="auto")  # noqa: E731
    draw()
    started = time.perf_counter()
    draw()
    return {
        "images_per_second": images,
        "share_of_peak": 3 * forward * images / peak,  # backward costs two forwards
        "peak_flops": peak,
        "memory_gb": memory,
        "samples_per_second": drawn / (time.perf_counter() - started),
        "mixed_precision": accelerator.mixed_precision,
        "batch_size": config.batch_size,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "cpu",
        "versions": machine.versions("accelerate"),
    }


def train(given: argparse.Namespace, limit: Limit) -> dict:
    """`train_cond_ddpm.py`, until it is over or the time is up; then its averages are kept."""
    from cond_ddpm.training.checkpoint import newest_good_checkpoint

    run, kept = given.work / "run", given.output / "progress.json"
    command = [*_of_preset(given, given.preset), "--max_train_minutes", str(given.total_minutes), "--report_to", "none"]
    command += ["--checkpoints_total_limit", "1", "--checkpointing_steps", "2000", "--num_ema_snapshots", "0", *given.flags]
    command += ["--resume_from_checkpoint", "latest", "--output_dir", str(run)]
    here = newest_good_checkpoint(run) if run.is_dir() else None
    done = json.loads(kept.read_text())["progress"]["step"] if kept.is_file() else 0
    if done and (here is None or int(here.name.partition("-")[2]) < done):
        _unpack(command, run, given.output)
    code, said = limit.run([sys.executable, "train_cond_ddpm.py", *command], given.output / "train.txt")
    if code not in (0, 128 + signal.SIGTERM):
        raise SystemExit(f"train: expected it to end or to be stopped, got exit code {code}:\n{said[-3000:]}")
    progress = _pack(run, given.output)
    return {"step": progress["step"], "minutes": progress["elapsed_seconds"] / 60, "over": code == 0}


def _pack(run: Path, output: Path) -> dict:
    """Keep the averages of the newest checkpoint as a pipeline folder in bf16 shards, and the progress."""
    import torch

    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.cli import parse_train
    from cond_ddpm.diffusion import make_noise_scheduler
    from cond_ddpm.models import MODELS
    from cond_ddpm.pipelines.pipeline_cond_ddpm import DEFAULT_SAMPLER
    from cond_ddpm.training.checkpoint import load_checkpoint, newest_good_checkpoint

    checkpoint = newest_good_checkpoint(run)
    if checkpoint is None:
        raise SystemExit(f"train: expected a checkpoint in {run}, got none; give the stage more --minutes.")
    tensors, states, _, settings = load_checkpoint(checkpoint)
    record = json.loads((checkpoint / "progress.json").read_text())
    resolved = json.loads((run / "config.json").read_text())["resolved"]
    unet = MODELS[settings["model"]](**resolved["unet"])
    names = [name for name, _ in unet.named_parameters()]
    averages = (
        tensors["ema"] if settings["use_ema"] else {f"{settings['ema_std']}/{name}": tensors["unet"][name] for name in names}
    )
    unet.load_state_dict({**unet.state_dict(), **{name: averages[f"{settings['ema_std']}/{name}"] for name in names}})
    scheduler = make_noise_scheduler(parse_train(["--config", str(run / "config.yaml")]))
    id2label = dict(enumerate(resolved["class_names"]))
    steps = min(settings["num_inference_steps"], settings["num_train_timesteps"])
    pipeline = CondDDPMPipeline(unet, scheduler, id2label, settings["class_dropout_prob"], settings["guidance_scale"], steps)
    pipeline.scheduler = pipeline.make_scheduler(DEFAULT_SAMPLER)  # as training publishes it
    pipeline.to(torch.bfloat16).save_pretrained(output / "pipeline", max_shard_size="12MB")
    # What the run had found best is not kept, so the next epoch is the best so far.
    record["progress"] |= {"best_loss": float("inf"), "epochs_since_best": 0}
    record["scaler"] = states.get("scaler")
    (output / "progress.json").write_text(json.dumps(record))
    return record["progress"]


def _unpack(command: list[str], run: Path, output: Path) -> None:
    """A checkpoint of what `_pack` kept, in a new run folder, from which the training resumes as from any other."""
    from cond_ddpm import CondDDPMPipeline
    from cond_ddpm.cli import parse_train
    from cond_ddpm.training.checkpoint import save_checkpoint
    from cond_ddpm.training.optimizer import make_optimizer
    from cond_ddpm.training.state import Progress

    record = json.loads((output / "progress.json").read_text())
    config = parse_train(command)
    unet = CondDDPMPipeline.from_pretrained(output / "pipeline").unet.float()
    weights = dict(unet.named_parameters())
    stds = {config.ema_std, 0.1}  # as training keeps them
    tensors = {"unet": {name: tensor.detach() for name, tensor in unet.state_dict().items()}}
    if config.use_ema:
        tensors["ema"] = {f"{std}/{name}": copy.deepcopy(tensor.detach()) for std in stds for name, tensor in weights.items()}
    states = {"optimizer": make_optimizer(config, unet).state_dict()}
    if record["scaler"] is not None:
        states["scaler"] = record["scaler"]
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"config": record["settings"]}))
    save_checkpoint(run, tensors, states, Progress(**record["progress"]), record["settings"])


def evaluate(given: argparse.Namespace, limit: Limit) -> dict:
    """`cond-ddpm evaluate` of the pipeline that `train` kept. If the time is up, its statistics are kept and it goes on."""
    model, results = given.output / "pipeline", given.output / "results.json"
    if not model.is_dir():
        raise SystemExit(f"evaluate: expected {model}, which the stage train writes, got none; run it first.")
    command = [
        sys.executable,
        "-m",
        "cond_ddpm.cli",
        "evaluate",
        "--model",
        model,
        "--dataset",
        given.dataset,
        "--output",
        results,
    ]
    command += ["--num_samples", "64", "--subset", "32"] if given.tiny else ["--fast"]
    code, said = limit.run([*command, *given.flags], given.output / "evaluate.txt")
    if code not in (0, -signal.SIGTERM):
        raise SystemExit(f"evaluate: expected it to end or to be stopped, got {code}:\n{said[-3000:]}")
    if code:
        return {"over": False}
    samples = json.loads(results.read_text())["samples"]
    return {"over": True, "label_accuracy": samples["label_accuracy"], "frechet_distance": samples["frechet_distance"]}


def _of_preset(given: argparse.Namespace, preset: str) -> list[str]:
    return TINY if given.tiny else ["--config", preset, "--dataset", str(given.dataset)]


def _arguments(given: argparse.Namespace) -> list[str]:
    return ["--output", str(given.output), *(["--tiny"] if given.tiny else [])]


def check_kept(folder: Path) -> str:
    """What is kept, in words; exits if it is more than can be carried."""
    sizes = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    large = [f"{file} ({size / 1e6:.1f} MB)" for file, size in sizes.items() if size > MOST_OF_A_FILE]
    total = sum(sizes.values())
    if large or total > MOST:
        raise SystemExit(
            f"{folder}: expected at most 60 MB in files of at most 15 MB, got {total / 1e6:.1f} MB; {', '.join(large)}"
        )
    return f"{total / 1e6:.1f} MB in {len(sizes)} files, the largest of {max(sizes.values(), default=0) / 1e6:.1f} MB"


if __name__ == "__main__":
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tests", "throughput", "train", "evaluate", "measure"])
    parser.add_argument("--output", type=Path, required=True, help="folder of what is kept")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", help="folder of what is not")
    parser.add_argument("--minutes", type=float, default=9.0, help="within which the stage ends")
    parser.add_argument("--preset", default="hybrid_cifar10", help="what is trained")
    parser.add_argument("--total_minutes", type=float, default=60.0, help="of the training, over all calls")
    parser.add_argument("--dataset", help="CIFAR-10, by its folder or Hub id")
    parser.add_argument("--tiny", action="store_true", help="a trial on the CPU")
    given = parser.parse_args(words[:at])
    given.flags = words[at + 1 :]
    if given.dataset is None:
        from conftest import CIFAR10

        given.dataset = "mnist5k" if given.tiny else CIFAR10
    given.output, given.work = given.output.absolute(), given.work.absolute()
    given.output.mkdir(parents=True, exist_ok=True)
    if given.stage == "measure":  # by `throughput`, as a program of its own
        print(json.dumps(measure(given)))
    else:
        began = time.monotonic()
        result = globals()[given.stage](given, Limit(given.minutes))
        result["seconds"] = round(time.monotonic() - began, 1)
        (given.output / f"{given.stage}.summary.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
        print("kept:", check_kept(given.output))
