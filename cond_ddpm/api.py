"""`train` and `evaluate` for Python programs; the commands of the same names call them, so that both do the same.

May import: `config, evaluation, heartbeat, hub, loading, processes, training, visualize`, each when it is needed. Next in the
data flow: `CondDDPMPipeline.from_pretrained` loads a run's `pipeline/`, whose card reports what results.json says.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cond_ddpm.config import EvaluateConfig, TrainConfig
from cond_ddpm.config.evaluation import EvaluationConfig


def train(
    config: TrainConfig, on_epoch: Callable[[dict[str, Any]], None] | None = None, *, choose_guidance: bool | None = None
) -> Path:
    """Train a class-conditional UNet: what `cond-ddpm train` does, with the same files and the same lines on the terminal.

    In a program that `accelerate launch` or `torchrun` starts several times, the processes train together.

    Args:
        config: the settings, named as the flags of `cond-ddpm train`.
        on_epoch: called on the main process with each epoch's row of metrics.csv; an exception that it raises ends the run.
        choose_guidance: as `--choose_guidance`: after a training of two minutes or more, let a judge choose the pipeline's
            default guidance, within 5% of the training's time. If not given, it is done unless `config.guidance_scale` is
            given.

    Returns:
        The run's folder; the trained model is its `pipeline/`. `cond_ddpm.training.train` lists the other files.

    Raises:
        ValueError: settings that do not fit the data, the network, the checkpoint or the number of processes; data other
            than the checkpoint's; a folder that another run writes to.
        OSError: a data set that cannot be found, an output folder that cannot be written, a full disk, a Hub that refuses.
        FloatingPointError: a loss that is not finite.
        ConnectionError: another process died, hangs or cannot be reached.
        MemoryError: a step that does not fit into the memory; the error says which settings to change.
        SystemExit: 143 or 130 after SIGTERM or Ctrl-C, with a checkpoint of the last step.

    Example::

        from cond_ddpm import TrainConfig, train

        run = train(TrainConfig(dataset="mnist5k", minutes=5, output_dir="runs/digits"))
    """
    from cond_ddpm.training import train

    def choose(run: Path, seconds: float) -> None:
        from cond_ddpm.evaluation.guidance import choose_guidance
        from cond_ddpm.processes import memory_for, process_state

        try:
            with memory_for(process_state().device, "the choice", "give --guidance_scale, or --choose_guidance false"):
                found = choose_guidance(run, config, seconds)
        except (ValueError, OSError, MemoryError) as error:  # the training is done, and is not lost by what comes after it
            found = f"guidance_scale was not chosen: {error}"
        if found is not None:
            print(found)

    chooses = config.guidance_scale == TrainConfig.guidance_scale if choose_guidance is None else choose_guidance
    return train(config, on_epoch=on_epoch, on_trained=choose if chooses else None)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a model, or given samples, against real images: what `cond-ddpm evaluate` does.

    It writes results.json and, beside it, pictures. Where it is the model's own (`MODEL/results.json`) the model's card
    reports the figures, and in a run's folder its report shows them. In a program that `accelerate launch` or `torchrun`
    starts several times, the processes share the samples. An interrupted evaluation continues where it stopped, if it is
    called again with the same settings.

    Args:
        config: the settings, named as the flags of `cond-ddpm evaluate`.

    Returns:
        What results.json holds. `["samples"]` has the metrics of the samples, and `["held_out_real"]` the same metrics of
        held-out real images. On processes other than the main one there are only `["training"]` and
        `["protocol"]`.

    Raises:
        ValueError: a folder that is no model; samples that do not fit the data; classes other than the model's; an extractor
            that is not installed.
        OSError: a model or a data set that cannot be found, an output that cannot be written, a full disk.
        ConnectionError: another process died, hangs or cannot be reached.

    Example::

        from cond_ddpm import EvaluateConfig, evaluate

        results = evaluate(EvaluateConfig(model="runs/digits/pipeline", dataset="mnist5k", output="results.json"))
        print(results["samples"]["frechet_distance"], results["held_out_real"]["frechet_distance"])
    """
    from cond_ddpm.evaluation.evaluate import evaluate
    from cond_ddpm.heartbeat import together
    from cond_ddpm.loading import load
    from cond_ddpm.processes import process_state

    with together(process_state()):
        protocol = config.part(EvaluationConfig)
        if config.model is None:
            return evaluate(protocol, config.output, samples=config.samples)
        pipeline, arguments = load(config.model, config.revision, config)
        results = evaluate(protocol, config.output, config.model, pipeline, keep=config.save_samples, **arguments)
        output, folder = config.output.resolve(), Path(config.model).resolve()
        if process_state().is_main_process:
            if output == folder / "results.json":
                from cond_ddpm.hub import complete

                complete(config.output.parent)  # its card reports the metrics
            if output.parent in (folder, folder.parent) and (folder.parent / "config.json").is_file():
                from cond_ddpm.visualize import run_report

                run_report(folder.parent)  # it shows them too
        return results
