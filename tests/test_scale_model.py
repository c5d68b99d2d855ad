"""The formula of docs/scale_model.md, by hand."""

import importlib.util
import sys

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("scale_model", ROOT / "benchmarks" / "scale_model.py")
scale_model = sys.modules["scale_model"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale_model)
Machine, predict, ring_seconds = scale_model.Machine, scale_model.predict, scale_model.ring_seconds


def test_a_ring_sends_twice_all_but_one_part():
    assert ring_seconds(1, 1e9, 1e9, 1.0) == 0
    assert ring_seconds(2, 1e9, 1e9, 0) == pytest.approx(1)  # each sends a half, and then the other half
    assert ring_seconds(4, 1e9, 1e9, 0.1) == pytest.approx(1.5 + 0.6)


def test_the_backward_pass_hides_the_all_reduce_up_to_its_share():
    machine = Machine(
        peak_tflops=1, utilisation=0.5, network_gbytes=1, network_latency=0, per_machine=1, overlap=0.5, launch_seconds=0
    )
    # 0.5 TFLOP/s; 10 images of a process cost 3 * 10 * 1e10 FLOP: 0.6 s, of which 0.4 backward, and 0.2 that hide gradients.
    step = predict(parameters=25e6, forward_flop=1e10, batch=20, processes=2, machine=machine)
    assert (step.compute, step.all_reduce, step.exposed) == pytest.approx((0.6, 0.1, 0))
    step = predict(parameters=250e6, forward_flop=1e10, batch=20, processes=2, machine=machine)
    assert (step.all_reduce, step.exposed) == pytest.approx((1.0, 0.8))
    assert step.seconds == pytest.approx(1.4, rel=1e-3) and step.limit == "exposed"


def test_a_host_that_is_slower_than_the_gpu_counts():
    step = predict(parameters=1, forward_flop=1, batch=1, processes=1, machine=Machine(launch_seconds=0.03))
    assert step.seconds == pytest.approx(0.03) and step.limit == "host"


def test_the_page_has_the_table_that_the_script_prints():
    assert scale_model.table(Machine()) in (ROOT / "docs" / "scale_model.md").read_text()
