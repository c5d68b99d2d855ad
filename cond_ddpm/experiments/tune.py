"""`cond-ddpm tune`: a search by Optuna over any training settings.

May import: everything but the command line: it trains and measures. Each trial is a run folder. Nothing follows in
the data flow but trials.csv, best.yaml (for `cond-ddpm train --config`) and Optuna's plots.
"""

import contextlib
import csv
import dataclasses
import io
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from cond_ddpm import install_hint
from cond_ddpm.config.experiments import TuneConfig
from cond_ddpm.evaluation.evaluate import evaluate
from cond_ddpm.experiments.rehearsal import rehearse
from cond_ddpm.files import write
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.processes import process_state
from cond_ddpm.training import train
from cond_ddpm.visualize import read_metrics


def _without_traceback(record: logging.LogRecord) -> bool:
    """Optuna logs one of each trial that fails, beside the error."""
    record.exc_info = record.exc_text = None
    return True


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """An error of the storage, such as a full disk, in one line. Its address may contain a password, and is not named."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("sqlalchemy", "optuna"):
            raise
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise OSError(
            f"storage: the trials could not be read or written: {reason}; once they can be, the same command goes on."
        ) from error


@_storage_errors()
def tune(config: TuneConfig) -> Path:
    """Run the search. An interrupted search continues, and so does the trial that was interrupted.

    Args:
        config: the settings.

    Raises:
        OSError: the storage of the trials, or another file, cannot be read or written.

    Returns:
        The search's folder: `trial-N/` (a run folder each), `trials.csv`, `best.yaml`, `history.png`, `slice.png` and,
        if there are at least two trials, `importances.png`.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError(f"tune: expected optuna, which is not installed; {install_hint('tune')}.") from None
    if process_state().num_processes > 1:
        raise ValueError("tune: expected one process; for several machines start it on each, with one storage.")
    config.first_that_fits(lambda run: rehearse(run, "base", config.evaluation_of(run), config.sampling))
    for handler in logging.getLogger("optuna").handlers:
        handler.addFilter(_without_traceback)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pruner = {"median": optuna.pruners.MedianPruner(), "hyperband": optuna.pruners.HyperbandPruner()}.get(config.pruner)
    search = optuna.create_study(
        study_name="cond_ddpm",
        storage=_storage(config, folder),
        sampler=optuna.samplers.TPESampler(seed=config.seed),
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    _take_up_interrupted(search, folder)

    def objective(trial) -> float:
        chosen = {name: _suggest(trial, name, space) for name, space in config.search.items()}
        number = trial.user_attrs.get("goes_on", trial.number)
        run = folder / f"trial-{number}"
        settings = config.run(chosen, run)
        write(folder / f"trial-{number}.owner", json.dumps([platform.node(), os.getpid(), _began(os.getpid())]))

        def on_epoch(row: dict) -> None:
            trial.report(row["val_loss"], int(row["epoch"]))
            if trial.should_prune():
                raise optuna.TrialPruned

        train(settings, on_epoch)
        if config.objective == "val_loss":
            return min(row["val_loss"] for row in read_metrics(run))
        pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline").to(process_state().device)
        protocol = config.evaluation_of(settings)
        results = evaluate(protocol, run / "results.json", str(run / "pipeline"), pipeline, **config.sampling)
        return results["samples"]["frechet_distance"]

    # Settings that do not fit, such as too large a batch, fail their trial, but not the search, unless every trial fails.
    errors = []

    def watched(trial) -> float:
        try:
            return objective(trial)
        except (ValueError, FloatingPointError) as error:
            errors.append(error)
            raise

    while len(_finished(search)) < config.trials:
        search.optimize(watched, n_trials=1, catch=(ValueError, FloatingPointError))
        states = {trial.state for trial in _finished(search)}
        if len(errors) >= min(3, config.trials) and states == {optuna.trial.TrialState.FAIL}:
            raise ValueError(
                f"tune: expected settings that fit, but all {len(errors)} trials failed, the last by: {errors[-1]}"
            )
    _report(search, config, folder)
    return folder


def _finished(search) -> list:
    """Trials that have ended, without those that were killed and are continued by another trial."""
    trials = search.get_trials()
    replaced = {trial.user_attrs.get("replaces") for trial in trials}
    return [trial for trial in trials if trial.state.is_finished() and trial.number not in replaced]


def _storage(config: TuneConfig, folder: Path):
    import optuna
    import optuna.storages.journal

    if config.storage is None:
        return optuna.storages.RDBStorage(f"sqlite:///{folder / 'trials.db'}")
    if config.storage.startswith("journal:"):
        file = os.path.expanduser(config.storage.partition(":")[2])
        backend = optuna.storages.journal.JournalFileBackend(file)
        return optuna.storages.JournalStorage(backend)
    return optuna.storages.RDBStorage(config.storage)


def _take_up_interrupted(search, folder: Path) -> None:
    """Queue, as the next, those trials that are marked as running although their process on this machine has ended."""
    import optuna

    for trial in search.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        number = trial.user_attrs.get("goes_on", trial.number)
        owner = folder / f"trial-{number}.owner"
        host, process, began = json.loads(owner.read_text()) if owner.is_file() else (None, 0, 0)
        if host == platform.node() and _began(process) != began:
            search.enqueue_trial(trial.params, user_attrs={"goes_on": number, "replaces": trial.number})
            search.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _began(process: int) -> float | None:
    """When the process with that number started, since numbers are reused; None if there is no such process."""
    import psutil

    try:
        return psutil.Process(process).create_time()
    except psutil.NoSuchProcess:
        return None


def _suggest(trial, name: str, space: list | dict):
    """A choice or a number; an integer, if both ends are integers."""
    if isinstance(space, list):
        if all(isinstance(choice, (str, int, float, bool, type(None))) for choice in space):
            return trial.suggest_categorical(name, space)
        return json.loads(trial.suggest_categorical(name, [json.dumps(choice) for choice in space]))  # lists of channels
    whole = isinstance(space["low"], int) and isinstance(space["high"], int)
    return trial.suggest_int(name, **space) if whole else trial.suggest_float(name, **space)


def _report(search, config: TuneConfig, folder: Path) -> None:
    import warnings

    import optuna

    trials = search.get_trials()
    names = list(config.search)
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["trial", "state", config.objective, *names])
    for trial in trials:
        writer.writerow([trial.number, trial.state.name.lower(), trial.value, *(trial.params.get(n, "") for n in names)])
    write(folder / "trials.csv", table.getvalue())
    complete = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        print("no trial was finished", file=sys.stderr)
        return
    best = search.best_trial
    chosen = {name: _unpacked(config.search[name], value) for name, value in best.params.items()}
    settings = dataclasses.asdict(config.run(chosen, folder / "best"))
    settings |= {"resume_from_checkpoint": None}
    write(
        folder / "best.yaml",
        f"# trial-{best.user_attrs.get('goes_on', best.number)}: {config.objective} {best.value:g}\n"
        + yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False),
    )
    plots = optuna.visualization.matplotlib
    drawn: dict[str, Callable] = {"history": plots.plot_optimization_history, "slice": plots.plot_slice}
    if len({json.dumps(trial.params) for trial in complete}) > 1:
        drawn["importances"] = plots.plot_param_importances
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for name, plot in drawn.items():
            axes = plot(search)
            figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
            figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")


def _unpacked(space: list | dict, value):
    is_json = isinstance(space, list) and not all(isinstance(c, (str, int, float, bool, type(None))) for c in space)
    return json.loads(value) if is_json else value
