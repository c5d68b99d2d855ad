"""The page without a server: seconds from the click to the first picture, in a real Chromium on this machine's processor.

    make demo-tests && PYTHONPATH=.:tests .venv-demo/bin/python benchmarks/web_page.py [--model DIR] [--rounds 5]

Exports the model's page with the runtime beside it, opens it with one thread and with as many as the page takes, and draws
with the page's own settings. Needs playwright and the extra `onnx`. Prints Markdown rows; the machine should do nothing else.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from conftest import ROOT, launch_chromium
from playwright.sync_api import sync_playwright
from test_web_browser import RUNTIME, SECONDS, ready, served, status_becomes

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.web import export_page


def main(model: str, rounds: int) -> None:
    pipeline = CondDDPMPipeline.from_pretrained(model)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        site = Path(place, "site")
        export_page(pipeline, site, "someone/model", "cifar10", runtime=str(RUNTIME))
        weight = sum(path.stat().st_size for path in site.iterdir() if path.is_file()) / 1e6
        browser = launch_chromium(playwright)
        print(f"The page without the runtime: {weight:.1f} MB.\n\n| computes on | steps | loading | click to the picture, s |")
        print("|---|---|---|---|")
        for isolated in (False, True):
            with served(site, isolated) as address:
                page = browser.new_page()
                page.set_default_timeout(SECONDS)
                start = time.perf_counter()
                where = ready(page, address)
                loading, seconds = time.perf_counter() - start, []
                steps = page.inner_text("#steps-value")  # the slider's own value is a place in a list
                for seed in range(rounds):
                    page.fill("#seed", str(seed))
                    start = time.perf_counter()
                    page.click("#draw")
                    status_becomes(page, "took")
                    seconds.append(time.perf_counter() - start)
                page.close()
            print(
                f"| {where} | {steps} | {loading:.1f} s | {statistics.median(seconds):.2f}"
                f" ({min(seconds):.2f} to {max(seconds):.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "pretrained" / "cifar10"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.model, arguments.rounds)
