"""What came from elsewhere runs no code; the other promises of SECURITY.md are held by the tests that it names."""

import numpy as np
import pytest

from cond_ddpm import CondDDPMPipeline
from cond_ddpm.cli import main


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
