"""What came from elsewhere runs no code; the other promises of SECURITY.md are held by the tests that it names."""

import json

import numpy as np
import pytest

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.cli import main
from cond_ddpm.config import TrainConfig
from cond_ddpm.training import train


class _Marks:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_samples_of_objects_are_refused(tmp_path, shapes_parquet, capsys):
    np.savez(tmp_path / "samples.npz", images=np.array([_Marks(tmp_path / "mark")], dtype=object))
    arguments = ["--samples", str(tmp_path / "samples.npz"), "--dataset", str(shapes_parquet), "--resolution", "8"]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "results.json")]) == 1
    assert "cannot be read as one" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()


@pytest.mark.end_to_end
def test_no_password_of_a_command_is_written(tmp_path, shapes_parquet, monkeypatch):
    """The address of a search's storage may have one, and each trial's config.json has the command."""
    storage = "postgresql://me:se:cr/et@host/trials"
    monkeypatch.setattr("sys.argv", ["cond-ddpm", "tune", "--storage", storage, f"--storage={storage}"])
    config = TrainConfig(
        dataset=str(shapes_parquet),
        output_dir=str(tmp_path / "run"),
        resolution=8,
        model="simple",
        unet={"block_out_channels": [8, 16], "layers_per_block": 1, "pos_dim": 16},
        batch_size=8,
        max_train_steps=1,
        save_images_epochs=0,
        report_to="none",
    )
    run = train(config)
    safe = "postgresql://me:***@host/trials"
    assert json.loads((run / "config.json").read_text())["command"][2:] == ["--storage", safe, f"--storage={safe}"]
    assert not [path for path in run.rglob("*") if path.is_file() and b"se:cr/et" in path.read_bytes()]


@pytest.mark.parametrize("trusted", [False, True])
def test_no_code_of_a_folder_is_run(tiny_pipeline, tmp_path, trusted):
    """Also with diffusers' flag, which this pipeline needs no code for."""
    tiny_pipeline.save_pretrained(tmp_path / "model")
    code = f"open({str(tmp_path / 'mark')!r}, 'w')\n"
    for file in (tmp_path / "model").rglob("*.py"):
        file.write_text(code + file.read_text())
    assert list((tmp_path / "model").rglob("*.py"))
    CondDDPMPipeline.from_pretrained(tmp_path / "model", trust_remote_code=trusted)
    assert not (tmp_path / "mark").exists()
