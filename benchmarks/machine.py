"""What every benchmark needs: the machine's own limit, versions, and the rows of RESULTS.md."""

import json
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version

import torch


def matmul_flops(size: int = 2048, repeats: int = 8, device: str = "cpu") -> float:
    """FLOP/s of bfloat16 products of square matrices: what nothing built of them can exceed."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    (a @ b)[0, 0].item()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times)


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
    for name in ("torch", "diffusers", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def show(rows: list[dict], **more) -> None:
    """Print JSON, and a Markdown row for each of `rows`."""
    print(json.dumps({**more, "rows": rows}, indent=2))
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()) + " |")
