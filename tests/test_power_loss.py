"""What a loss of power can leave: a file that is cut off, or one with a bit flipped. It is refused, or what it says is read.

Of the settings in JSON files only what is no longer JSON, or no setting, is found: people edit them, so they have no checksum.
"""

import json
import shutil

import pytest
import torch
from conftest import make_pipeline, make_unet
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.export import export, load_exported
from cond_ddpm.fingerprints import weights_checksum
from cond_ddpm.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from cond_ddpm.training.state import Progress

CUTS = (0, 1, 8, 0.3, 0.5, 0.99, -1)  # bytes that are left; a share; all but one
FLIPS = (0, 3, 9, 0.1, 0.3, 0.5, 0.7, 0.9, -1)  # where the bit is
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def _place(at, size):
    return int(at * size) if isinstance(at, float) else at % size


def _damaged(file):
    """Damage the file in each way, one after the other, and name it."""
    whole = file.read_bytes()
    for cut in CUTS:
        file.write_bytes(whole[: _place(cut, len(whole))])
        yield f"{file.name}, {cut} left"
    for at in FLIPS:
        for bit in (0, 6):
            content = bytearray(whole)
            content[_place(at, len(whole))] ^= 1 << bit
            file.write_bytes(content)
            yield f"{file.name}, bit {bit} of {at}"
    file.write_bytes(whole)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two checkpoints of every kind of file."""
    run = tmp_path_factory.mktemp("run")
    for step in (5, 10):
        torch.manual_seed(step)
        weights = {f"layer{number}.weight": torch.randn(4, 4) for number in range(3)}
        states = {"optimizer": {"state": {0: {"step": torch.tensor(step), "mean": torch.randn(4)}}}, "scaler": {"scale": 2.0}}
        states["best"] = {"weights": weights, "results": "{}"}
        save_checkpoint(
            run, {"unet": weights, "ema": weights}, states, Progress(step=step), {"seed": 0, "mixed_precision": "no"}
        )
    return run


NAMES = ("unet.safetensors", "ema.safetensors", "optimizer.pt", "scaler.pt", "best.pt", "progress.json", "manifest.json")


@pytest.mark.hostile(22)
@pytest.mark.parametrize("name", NAMES)
def test_of_a_damaged_checkpoint_the_one_before_is_used(run, name):
    assert {path.name for path in (run / "checkpoint-10").iterdir()} == set(NAMES)
    whole = (run / "checkpoint-10" / name).read_bytes()
    for how in _damaged(run / "checkpoint-10" / name):
        with pytest.warns(UserWarning, match="checkpoint-10 is broken and skipped"):
            assert find_checkpoint(run, "latest") == run / "checkpoint-5", how
        with pytest.raises(ValueError, match="expected 'latest' or a good checkpoint"):
            find_checkpoint(run, "checkpoint-10")
    assert (run / "checkpoint-10" / name).read_bytes() == whole
    assert find_checkpoint(run, "latest") == run / "checkpoint-10"
    assert load_checkpoint(run / "checkpoint-10")[2].step == 10


def _loaded(folder):
    pipeline = CondDDPMPipeline.from_pretrained(folder)
    return weights_checksum(pipeline.unet), dict(pipeline.unet.config), dict(pipeline.scheduler.config), pipeline.id2label


@pytest.mark.hostile(22)
@pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json", "model_index.json", "scheduler/scheduler_config.json"])
def test_a_damaged_pipeline_folder_is_refused(name, tmp_path):
    make_pipeline(make_unet("simple")).save_pretrained(tmp_path)
    whole = _loaded(tmp_path)
    for how in _damaged(tmp_path / name):
        if "bit" in how and name != WEIGHTS:
            continue
        try:
            found = _loaded(tmp_path)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error), how
        else:
            assert found == whole, how  # such as a last line break that is missing


@pytest.mark.hostile(22)
def test_the_checksum_of_weights_is_that_of_the_file_and_no_hindrance(tmp_path):
    pipeline = make_pipeline(make_unet("simple"))
    pipeline.save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / WEIGHTS
    expected = {name: tensor.clone() for name, tensor in load_file(file).items()}  # not mapped from the file
    alone = DiffusionPipeline.from_pretrained(tmp_path / "a", trust_remote_code=True)
    assert weights_checksum(alone.unet) == weights_checksum(pipeline.unet)
    # Another folder's weights bring their own checksum; those that other programs wrote have none.
    other = make_pipeline(make_unet("simple", seed=1))
    other.save_pretrained(tmp_path / "b")
    shutil.copyfile(tmp_path / "b" / WEIGHTS, file)
    assert _loaded(tmp_path / "a")[0] == weights_checksum(other.unet)
    save_file(expected, file, {"format": "pt"})
    assert _loaded(tmp_path / "a")[0] == weights_checksum(pipeline.unet)
    # In half precision, in several files, and saved again from what was loaded.
    pipeline.unet.half()
    pipeline.save_pretrained(tmp_path / "parts", variant="fp16", max_shard_size="20KB")
    files = sorted((tmp_path / "parts" / "unet").glob("*.safetensors"))
    assert len(files) > 1
    again = CondDDPMPipeline.from_pretrained(tmp_path / "parts", variant="fp16", dtype=torch.float16)
    assert weights_checksum(again.unet) == weights_checksum(pipeline.unet)
    content = bytearray(files[-1].read_bytes())
    content[-1] ^= 1
    files[-1].write_bytes(content)
    with pytest.raises(ValueError, match=r"it is damaged; save or download it again\. If you changed them yourself"):
        CondDDPMPipeline.from_pretrained(tmp_path / "parts", variant="fp16")


@pytest.mark.hostile(22)
@pytest.mark.end_to_end
def test_a_damaged_export_is_refused(tmp_path):
    export(make_pipeline(make_unet("simple")), "torch", tmp_path / "out")
    for how in _damaged(tmp_path / "out" / "unet.pt2"):
        with pytest.raises(ValueError, match=r"expected the file whose checksum is in export\.json, got another"):
            load_exported(tmp_path / "out", trust_remote_code=True)
            pytest.fail(how)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    del record["checksum"]  # as earlier versions wrote it
    (tmp_path / "out" / "export.json").write_text(json.dumps(record))
    load_exported(tmp_path / "out", trust_remote_code=True)
