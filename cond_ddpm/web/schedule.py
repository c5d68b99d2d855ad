"""What the page knows of noise schedules and samplers: the timesteps and noise levels of diffusers' schedulers, as numbers.

May import: the pipeline. Next in the data flow: `page.py` writes these as JSON, and `site/sampler.js` takes the steps.
"""

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin

from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline, _noise_levels, _set_timesteps

# The samplers that the page offers, by their names in `SAMPLERS`, and what it calls them.
TITLES = {"dpm++2": "DPM-Solver++, order 2", "ddim": "DDIM", "ddpm": "DDPM"}
OWN = "the model's own"
COUNTS = (*range(1, 51), 60, 80, 100, 250, 500, 1000)  # the numbers of steps for which there are tables
_MANY = 50  # only DDPM has tables for more steps, because nothing else needs them


def samplers_of(pipeline: CondDDPMPipeline) -> dict[str, Any]:
    """The entries `samplers`, `sampler` (the one to begin with) and `own_sampler` of model.json.

    The pipeline's own scheduler comes first, if `site/sampler.js` has its steps. The page begins with it, but with dpm++2 if
    it is another one, or takes so many steps by default that a reader would have to wait for minutes.

    Raises:
        ValueError: settings of the scheduler that no sampler of the page has.
    """
    own = pipeline.make_scheduler()
    schedulers = {name: pipeline.make_scheduler(name) for name in TITLES}
    defaults = {name: pipeline.default_steps(scheduler) for name, scheduler in schedulers.items()}
    found = {name: entry for name in TITLES if (entry := sampler(schedulers[name], TITLES[name], defaults[name]))}
    entry = sampler(own, OWN, pipeline.default_steps(own))
    if entry is None:
        if not found:
            raise ValueError(
                "scheduler: expected one with settings that the page has, without thresholding and with solver_type midpoint"
                f" and a fixed variance, got {type(own).__name__}; give the pipeline DDPMScheduler or"
                " DPMSolverMultistepScheduler with their own settings."
            )
        return {"samplers": found, "sampler": next(iter(found)), "own_sampler": None}
    same = [name for name in found if {**found[name], "title": OWN} == entry]
    first = same[0] if same else "own"
    if same:
        entry["title"] = f"{TITLES[first]} ({OWN})"
    too_many = entry["algorithm"] == "ddpm" and entry["default_steps"] > _MANY
    begins = first if not too_many else next(name for name in found if name != first)
    return {"samplers": {first: entry, **found}, "sampler": begins, "own_sampler": first}


def sampler(scheduler: SchedulerMixin, title: str, default: int) -> dict[str, Any] | None:
    """What `site/sampler.js` needs to take this scheduler's steps, `default` many to begin with; None if it cannot."""
    steps = _algorithm(scheduler)
    if steps is None:
        return None
    most = scheduler.config.num_train_timesteps
    counts = {count for count in COUNTS if count <= _MANY or steps["algorithm"] == "ddpm"} | {default}
    tables = {str(count): table for count in sorted(counts) if count <= most and (table := _table(scheduler, count))}
    return {"title": title, **steps, "default_steps": default, "tables": tables}


def _algorithm(scheduler: SchedulerMixin) -> dict[str, Any] | None:
    """Which function of `site/sampler.js` takes the steps, and its settings; None if there is none for this scheduler."""
    config = scheduler.config
    if config.get("thresholding"):
        return None
    if isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
        expected = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "final_sigmas_type": "zero"}
        is_known = all(config[name] == value for name, value in expected.items()) and config.solver_order <= 2
        return {"algorithm": "dpm++", "order": config.solver_order} if is_known else None
    if isinstance(scheduler, diffusers.DDIMScheduler):
        return {"algorithm": "dpm++", "order": 1}  # without noise they are the same (Lu 2022, DPM-Solver++, sec. 4.1)
    if isinstance(scheduler, diffusers.DDPMScheduler) and config.variance_type in (None, "fixed_small", "fixed_large"):
        return {"algorithm": "ddpm", "variance_type": config.variance_type or "fixed_small"}  # diffusers takes None for that
    return None


def _table(scheduler: SchedulerMixin, count: int) -> dict[str, list[float]] | None:
    """The timesteps of `count` steps, and the noise level sigma at each of them and after the last.

    None for a number of steps that the pipeline refuses with this scheduler.
    """
    try:
        _set_timesteps(scheduler, count, None, torch.device("cpu"))
    except ValueError:
        return None
    sigmas = _noise_levels(scheduler)
    last = 0.0
    if isinstance(scheduler, diffusers.DDIMScheduler):
        alpha_cumprod = scheduler.final_alpha_cumprod.item()
        last = ((1 - alpha_cumprod) / alpha_cumprod) ** 0.5
    return {"timesteps": _short(scheduler.timesteps.tolist()), "sigmas": _short([*sigmas, last])}


def _short(numbers: list[float]) -> list[float]:
    """The numbers with as few digits as float32 needs."""
    return [int(number) if number == int(number) else float(str(np.float32(number))) for number in numbers]
