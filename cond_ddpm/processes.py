"""The processes of a run or of sampling: as many as were launched, each with its threads, stopped together.

May import: `config, hardware`. Training, sampling and evaluation ask here which process they are.
"""

import contextlib
import datetime
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list

from cond_ddpm.config import TrainConfig
from cond_ddpm.hardware import precision_for


def make_accelerator(config: TrainConfig, recorded_precision: str | None = None) -> Accelerator:
    """accelerate's view of this process among those that were launched, with the CPU threads it may use.

    Args:
        config: the settings.
        recorded_precision: the precision of the checkpoint from which the run resumes. `auto` stays what it was then, also on
            other hardware.

    Raises:
        ValueError: a tracker that is not installed, unless it is the default; fewer processes than were asked for; a batch
            that cannot be split over them.
    """
    AcceleratorState._reset_state()  # of an earlier train() in this process, whose precision would be kept
    log_with = None if config.report_to == "none" else config.report_to
    missing = log_with is not None and log_with not in map(str, get_available_trackers())
    if missing and log_with == TrainConfig.report_to:  # the default, which is no reason to fail
        warnings.warn(f"{log_with} is not installed, so nothing is logged to it; pip install {log_with}.", stacklevel=2)
        log_with = None
    elif missing:  # accelerate would only warn, and log nothing
        raise ValueError(
            f"report_to: expected an installed tracker, got {config.report_to}, which is not; pip install {config.report_to},"
            " or --report_to none."
        )
    precision: str | None = config.mixed_precision
    if precision == "auto":
        here = precision_for(PartialState(cpu=_several_on_cpus()).device)
        precision = recorded_precision or here
        if precision != here and PartialState().is_main_process:
            warnings.warn(
                f"mixed_precision: auto stays {precision}, with which the run began; this hardware is fastest with {here}.",
                stacklevel=2,
            )
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=_several_on_cpus() or None,
        log_with=log_with,
        project_dir=str(config.folder),
    )
    processes = accelerator.num_processes
    _check_launch(processes)
    parts = processes * config.gradient_accumulation_steps
    if config.batch_size is not None and config.batch_size % parts:
        raise ValueError(
            f"batch_size: expected a multiple of {parts} ({processes} processes with {config.gradient_accumulation_steps}"
            f" accumulation steps), over which it is split, got {config.batch_size}; change one of the three."
        )
    _set_threads(accelerator.device, config.num_cpu_threads)
    return accelerator


def process_state() -> PartialState:
    """This process among those that were launched, for work other than training.

    Raises:
        ValueError: fewer processes than were asked for.
    """
    fresh = not PartialState._shared_state
    # Others wait while the main process trains a classifier or decodes a data set, which may exceed the default half hour.
    waiting = {"timeout": datetime.timedelta(hours=24)} if fresh and int(os.environ.get("WORLD_SIZE", 1)) > 1 else {}
    state = PartialState(cpu=_several_on_cpus(), **waiting)
    _check_launch(state.num_processes)
    if fresh and "WORLD_SIZE" in os.environ:
        _set_threads(state.device, None)
    return state


def _several_on_cpus() -> bool:
    """In that case accelerate needs cpu=True; otherwise each process takes itself for the only one."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()


def _check_launch(processes: int) -> None:
    launched = int(os.environ.get("WORLD_SIZE", 1))
    # On a CPU, `accelerate launch --num_processes 2` sets an address for the processes to meet at, but starts only one.
    only_one = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if processes != launched or only_one:
        raise ValueError(
            f"processes: expected {'several' if only_one else launched}, as launched, got {processes}; on CPUs launch by"
            " `torchrun --nproc_per_node N` (docs/scaling.md), or unset MASTER_ADDR for one process."
        )


def _set_threads(device: torch.device, asked_for: int | None) -> None:
    """Use as many threads as the setting or OMP_NUM_THREADS says, or else an equal share of this machine's usable cores."""
    if device.type != "cpu":
        return
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or usable
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # Where the user set no number, torchrun sets 1, and accelerate sets 1 or the machine's cores divided by its processes. So
    # under a launcher these numbers may not be the user's; a user who wants one of them gives --num_cpu_threads.
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() else 0
    launched = "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if threads == 0 or (launched and threads in (1, physical // here)):
        threads = max(1, min(usable, physical) // here)
    torch.set_num_threads(asked_for or threads)


def on_main(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Call `function` on the main process alone and return its result on all. If it fails, every process ends.

    Raises:
        Exception: on the main process, what `function` raised.
        SystemExit: 1, on the other processes; the main process says why.
    """
    result = error = None
    if accelerator.is_main_process:
        try:
            result = function()
        except Exception as raised:
            error = raised
    if accelerator.num_processes > 1:
        result, failed = broadcast_object_list([result, error is not None])
        if failed and error is None:
            raise SystemExit(1)
    if error is not None:
        raise error
    return result


class NotEnoughMemory(MemoryError):
    """The device's or the machine's memory does not suffice; the message says what to change."""


@contextlib.contextmanager
def memory_for(device: torch.device, what: str, advice: str) -> Iterator[None]:
    """If the memory does not suffice for `what`, the error is one line with the advice."""
    try:
        yield
    except NotEnoughMemory:
        raise
    except (MemoryError, RuntimeError) as error:
        said = " ".join(str(error).split())
        # torch has a class for the memory of accelerators, but not for that of the CPU.
        is_full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in said
        if not is_full:
            raise
        raise NotEnoughMemory(f"out of memory on {device}: {what} does not fit; {advice}. ({said[:200]})") from error


class Terminated(SystemExit):
    """SIGTERM has come while the process was within `ends_in_order`."""


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """Within, SIGTERM raises SystemExit with its code, 143, as Ctrl-C raises KeyboardInterrupt; so what was begun is removed.

    Raises:
        Terminated: a SystemExit with code 143, after SIGTERM.
    """

    def leave(number: int, frame) -> None:
        raise Terminated(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # only the main thread may handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stopping:
    """A context manager, within which SIGTERM or Ctrl-C asks for a stop after the current step; a second one stops at once."""

    def __init__(self, accelerator: Accelerator, elapsed_seconds: float, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.signal, self.started = 0, clock() - elapsed_seconds
        # A group on the CPU, so that agreeing does not wait for the accelerators' queues.
        self.group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def __enter__(self) -> "Stopping":
        self.before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self.before[number] = signal.signal(number, self._ask)
            except ValueError:  # only the main thread may handle signals; a caller that runs threads does it there
                break
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        self.signal = number
        self.__exit__()

    def agree(self) -> tuple[int, float]:
        """(signal or 0, seconds that the run has taken), the same on all processes, so that all stop after the same step."""
        agreed = torch.tensor([float(self.signal), self.clock() - self.started], dtype=torch.float64)
        if self.group is not None:
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX, group=self.group)
        return int(agreed[0]), float(agreed[1])
