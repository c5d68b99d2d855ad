"""The page of all panels, and how it is served: on this machine only, unless told otherwise.

May import: the other files of the demo, gradio. `commands.py` calls it for `cond-ddpm demo`, and app.py of a Space.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from diffusers import DiffusionPipeline

from cond_ddpm.demo.compare import compare_panel
from cond_ddpm.demo.generate import generate_panel
from cond_ddpm.demo.interface import add_interface
from cond_ddpm.demo.limits import DEFAULT_LIMITS, Limits
from cond_ddpm.demo.markup import escape
from cond_ddpm.demo.measured import measured_panel
from cond_ddpm.demo.noise import noise_panel
from cond_ddpm.demo.studio import Model, Studio
from cond_ddpm.demo.watch import watch_panel

_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_SECONDS_KEPT = 3600  # uploads and the pictures of the interface


def make_demo(
    models: DiffusionPipeline | Sequence[Model],
    limits: Limits = DEFAULT_LIMITS,
    real_pictures: dict[str, np.ndarray] | None = None,
) -> gradio.Blocks:
    """The page, for `launch`.

    Args:
        models: a `CondDDPMPipeline`, loaded by this package or by diffusers; or several models with their names, of which
            the first is the one that all panels use.
        limits: of a request.
        real_pictures: real pictures, with their names, (C, H, W) uint8 of the network's size, to add noise to.
    """
    if isinstance(models, DiffusionPipeline):
        pipeline = models
        lines = "# pipeline: the CondDDPMPipeline of this demo"
        models = [Model("the model", lambda: pipeline, lines)]
    studio = Studio(models, limits, real_pictures or {})
    panels = {
        "Draw": generate_panel,
        "Watch": watch_panel,
        "Noise": noise_panel,
        "Compare": compare_panel,
        "Measured": measured_panel,
    }
    # gradio's queue would compute statistics of the last 10,000 requests after each step of a request.
    for name, value in {"MAX_EVENTS": "100", "CACHE_FREQUENCY": "1000000000"}.items():
        os.environ.setdefault(f"GRADIO_ANALYTICS_{name}", value)
    with gradio.Blocks(
        title=f"{studio.models[0].name}: watch diffusion", analytics_enabled=False, delete_cache=(600, _SECONDS_KEPT)
    ) as page:
        gradio.HTML(_header(studio), elem_id="header")
        with gradio.Tabs():
            for title, panel in panels.items():
                with gradio.Tab(title, id=title.lower()):
                    panel(studio)
        add_interface(studio)
    page.queue(max_size=limits.waiting, default_concurrency_limit=1, api_open=False)
    page.studio = studio
    return page


def launch(page: gradio.Blocks, **arguments: Any) -> tuple:
    """Serve the page, with its look and its bounds.

    It is an MCP server too, where gradio's extra `mcp` is installed, unless a password is required.

    Args:
        page: of `make_demo`.
        arguments: of `gradio.Blocks.launch`, such as `server_name`, `server_port` and `auth`.
    """
    theme = gradio.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="md", font=_FONTS, font_mono=["ui-monospace", "monospace"]
    ).set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500", block_label_text_color="*neutral_600")
    defaults: dict[str, Any] = {
        "theme": theme,
        "css_paths": Path(__file__).with_name("style.css"),
        "footer_links": ["api"],
        "run_history": False,
        "show_error": False,
        "max_file_size": page.studio.limits.upload_bytes,
        "mcp_server": _has_mcp() and not arguments.get("auth"),  # gradio asks MCP clients for no password
        "ssr_mode": False,
        "share": False,
        "state_session_capacity": 200,
    }
    return page.launch(**{**defaults, **arguments})


def _has_mcp() -> bool:
    try:
        import mcp  # noqa: F401
    except ImportError:
        return False
    return True


def _header(studio: Studio) -> str:
    config = studio.config
    number, names = config.num_classes, list(studio.names.values())
    few = ", ".join(names[:3]) + (" and so on" if number > 3 else "")
    size = f"{config.sample_size} &times; {config.sample_size}"
    return (
        f"<header><h1>Watch diffusion</h1><p><b>{escape(studio.models[0].name)}</b> draws pictures of {size} pixels of"
        f" {number} classes ({escape(few)}) from nothing but noise. The same settings always give the same pictures."
        "</p></header>"
    )
