"""The processes of a command hear from each other: if one dies or hangs, the others end, with one line that names it.

May import: `processes`. Training and the commands that draw on several processes run within `together`.

Each process says that it is alive, about every second, in the store at which the processes met (torchrun's, or the first
process's). The first one reads what all say, and publishes which has been silent the longest. So a process may be busy as
long as it likes, for example with decoding a data set while the others wait for it, but not be killed, stopped or cut off.
"""

import contextlib
import datetime
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import torch
from accelerate import PartialState

from cond_ddpm.processes import Terminated, ends_in_order

TIMEOUT = "COND_DDPM_PROCESS_TIMEOUT"  # seconds of silence after which a process is given up
_DEFAULT_SECONDS = 60.0
_SOON = 3  # beats missed by which a process is named, once an operation with the others has failed
_LEFT, _FAILED = "left", "failed"


@contextlib.contextmanager
def together(state: PartialState) -> Iterator[None]:
    """Within, a process that ends or hangs ends the others. To be entered by all processes; it does nothing for one alone.

    A process that waits for another inside an operation cannot be woken. So it exits at once, with code 1 and the line on
    stderr. What it has written stays whole, as after a kill.

    Raises:
        ValueError: the variable COND_DDPM_PROCESS_TIMEOUT is no number of seconds.
        ConnectionError: an operation with the other processes failed, or the launcher ended this process, because another
            one ended; the error names it.
    """
    seconds = _timeout()
    if state.num_processes == 1 or not torch.distributed.is_initialized():
        yield
        return
    heartbeat = _Heartbeat(state, seconds)
    mark = _FAILED
    try:
        with ends_in_order():  # a launcher ends the others when one has ended: there is time to say which
            try:
                yield
                mark = _LEFT
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                if not isinstance(error, Exception):
                    mark = _LEFT
                of_connection = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
                lost = heartbeat.lost_soon() if of_connection or isinstance(error, Terminated) else None
                if lost is None:
                    raise
                raise ConnectionError(lost) from error
    finally:
        heartbeat.leave(mark)


def _timeout() -> float:
    given = os.environ.get(TIMEOUT, str(_DEFAULT_SECONDS))
    with contextlib.suppress(ValueError):
        if 1 <= float(given) <= 1e6:
            return float(given)
    raise ValueError(f"{TIMEOUT}: expected seconds, from 1 to 1000000, got {given!r}.")


class _Heartbeat:
    """Two threads: one talks to the store, and may be blocked by a network that is cut; the other one counts.

    They count beats, not seconds: a program that was suspended as a whole, or a machine that slept, has missed none.
    """

    def __init__(self, state: PartialState, seconds: float):
        self.rank, self.processes, self.seconds = state.process_index, state.num_processes, seconds
        self.interval = min(1.0, seconds / 10)
        self.over = threading.Event()
        self.beats_since_news = 0
        self.quietest = {"rank": 0, "missed": 0, "failed": False}  # as the first process has published it
        # A connection of its own: other threads use the one of torch.distributed.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = torch.distributed.TCPStore(
            address, port, is_master=False, wait_for_workers=False, timeout=datetime.timedelta(seconds=max(seconds, 60))
        )
        self.store.set(_key(self.rank, "machine"), socket.gethostname())
        self.store.set(_key(self.rank), json.dumps({"beat": 0, **self.quietest}) if self.rank == 0 else "0")
        state.wait_for_everyone()  # then no key is missing, or left by an earlier attempt
        names = self.store.multi_get([_key(rank, "machine") for rank in range(self.processes)])
        self.machines = [name.decode() for name in names]
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._talk, self._count)]
        for thread in self.threads:
            thread.start()

    def lost_soon(self) -> str | None:
        """The line that names the process that failed or fell silent just now; None if all are there after a few beats."""
        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the launcher, which then waits for half a minute
        for _ in range(2 * _SOON + 1):
            line = self._lost(_SOON)
            if line is not None:
                return line
            self.over.wait(self.interval)
        return None

    def leave(self, mark: str) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(timeout=2 * self.interval)
        if not self.threads[0].is_alive():
            with contextlib.suppress(RuntimeError):  # the store has ended with the first process
                quietest = {"rank": 0, "missed": 0, "failed": mark == _FAILED}
                self.store.set(_key(self.rank), json.dumps({"beat": mark, **quietest}) if self.rank == 0 else mark)

    def _talk(self) -> None:
        others = range(1, self.processes)
        said, missed, beat, of_first = dict.fromkeys(others, ""), dict.fromkeys(others, 0), 0, ""
        with contextlib.suppress(RuntimeError):  # the store is gone: there will be no news
            while not self.over.wait(self.interval):
                beat += 1
                if self.rank == 0:
                    for rank, content in zip(others, self.store.multi_get([_key(rank) for rank in others])):
                        now = content.decode()
                        missed[rank] = missed[rank] + 1 if now == said[rank] and now != _LEFT else 0
                        said[rank] = now
                    failed = [rank for rank in others if said[rank] == _FAILED]
                    worst = failed[0] if failed else max(missed, key=missed.__getitem__)
                    self.quietest = {"rank": worst, "missed": missed[worst], "failed": bool(failed)}
                    self.store.set(_key(0), json.dumps({"beat": beat, **self.quietest}))
                else:
                    self.store.set(_key(self.rank), str(beat))
                    news = json.loads(self.store.get(_key(0)))
                    if news["beat"] == of_first and of_first != _LEFT:  # the first process is silent itself
                        continue
                    of_first = news.pop("beat")
                    self.quietest = news
                self.beats_since_news = 0

    def _count(self) -> None:
        while not self.over.wait(self.interval):
            self.beats_since_news += 1
            line = self._lost(round(self.seconds / self.interval), also_failed=False)
            if line is not None:
                # The others read it from the first process, before its end.
                self.over.wait(3 * self.interval)
                print(f"\nerror: {line}", file=sys.stderr, flush=True)
                os._exit(1)

    def _lost(self, beats: int, also_failed: bool = True) -> str | None:
        quietest = self.quietest
        rank = int(quietest["rank"])
        what_next = "Repeat the command; a training goes on with --resume_from_checkpoint latest."
        if quietest["failed"]:
            of_which = f"{self._named(rank)} ended with an error, which it has printed. Mend that, then: "
            return of_which + what_next[0].lower() + what_next[1:] if also_failed else None
        # Only the first process hears from all; each of the others hears from it, by way of the store.
        if self.beats_since_news >= beats:
            rank = 0 if self.rank else 1
        elif quietest["missed"] < beats or rank == self.rank:
            return None
        seconds = max(self.beats_since_news, int(quietest["missed"])) * self.interval
        return (
            f"{self._named(rank)} has not answered for {seconds:.0f} seconds: it was killed, it hangs, or its machine cannot"
            f" be reached. {what_next}"
        )

    def _named(self, rank: int) -> str:
        return f"process {rank} of {self.processes} (counted from 0, on {self.machines[rank]})"


def _key(rank: int, what: str = "alive") -> str:
    return f"cond_ddpm/{what}/{rank}"
