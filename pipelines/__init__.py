"""Installed as `cond_ddpm.pipelines`. The code is in `pipeline_cond_ddpm.py`, which is published as it is."""
