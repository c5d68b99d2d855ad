"""Many visitors of the demo at once: is each answered or refused in words, is none lost, is the memory bounded?

    make demo-tests    # sets up .venv-demo
    PYTHONPATH=. .venv-demo/bin/python benchmarks/demo.py --clients 50 --seconds 120

Serves the model that comes with the package in a process of its own. Each client asks for one picture of its own seed, again
and again; a fifth of them leave in the middle of a request. Fails unless all of that holds, and every picture is the one that
the same request gives alone. Needs gradio and psutil.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter

import gradio_client
import httpx
import numpy as np
import psutil
from PIL import Image

# The one refusal that these requests can get; anything else that is no picture counts as lost.
_REFUSAL = "queue is full"
_SEEDS = 8
_PATIENCE = 300  # seconds without any answer after which a request counts as lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    command = [sys.executable, "-m", "cond_ddpm.cli", "demo", "--port", "7987", "--open_browser", "false"]
    url = "http://127.0.0.1:7987"
    with subprocess.Popen(command, env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}) as server:
        try:
            print(json.dumps(measure(given, url, psutil.Process(server.pid)), indent=1))
        finally:
            server.terminate()


def measure(given: argparse.Namespace, url: str, process: psutil.Process) -> dict:
    first = connected(url, 300)
    alone = [ask(first, seed, given.steps) for seed in range(_SEEDS)]
    number = next(one["id"] for one in first.config["dependencies"] if one["api_name"] == "generate")
    outcomes: Counter = Counter()
    waits: list[float] = []
    memory = [process.memory_info().rss / 2**20]
    problems: set[str] = set()
    end = time.monotonic() + given.seconds

    def stay(index: int) -> None:
        client = connected(url, 120)
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                same = np.array_equal(ask(client, index % _SEEDS, given.steps), alone[index % _SEEDS])
                outcomes["answered" if same else "answered with another picture"] += 1
                waits.append(time.monotonic() - started)
            except Exception as error:
                refused = _REFUSAL in str(error).lower()
                outcomes["refused in words" if refused else "lost"] += 1
                if not refused:
                    problems.add(f"{type(error).__name__}: {str(error)[:120]}")
                time.sleep(1)

    def leave(index: int) -> None:
        """Ask for the most that is allowed, and go away after a second."""
        while time.monotonic() < end:
            session = uuid.uuid4().hex
            request = {"data": [["horse"], 16, index, 100, 1.0, ""], "fn_index": number, "session_hash": session}
            try:
                joined = httpx.post(f"{url}/gradio_api/queue/join", json=request, timeout=_PATIENCE)
                if joined.status_code == 503:
                    outcomes["refused in words" if _REFUSAL in joined.text.lower() else "lost"] += 1
                else:
                    with httpx.stream(
                        "GET", f"{url}/gradio_api/queue/data?session_hash={session}", timeout=_PATIENCE
                    ) as lines:
                        next(lines.iter_lines())
                        time.sleep(1)
                    outcomes["left"] += 1
            except httpx.HTTPError as error:
                outcomes["lost"] += 1
                problems.add(f"{type(error).__name__}: {str(error)[:120]}")
            time.sleep(1)

    leavers = given.clients // 5
    threads = [
        threading.Thread(target=leave if index < leavers else stay, args=(index,), daemon=True)
        for index in range(given.clients)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(process.memory_info().rss / 2**20)
        time.sleep(0.5)
    started = time.monotonic()
    after = ask(first, 0, given.steps)  # who left must not keep others waiting
    idle = time.monotonic() - started
    assert np.array_equal(after, alone[0])
    result = {
        "clients": given.clients,
        "seconds": given.seconds,
        **outcomes,
        "median_wait_s": round(float(np.median(waits)), 1) if waits else None,
        "longest_wait_s": round(max(waits), 1) if waits else None,
        "memory_mb": {
            "before": round(memory[0]),
            "half": round(memory[len(memory) // 2]),
            "most": round(max(memory)),
            "after": round(memory[-1]),
        },
        "answer_after_all_had_left_s": round(idle, 1),
        "problems": sorted(problems),
    }
    if outcomes["lost"] or outcomes["answered with another picture"] or not outcomes["answered"]:
        raise SystemExit(f"expected every client to be answered or refused in words, got {json.dumps(result, indent=1)}")
    return result


def connected(url: str, seconds: float) -> gradio_client.Client:
    """A client, once the server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            return gradio_client.Client(url, verbose=False, httpx_kwargs={"timeout": _PATIENCE})
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def ask(client: gradio_client.Client, seed: int, steps: int) -> np.ndarray:
    path = client.predict(class_names=["horse"], number=1, seed=seed, steps=steps, guidance_scale=4, api_name="/generate")
    return np.asarray(Image.open(path))


if __name__ == "__main__":
    main()
