"""Two training processes against one, each pinned to a core; and two machines (network namespaces) on a link of given rates.

    python benchmarks/processes.py                        # 1 and 2 processes in turn, batch B and 2 B
    python benchmarks/processes.py --megabits 0 800 200   # as root: two namespaces, the link limited by tc (0: not limited)

Each process has one thread and one core. The CPU seconds of an image are those of all processes, between two steps, so that
other programs on the machine disturb them less than the images a second. Of those, medians over the rounds are printed, and
the ratio of two processes to one. benchmarks/scale_model.py predicts the same by a formula.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST, LAST = 3, 12  # the steps between which it is measured

WORKER = """
import json, os, sys, time
import torch
sys.path.insert(0, sys.argv.pop(1))
rank = int(os.environ.get("RANK", 0))
os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[rank]])
import cond_ddpm.training.loop as loop
from cond_ddpm.cli import main
marks, original = [], loop.train_step
def timed(*given):
    marks.append((time.perf_counter(), time.process_time()))
    return original(*given)
loop.train_step = timed
code = main(sys.argv[1:])
print("MARKS", json.dumps(marks), flush=True)
sys.exit(code)
"""


def run(launchers: list[list[str]], batch: int, model: list[str], folder: Path) -> tuple[float, float]:
    """(images a second, CPU seconds an image) of one training that the launchers start together."""
    (folder / "worker.py").write_text(WORKER)
    flags = ["train", "--dataset=mnist5k", *model, f"--batch_size={batch}", f"--max_train_steps={LAST}", "--report_to=none"]
    flags += ["--num_validation_images=4", "--save_images_epochs=0", "--checkpointing_steps=0", "--num_ema_snapshots=0"]
    flags += [f"--output_dir={tempfile.mkdtemp(dir=folder)}", "--num_cpu_threads=1", "--mixed_precision=no"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": env}
    commands = [[*launcher, folder / "worker.py", ROOT, *flags] for launcher in launchers]
    started = [subprocess.Popen(list(map(str, command)), **pipes) for command in commands]
    printed = [one.communicate()[0] for one in started]
    marks = [json.loads(line[6:]) for text in printed for line in text.splitlines() if line.startswith("MARKS ")]
    if not marks:
        raise SystemExit("\n".join(printed))
    images = batch * (LAST - 1 - FIRST)
    seconds = max(of_one[LAST - 1][0] - of_one[FIRST][0] for of_one in marks)
    return images / seconds, sum(of_one[LAST - 1][1] - of_one[FIRST][1] for of_one in marks) / images


def namespaces(megabits: int) -> list[list[str]]:
    """Two of them with a link of that rate; the commands that start a process in each."""
    names, links = ["scale-0", "scale-1"], ["scale-a", "scale-b"]
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "netns", "add", name], check=True)
    pair = ["type", "veth", "peer", "name", links[1], "netns", names[1]]
    subprocess.run(["ip", "link", "add", links[0], "netns", names[0], *pair], check=True)
    launchers = []
    for rank, (name, link) in enumerate(zip(names, links)):
        settings = [f"address add 10.212.0.{rank + 1}/24 dev {link}", f"link set {link} up", "link set lo up"]
        for setting in settings:
            subprocess.run(["ip", "-n", name, *setting.split()], check=True)
        if megabits:
            limit = f"qdisc add dev {link} root tbf rate {megabits}mbit burst 256k latency 200ms"
            subprocess.run(["tc", "-n", name, *limit.split()], check=True)
        env = [f"GLOO_SOCKET_IFNAME={link}", "MASTER_ADDR=10.212.0.1", "MASTER_PORT=29500", "WORLD_SIZE=2", f"RANK={rank}"]
        launchers.append(["ip", "netns", "exec", name, "env", *env, "LOCAL_RANK=0", sys.executable])
    return launchers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="images of a process")
    parser.add_argument("--size", default="s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabits", type=int, nargs="*", default=[])
    given = parser.parse_args()
    model = ["--model=hybrid", f"--unet.size={given.size}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        for number in range(given.rounds):
            for rate in given.megabits:
                launchers = namespaces(rate)
                one = run(launchers, 2 * given.batch, model, folder)
                found.setdefault(f"{rate} Mbit/s" if rate else "not limited", []).append(one)
                print(f"round {number}, {rate} Mbit/s: {2 * given.batch / one[0]:.2f} seconds a step", flush=True)
                for launcher in launchers:
                    subprocess.run(["ip", "netns", "delete", launcher[3]], capture_output=True)
            for processes in () if given.megabits else (1, 2):
                launcher = torchrun if processes == 2 else [sys.executable]
                one = run([launcher], processes * given.batch, model, folder)
                found.setdefault(processes, []).append(one)
                print(f"round {number}, {processes}: {one[0]:.2f} images/s, {one[1]:.4f} CPU seconds an image", flush=True)
    for name, ones in found.items():
        rate, cpu = (statistics.median(column) for column in zip(*ones))
        print(f"{name}: {rate:.2f} images/s, {2 * given.batch / rate:.2f} s for {2 * given.batch}, {cpu:.4f} CPU s an image")
    if not given.megabits:
        speed = statistics.median(two[0] / one[0] for one, two in zip(found[1], found[2])) / 2
        cpu = statistics.median(one[1] / two[1] for one, two in zip(found[1], found[2]))
        print(f"efficiency of a core with 2 processes: {cpu:.3f} by CPU seconds, {speed:.3f} by the clock")


if __name__ == "__main__":
    main()
