"""Images are the same in any batch, order and number of processes, and are written once."""

import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import NAMES, ROOT, make_unet, one_thread_each
from diffusers import DDPMScheduler
from PIL import Image

from cond_ddpm import CondDDPMPipeline, generate, load_images
from cond_ddpm.cli import main
from cond_ddpm.files import is_free
from cond_ddpm.sampling import sample_batches, save_samples

LABELS, SEEDS = [0, 1, 2, 0, 1, 2, 0, 1], list(range(8))


def test_images_are_the_same_in_any_batch_and_order(tiny_pipeline):
    images = generate(tiny_pipeline, LABELS, SEEDS, num_inference_steps=3)
    assert images.shape == (8, 3, 8, 8) and images.dtype == np.uint8 and len(np.unique(images, axis=0)) == 8
    for batch_size in (1, 3):
        again = generate(tiny_pipeline, LABELS, SEEDS, batch_size=batch_size, num_inference_steps=3)
        assert abs(again.astype(int) - images).max() <= 1
    turned = generate(tiny_pipeline, LABELS[::-1], SEEDS[::-1], num_inference_steps=3)
    assert abs(turned[::-1].astype(int) - images).max() <= 1


@pytest.mark.end_to_end
def test_two_processes_share_the_images_and_write_each_once(tmp_path, capsys):
    """On the command line, two processes write the same archive and folder as one, with the images of `generate`."""
    tiny_pipeline = CondDDPMPipeline(make_unet(), DDPMScheduler(timestep_spacing="trailing"), dict(enumerate(NAMES)))
    tiny_pipeline.save_pretrained(tmp_path / "model")
    images = {}
    for processes in (1, 2):
        for output in ("out.npz", "folder"):
            flags = ["--model", tmp_path / "model", "--class_labels", "cross", "0", "--num_images_per_class", "4"]
            flags += ["--num_inference_steps", "3", "--sampler", "ddpm", "--batch_size", "2", "--guidance_scale", "1.5"]
            flags = ["sample", *map(str, flags), "--output", str(tmp_path / str(processes) / output)]
            if processes == 1:
                assert main(flags) == 0
                printed = capsys.readouterr().out
            else:
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
                command = [*launch, "-m", "cond_ddpm.cli", *flags]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=one_thread_each(2))
                assert done.returncode == 0, done.stderr
                printed = done.stdout
            assert printed.count("8 images:") == 1
        with np.load(tmp_path / str(processes) / "out.npz") as archive:
            assert archive["class_labels"].tolist() == [2] * 4 + [0] * 4 and archive["seeds"].tolist() == SEEDS
            images[processes] = archive["images"]
        files = sorted(path.relative_to(tmp_path / str(processes)) for path in tmp_path.glob(f"{processes}/*/*/*"))
        expected = [f"folder/circle/{seed:06d}.png" for seed in range(4, 8)]
        expected += [f"folder/cross/{seed:06d}.png" for seed in range(4)]
        assert list(map(str, files)) == expected
        for row, file in enumerate(expected[4:] + expected[:4]):
            assert np.array_equal(np.asarray(Image.open(tmp_path / str(processes) / file)), images[processes][row])
    assert images[1].shape == (8, 8, 8, 3)
    assert np.array_equal(images[1], images[2])  # the same batches
    arguments = {"num_inference_steps": 3, "sampler": "ddpm", "guidance_scale": 1.5, "batch_size": 2}
    here = generate(tiny_pipeline, [2] * 4 + [0] * 4, SEEDS, **arguments)
    assert abs(here.transpose(0, 2, 3, 1).astype(int) - images[1]).max() <= 1


def test_a_written_folder_is_a_data_set_of_these_classes(tiny_pipeline, tmp_path):
    save_samples(tiny_pipeline, [2, 0, 2], [7, 8, 9], tmp_path / "made", num_inference_steps=2)
    data = load_images(str(tmp_path / "made"), resolution=8)
    images = generate(tiny_pipeline, [0, 2, 2], [8, 7, 9], num_inference_steps=2)
    assert data.class_names == ["circle", "cross"] and data.labels.tolist() == [0, 1, 1]
    assert abs(data.images.astype(int) - images).max() <= 1
    with pytest.raises(ValueError, match="output: expected a new or empty folder"):
        save_samples(tiny_pipeline, [2], [7], tmp_path / "made")
    with pytest.raises(ValueError, match="seeds: expected a different one for each image of a class"):
        save_samples(tiny_pipeline, [2, 2], [7, 7], tmp_path / "twice")


def test_seeds_and_labels_of_different_lengths(tiny_pipeline):
    with pytest.raises(ValueError, match="expected one for each of the 2 labels, got 3"):
        generate(tiny_pipeline, [0, 1], [0, 1, 2])


def test_grey_and_unconditional_images(tiny_pipeline, tmp_path):
    grey = CondDDPMPipeline(make_unet(in_channels=1, out_channels=1), tiny_pipeline.scheduler, dict(enumerate(NAMES)))
    assert generate(grey, [0], [0], num_inference_steps=2).shape == (1, 1, 8, 8)
    none = generate(grey, None, [5, 6], num_inference_steps=2)
    assert np.array_equal(none, generate(grey, [1, 0], [5, 6], num_inference_steps=2, guidance_scale=0.0))
    save_samples(grey, None, [5, 6], tmp_path / "made", num_inference_steps=2)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "made/unconditional/000006.png")), none[1, 0])


def test_batches_are_bounded(tiny_pipeline):
    sizes = [(rows, len(images)) for rows, images in sample_batches(tiny_pipeline, LABELS, SEEDS, 3, num_inference_steps=1)]
    assert sizes == [([0, 1, 2], 3), ([3, 4, 5], 3), ([6, 7], 2)]


def test_each_process_makes_its_own_share_only(tiny_pipeline, monkeypatch):
    """The processes take whole batches in turn; if there are too few for all of them, the batches are smaller."""
    from types import SimpleNamespace

    import cond_ddpm.sampling as module

    def rows(count, batch_size, processes):
        shares = []
        for index in range(processes):
            state = SimpleNamespace(process_index=index, num_processes=processes, is_main_process=index == 0)
            monkeypatch.setattr(module, "process_state", lambda: state)  # noqa: B023
            batches = sample_batches(tiny_pipeline, [0] * count, range(count), batch_size, num_inference_steps=1)
            shares.append([rows for rows, _ in batches])
        return shares

    assert rows(7, 2, 2) == [[[0, 1], [4, 5]], [[2, 3], [6]]]
    assert rows(4, 100, 2) == [[[0, 1]], [[2, 3]]]
    assert rows(1, 100, 2) == [[[0]], []]


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_what_cannot_be_written_is_said_first_and_leaves_nothing(tiny_pipeline, tmp_path, name):
    output = tmp_path / name
    for labels, seeds, arguments, words in (
        ([0, 1], [0, 1, 2], {}, "expected one for each of the 2 labels, got 3"),
        ([0, 1], [0, 1], {"num_inference_steps": 5000}, "expected 1 to 1000"),
        ([0, 1], [0, 1], {"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            save_samples(tiny_pipeline, labels, seeds, output, **arguments)
        assert list(tmp_path.rglob("*")) == []
    with pytest.raises(ValueError, match=r"output: expected a folder, or a name ending in \.npz"):
        save_samples(tiny_pipeline, [0], [0], tmp_path / "out.jpg")


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_a_command_that_is_told_to_end_leaves_nothing_half_written(tiny_pipeline, tmp_path, name):
    def end(pipeline, step, timestep, values):
        os.kill(os.getpid(), signal.SIGTERM)
        return values

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        save_samples(tiny_pipeline, [0], [0], tmp_path / name, num_inference_steps=2, callback_on_step_end=end)
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_new_folder_can_be_made_where_nothing_else_would_be_mixed_with_it(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    for file in ("file", "hidden/.keep"):
        (tmp_path / file).write_text("")
    free = lambda name, **arguments: is_free(tmp_path / name, **arguments)  # noqa: E731
    assert free("new") and free("empty") and free("hidden", hidden_files=True)
    assert not free("file") and not free("hidden") and not is_free(tmp_path, hidden_files=True)


def test_names_of_classes_stay_within_the_folder(tiny_pipeline, tmp_path):
    pipeline = CondDDPMPipeline(tiny_pipeline.unet, tiny_pipeline.scheduler, {0: "a/b", 1: "a_b", 2: ".."})
    save_samples(pipeline, [0, 1, 2], [5, 5, 5], tmp_path / "out", num_inference_steps=1)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert found == ["out/%2E%2E/000005.png", "out/a%2Fb/000005.png", "out/a_b/000005.png"]


@pytest.mark.end_to_end
def test_sample_by_the_command_line_is_what_generate_gives(tiny_pipeline, tmp_path, monkeypatch):
    from cond_ddpm import visualize
    from cond_ddpm.cli import main

    tiny_pipeline.save_pretrained(tmp_path / "model")
    drawn = {}
    monkeypatch.setattr(visualize, "class_grid", lambda images, names, path: drawn.update(images=images, names=names))
    command = [
        "sample",
        "--model",
        tmp_path / "model",
        "--output",
        tmp_path / "x.png",
        "--num_images_per_class",
        2,
        "--seed",
        7,
    ]
    few = {"num_inference_steps": 4}
    guiding = {"guidance_scale": 3.0, "guidance_interval": (0.1, 5), "guidance_rescale": 0.5}
    for flags, labels, names, arguments in (
        ("--class_labels cross 0 --guidance_scale 1.5", [2, 2, 0, 0], ["cross", "circle"], {"guidance_scale": 1.5}),
        (
            "--sampler ddim --timestep_spacing quadratic",
            [0, 0, 1, 1, 2, 2],
            NAMES,
            {"sampler": "ddim", "timestep_spacing": "quadratic"},
        ),
        ("--guidance_scale 3 --guidance_interval 0.1 5 --guidance_rescale 0.5", [0, 0, 1, 1, 2, 2], NAMES, guiding),
        ("--unconditional", None, ["any class"], {}),
        ("--mixed_precision bf16 --class_labels 1", [1, 1], ["square"], {"mixed_precision": "bf16"}),
    ):
        assert main([*map(str, command), "--num_inference_steps", "4", *flags.split()]) == 0
        expected = generate(tiny_pipeline, labels, range(7, 7 + len(labels or "xx")), **few, **arguments)
        assert np.array_equal(drawn["images"], expected) and drawn["names"] == names
    guided = CondDDPMPipeline(tiny_pipeline.unet, tiny_pipeline.scheduler, dict(enumerate(NAMES)), guidance_scale=3.0)
    guided.save_pretrained(tmp_path / "guided")  # the flag's default is the model's own
    flags = ["--model", str(tmp_path / "guided"), "--class_labels", "1", "--num_inference_steps", "4"]
    assert main([*map(str, command), *flags]) == 0
    assert np.array_equal(drawn["images"], generate(tiny_pipeline, [1, 1], [7, 8], **few, guidance_scale=3.0))
    guide = CondDDPMPipeline(make_unet(seed=1), tiny_pipeline.scheduler)
    guide.save_pretrained(tmp_path / "guide")
    flags = ["--guide", str(tmp_path / "guide"), "--guidance_scale", "2", "--class_labels", "1", "--num_inference_steps", "4"]
    assert main([*map(str, command), *flags]) == 0
    assert np.array_equal(drawn["images"], generate(tiny_pipeline, [1, 1], [7, 8], **few, guidance_scale=2.0, guide=guide))


def test_fast_is_bf16_compiled(tiny_pipeline, tmp_path, monkeypatch):
    """`--fast` compiles the network and, where the hardware has it, computes in bf16, like `--mixed_precision bf16`."""
    import torch

    monkeypatch.setattr("cond_ddpm.hardware.precision_for", lambda device: "bf16")
    from cond_ddpm.cli import main

    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module)))
    tiny_pipeline.save_pretrained(tmp_path / "model")
    command = ["sample", "--model", str(tmp_path / "model"), "--num_images_per_class", "1", "--num_inference_steps", "3"]
    for name, flags in (("fast", ["--fast"]), ("half", ["--mixed_precision", "bf16"])):
        assert main([*command, *flags, "--output", str(tmp_path / f"{name}.npz")]) == 0
    fast, half = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("fast", "half"))
    assert np.array_equal(fast, half) and compiled == [type(tiny_pipeline.unet)]
    with pytest.raises(SystemExit) as exit:  # before the model is loaded
        main([*command, "--fast", "--mixed_precision", "fp16", "--output", str(tmp_path / "x.npz")])
    assert exit.value.code == 2


@pytest.mark.hostile(18)
@pytest.mark.parametrize("labels", [[], None])
def test_no_images_are_an_empty_array(tiny_pipeline, labels):
    images = generate(tiny_pipeline, labels, [])
    assert images.shape == (0, 3, 8, 8) and images.dtype == np.uint8


@pytest.mark.hostile(18)
@pytest.mark.parametrize("settings", [{}, {"desc": "mine", "leave": False}])
def test_the_users_progress_bars_stay_as_they_were_set(settings):
    pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler(timestep_spacing="trailing"))
    pipeline.set_progress_bar_config(**settings)
    before = dict(vars(pipeline))
    generate(pipeline, [0], [0], num_inference_steps=2)
    assert pipeline._progress_bar_config == settings and dict(vars(pipeline)) == before


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_steps_of_a_batch_have_a_bar_in_a_terminal_alone(tiny_pipeline, is_terminal, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", written)
    generate(tiny_pipeline, [0, 1], [0, 1], num_inference_steps=3)
    assert written.getvalue() == ""
    generate(tiny_pipeline, [0, 1], [0, 1], progress=True, num_inference_steps=3)
    assert "0/2" in written.getvalue() and ("this batch:   0%|" in written.getvalue()) == is_terminal


@pytest.mark.hostile(22)
@pytest.mark.parametrize(
    "seeds, words",
    [([0, 1, 2**64], "seeds: expected 0 to 18446744073709551615, got 18446744073709551616"), ([0, 1, -1], "-1")],
)
@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_a_seed_that_no_generator_takes_is_refused_before_the_first_image(tiny_pipeline, seeds, words, name, tmp_path):
    tiny_pipeline.unet.forward = lambda *_, **__: pytest.fail("an image was begun")
    with pytest.raises(ValueError, match=words):
        save_samples(tiny_pipeline, [0, 1, 2], seeds, tmp_path / name, batch_size=1, num_inference_steps=1)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.hostile(22)
def test_a_label_of_no_class_is_refused_before_the_first_image(tiny_pipeline):
    tiny_pipeline.unet.forward = lambda *_, **__: pytest.fail("an image was begun")
    with pytest.raises(ValueError, match="expected ids from 0 to 2, got 3"):
        generate(tiny_pipeline, [0, 1, 3], [0, 1, 2], batch_size=1, num_inference_steps=1)


@pytest.mark.hostile(22)
@pytest.mark.parametrize("first, kind", [(0, np.int64), (2**63 - 1, np.uint64), (2**64 - 2, np.uint64)])
def test_any_seed_of_a_generator_is_kept_in_the_archive(tiny_pipeline, first, kind, tmp_path):
    seeds = [first, first + 1]
    save_samples(tiny_pipeline, [0, 1], seeds, tmp_path / "out.npz", num_inference_steps=1)
    with np.load(tmp_path / "out.npz") as archive:
        assert archive["seeds"].dtype == kind and archive["seeds"].tolist() == seeds


HARD_NAMES = [
    "cat/dog",
    "b: c",
    "a/b",
    "a_b",
    "0_a_b",
    "con",
    "NUL.txt",
    "dot.",
    " space ",
    "Cat",
    "cat",
    "",
    "..",
    "__init__",
]
HARD_NAMES += [
    "x" * 5000,
    "x" * 4999 + "y",
    "猫",
    "é",
    "e\u0301",
    "straße",
    "STRASSE",
    "classes.json",
    "a%2Fb",
    "new\nline",
    "train",
]


@pytest.mark.hostile(19)
def test_any_names_of_classes_come_back_from_a_folder_of_samples(tmp_path):
    """Each class has a folder of its own, on any disk, and the folder is a data set of these classes."""
    unet = make_unet("simple", num_classes=len(HARD_NAMES))
    pipeline = CondDDPMPipeline(unet, DDPMScheduler(timestep_spacing="trailing"), dict(enumerate(HARD_NAMES)))
    save_samples(pipeline, HARD_NAMES, range(len(HARD_NAMES)), tmp_path / "made", num_inference_steps=1)
    folders = [path.name for path in (tmp_path / "made").iterdir() if path.is_dir()]
    assert len({name.casefold() for name in folders}) == len(folders) == len(HARD_NAMES)
    for name in folders:
        assert len(name.encode()) <= 120 and name[0] not in " ." and name[-1] not in " ." and not set(name) & set('/\\:*?"<>|')
        assert name.partition(".")[0].lower() not in ("con", "nul")
    assert {"a_b", "0_a_b", "猫", "a%2Fb"} <= set(folders)  # names that any disk can store are kept
    with pytest.warns(UserWarning, match="look alike, but are two classes"):
        data = load_images(str(tmp_path / "made"), resolution=8)
    assert sorted(data.class_names) == sorted(HARD_NAMES)
    images = generate(pipeline, HARD_NAMES, range(len(HARD_NAMES)), num_inference_steps=1)
    for image, label in zip(data.images, data.labels):
        assert abs(image.astype(int) - images[HARD_NAMES.index(data.class_names[label])]).max() <= 1


@pytest.mark.hostile(19)
def test_classes_that_are_called_as_splits_are_classes_in_a_folder_of_samples(tmp_path):
    names = ["train", "test", "val"]
    pipeline = CondDDPMPipeline(make_unet("simple"), DDPMScheduler(timestep_spacing="trailing"), dict(enumerate(names)))
    save_samples(pipeline, names, range(3), tmp_path / "made", num_inference_steps=1)
    data = load_images(str(tmp_path / "made"), resolution=8)
    assert sorted(data.class_names) == sorted(names) and len(data) == 3


@pytest.mark.hostile(19)
def test_a_file_of_classes_that_is_not_ours_is_left_alone(tmp_path):
    from cond_ddpm.data.folders import written_class_names

    (tmp_path / "cat").mkdir()
    for text in ("[1]", "null", "{", '{"cat": 1}', '{"dog": "x"}', '{"cat": ["a"]}'):
        (tmp_path / "classes.json").write_text(text)
        assert not written_class_names(tmp_path)
    (tmp_path / "classes.json").write_text('{"cat": "a cat"}')
    assert written_class_names(tmp_path) == {"cat": "a cat"}


class _Killed(BaseException):
    pass


@pytest.fixture
def simple_pipeline():
    return CondDDPMPipeline(make_unet("simple"), DDPMScheduler(timestep_spacing="trailing"), dict(enumerate(NAMES)))


@pytest.mark.hostile(16)
@pytest.mark.parametrize("name", ["made", "made.npz"])
@pytest.mark.end_to_end
def test_samples_go_on_after_a_kill_at_any_moment(simple_pipeline, tmp_path, name, monkeypatch):
    """Killed before or after any `os.replace`, the next call completes the same files, and draws no batch again that was
    recorded as written."""
    import cond_ddpm.sampling as module

    arguments = {"batch_size": 2, "num_inference_steps": 2, "resume_key": "k"}
    contents = lambda folder: {  # noqa: E731
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    (tmp_path / "whole").mkdir()
    for file in save_samples(simple_pipeline, LABELS, SEEDS, tmp_path / "whole" / name, **arguments)[0]:
        file.unlink()
    original, replace, left, made = module.sample_batches, module.os.replace, [], []

    def counted(*given, **named):
        for batch in original(*given, **named):
            made.append(batch[0])
            yield batch

    def killed(*paths):
        for after in (False, True):
            if after:
                replace(*paths)
            left.append(None)
            if len(left) == when:
                raise _Killed

    monkeypatch.setattr(module, "sample_batches", counted)
    monkeypatch.setattr(module.os, "replace", killed)
    for when in range(1, 100):
        folder, before = tmp_path / str(when), len(left)
        folder.mkdir()
        left.clear()
        made.clear()
        try:
            save_samples(simple_pipeline, LABELS, SEEDS, folder / name, **arguments)
        except _Killed:
            assert len(made) <= 4
        else:
            break
        files, _ = save_samples(simple_pipeline, LABELS, SEEDS, folder / name, **arguments)
        assert len(made) <= 5  # at most the one batch that was not yet recorded is drawn again
        again = len(made)
        assert save_samples(simple_pipeline, LABELS, SEEDS, folder / name, **arguments)[0] == files
        assert len(made) == again  # nothing is left to draw
        for file in files:
            file.unlink()
        assert contents(folder) == contents(tmp_path / "whole"), when
    assert when > 8, before


@pytest.mark.hostile(16)
@pytest.mark.parametrize("name", ["made", "made.npz"])
def test_samples_of_something_else_are_not_gone_on_from(simple_pipeline, tmp_path, name):
    arguments = {"batch_size": 2, "num_inference_steps": 1}
    save_samples(simple_pipeline, LABELS, SEEDS, tmp_path / name, resume_key="one", **arguments)
    if name == "made":
        with pytest.raises(ValueError, match="output: expected a new or empty folder"):
            save_samples(simple_pipeline, LABELS, SEEDS, tmp_path / name, resume_key="other", **arguments)
        return
    save_samples(simple_pipeline, LABELS, range(8, 16), tmp_path / name, **arguments)  # without a key it starts anew
    save_samples(simple_pipeline, LABELS, SEEDS, tmp_path / name, resume_key="one", **arguments)
    assert np.load(tmp_path / name)["seeds"].tolist() == SEEDS


@pytest.mark.hostile(16)
@pytest.mark.parametrize("name", ["made", "made.npz"])
def test_the_same_command_goes_on_after_a_kill(tiny_pipeline, tmp_path, name, monkeypatch):
    import cond_ddpm.sampling as module
    from cond_ddpm.cli import main

    tiny_pipeline.save_pretrained(tmp_path / "model")
    few = ["--num_images_per_class", "3", "--num_inference_steps", "2", "--batch_size", "2"]
    command = ["sample", "--model", str(tmp_path / "model"), *few, "--output"]
    assert main([*command, str(tmp_path / "whole" / name)]) == 0
    write, written = module._ProgressRecord.write, []

    def killed(record, done, seconds):
        if done == 3:
            raise _Killed
        written.append(done)
        write(record, done, seconds)

    monkeypatch.setattr(module._ProgressRecord, "write", killed)
    with pytest.raises(_Killed):
        main([*command, str(tmp_path / "killed" / name)])
    assert written == [0, 1, 2]
    monkeypatch.setattr(module._ProgressRecord, "write", write)
    drawn = []
    monkeypatch.setattr(
        module, "sample_batches", lambda *given, **named: drawn.append(given[-1]) or sample_batches(*given, **named)
    )
    assert main([*command, str(tmp_path / "killed" / name)]) == 0
    assert drawn == [2]  # the number of batches that are not drawn again
    found = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert found[0] == found[1]
