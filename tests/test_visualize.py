"""Pictures: what they show is what they were given, from Python and by the command line, whatever the names."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from cond_ddpm import CondDDPMPipeline, generate, visualize
from cond_ddpm.cli import main
from cond_ddpm.config import TrainConfig
from cond_ddpm.visualize import class_grid, forward_strip, loss_curve, read_metrics


def _places(path, values):
    """Centre (row, column) of each grey value in a picture, in the order of the values; only large patches count."""
    picture = np.asarray(Image.open(path).convert("L"))
    return [np.argwhere(picture == value).mean(axis=0) for value in values if (picture == value).sum() > 1000]


@pytest.mark.parametrize("extra", [{}, {"column_names": ["a", "b", "c"], "captions": [f"caption\n{i}" for i in range(6)]}])
@pytest.mark.end_to_end
def test_class_grid_shows_each_image_in_its_place(tmp_path, extra):
    """Six images of one grey value each, in two rows: the values appear in reading order."""
    values = np.array([30, 70, 110, 150, 190, 230], np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (6, 1, 32, 32))
    class_grid(images, ["cat", "dog"], tmp_path / "grid.png", "title", **extra)
    places = _places(tmp_path / "grid.png", values)
    assert len(places) == 6
    rows, columns = np.array(places).T.reshape(2, 2, 3)
    assert np.ptp(rows, axis=1).max() < 2 and np.ptp(columns, axis=0).max() < 2
    assert (np.diff(rows, axis=0) > 50).all() and (np.diff(columns, axis=1) > 50).all()


@pytest.mark.end_to_end
def test_loss_curve_of_one_epoch_and_of_many_and_of_several_runs(tmp_path):
    rows = [{"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch} for epoch in range(1, 60)]
    for runs in ({"run": rows[:1]}, {"run": rows}, {"one": rows, "other": rows[:9]}):
        loss_curve(runs, tmp_path / "loss.png")
        assert np.asarray(Image.open(tmp_path / "loss.png")).std() > 5


def test_forward_strip_is_the_schedule(tiny_pipeline, tmp_path):
    """A grey image is still there at t = 0, and at the last timestep there is noise."""
    image = np.full((3, 8, 8), 100, np.uint8)
    forward_strip(image, tiny_pipeline.scheduler, tmp_path / "strip.png", timesteps=[0, 999])
    picture = np.asarray(Image.open(tmp_path / "strip.png").convert("L")).astype(float)
    middle = picture[picture.shape[0] // 3]
    grey = abs(middle - 100) < 12
    assert grey[: len(grey) // 2 + 40].sum() > 100 and grey[len(grey) // 2 + 40 :].mean() < 0.3


@pytest.fixture(scope="module")
def run(shapes_parquet, tmp_path_factory):
    from cond_ddpm.training import train

    config = TrainConfig(
        dataset=str(shapes_parquet),
        resolution=8,
        model="attention",
        prediction_type="epsilon",  # a network that has learned nothing yet then shows how noise becomes less
        unet={"block_out_channels": [8, 16], "layers_per_block": 1, "pos_dim": 16},
        batch_size=16,
        num_validation_images=16,
        num_epochs=2,
        num_inference_steps=2,
        num_images_per_class=1,
        output_dir=str(tmp_path_factory.mktemp("run")),
        report_to="none",
    )
    return train(config)


@pytest.mark.parametrize(
    "kind, flags",
    [
        ("forward", ["--class_label", "cross", "--dataset", "DATA"]),
        ("denoising", ["--class_label", "1", "--columns", "3", "--guidance_scale", "2"]),
        ("gif", ["--columns", "2"]),
        ("classes", ["--class_labels", "circle", "2"]),
        ("guidance", ["--scales", "0", "1", "2"]),
        ("steps", ["--steps", "1", "2", "--sampler", "ddim"]),
        ("epochs", ["--columns", "3"]),
        ("neighbours", ["--dataset", "DATA", "--columns", "2"]),
        ("loss", []),
    ],
)
@pytest.mark.end_to_end
def test_each_picture_by_the_command_line(kind, flags, run, shapes_parquet, tmp_path, capsys):
    output = tmp_path / f"{kind}.{'gif' if kind == 'gif' else 'png'}"
    source = ["--run", str(run)] if kind in ("epochs", "loss") else ["--model", str(run / "pipeline")]
    if kind not in ("steps", "forward", "loss"):
        source += ["--num_inference_steps", "4"]
    flags = [str(shapes_parquet) if flag == "DATA" else flag for flag in flags]
    assert main(["visualize", kind, *source, *flags, "--output", str(output)]) == 0, capsys.readouterr().err
    with Image.open(output) as picture:
        assert min(picture.size) > 50 and np.asarray(picture.convert("L")).std() > 5
        if kind == "gif":
            assert picture.n_frames == 5
            frames = []
            for frame in range(5):
                picture.seek(frame)
                frames.append((picture.info["duration"], np.asarray(picture.convert("L"))))
            assert [duration for duration, _ in frames] == [100] * 4 + [2000]
            assert all(abs(a[1].astype(int) - b[1]).mean() > 1 for a, b in itertools.pairwise(frames[:4]))


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["paint"], 2, "expected one of forward, denoising, gif"),
        (["classes", "--model", "MODEL", "--output", "x.jpg"], 2, "--output: expected a name ending in .png"),
        (["guidance", "--model", "MODEL", "--output", "x.png", "--guidance_scale", "2"], 2, "unrecognized arguments"),
        (["classes", "--model", "MODEL", "--output", "x.png", "--columns", "0"], 2, "--columns: expected 1 or more"),
        pytest.param(
            *(
                ["denoising", "--model", "MODEL", "--output", "x.png", "--columns", "1"],
                2,
                "--columns: expected 2 or more, got 1",
            ),
            marks=pytest.mark.hostile(24),
        ),
        pytest.param(
            ["neighbours", "--model", "MODEL", "--dataset", "DATA", "--output", "x.png", "--columns", "1000"],
            1,
            "error: columns: expected at most the 96 training images, got 1000",
            marks=pytest.mark.hostile(24),
        ),
        pytest.param(
            *(
                ["classes", "--model", "MODEL", "--output", "x.png", "--class_labels", "²"],
                1,
                "class_labels: expected one of circle",
            ),
            marks=pytest.mark.hostile(24),
        ),
        (["classes", "--model", "RUN", "--output", "x.png"], 1, "expected a pipeline folder"),
        (["classes", "--model", "MODEL", "--output", "x.png", "--class_labels", "crss"], 1, "Did you mean 'cross'?"),
        (["loss", "--run", "MODEL", "--output", "x.png"], 1, "run: expected a run folder with a metrics.csv"),
        (["forward", "--model", "MODEL", "--dataset", "mnist5k", "--output", "x.png"], 1, "expected the model's classes"),
        (
            ["forward", "--model", "MODEL", "--dataset", "DATA", "--index", "99", "--output", "x.png"],
            1,
            "index: expected 0 to 31",
        ),
    ],
)
@pytest.mark.end_to_end
def test_bad_input(arguments, code, words, run, shapes_parquet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": str(run / "pipeline"), "RUN": str(run), "DATA": str(shapes_parquet)}
    try:
        found = main(["visualize", *(names.get(argument, argument) for argument in arguments)])
    except SystemExit as exit:
        found = exit.code
    printed = capsys.readouterr().err
    assert found == code and words in printed and "Traceback" not in printed


def test_metrics_read_back(run):
    rows = read_metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["val_loss"] > 0


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each grid that is drawn."""
    grids = []

    def class_grid(images, row_names, path, title=None, column_names=None, captions=None, inches=0):
        grids.append(
            {"images": images, "rows": list(row_names), "columns": column_names, "captions": captions, "title": title}
        )

    for module in (visualize.strips, visualize.sweeps):
        monkeypatch.setattr(module, "class_grid", class_grid)
    return grids


def test_sweeps_show_each_setting_from_the_same_noise(tiny_pipeline, drawn):
    visualize.guidance_sweep(tiny_pipeline, ["cross", 0], "x", scales=(0, 1, 4), seed=5, num_inference_steps=3)
    visualize.steps_sweep(tiny_pipeline, [2, 0], "x", steps=(1, 4), seed=5, guidance_scale=2.0)
    for grid, each in (
        (drawn[0], [{"guidance_scale": scale, "num_inference_steps": 3} for scale in (0.0, 1.0, 4.0)]),
        (drawn[1], [{"guidance_scale": 2.0, "num_inference_steps": steps} for steps in (1, 4)]),
    ):
        expected = np.stack([generate(tiny_pipeline, [2, 0], [5, 6], **arguments) for arguments in each], axis=1)
        assert np.array_equal(grid["images"], expected.reshape(-1, 3, 8, 8)) and grid["rows"] == ["cross", "circle"]
    assert drawn[0]["columns"] == ["w = 0", "w = 1", "w = 4"] and drawn[1]["columns"] == ["1", "4"]


def test_sweeps_guide_otherwise_but_where_that_has_no_effect(tiny_pipeline, drawn):
    few = {"num_inference_steps": 3, "guidance_rescale": 0.7}
    visualize.guidance_sweep(tiny_pipeline, [0], "x", scales=(1, 4), **few)
    visualize.steps_sweep(tiny_pipeline, [0], "x", steps=(3,), guidance_scale=4.0, guidance_rescale=0.7)
    plain = generate(tiny_pipeline, [0], [0], num_inference_steps=3)
    rescaled = generate(tiny_pipeline, [0], [0], guidance_scale=4.0, **few)
    assert np.array_equal(drawn[0]["images"], np.concatenate([plain, rescaled]))
    assert np.array_equal(drawn[1]["images"], rescaled)
    with pytest.raises(ValueError, match="guidance_scale: expected a value other than 1"):
        visualize.steps_sweep(tiny_pipeline, [0], "x", steps=(3,), guidance_rescale=0.7)


def test_denoising_strip_is_noise_above_and_the_image_below(tiny_pipeline, drawn):
    visualize.denoising_strip(tiny_pipeline, "square", "x", columns=4, seed=3, num_inference_steps=4)
    grid, image = drawn[0], generate(tiny_pipeline, [1], [3], num_inference_steps=4)[0]
    assert grid["rows"] == ["x_t", "predicted x_0"] and grid["columns"] == ["t = 999", "t = 749", "t = 499", "t = 249"]
    noise = torch.randn((3, 8, 8), generator=torch.Generator().manual_seed(3))
    assert abs(grid["images"][0].astype(int) - ((noise.numpy() / 2 + 0.5).clip(0, 1) * 255).round()).max() <= 1
    assert abs(grid["images"][7].astype(int) - image).max() <= 1


def test_forward_strip_has_the_signal_to_noise_ratio_of_the_schedule(drawn):
    scheduler = DDPMScheduler()
    image = np.full((3, 8, 8), 100, np.uint8)
    visualize.forward_strip(image, scheduler, "x", timesteps=[0, 500, 999])
    alphas_cumprod = scheduler.alphas_cumprod[[0, 500, 999]]
    ratios = [float(caption.split()[-1]) for caption in drawn[0]["captions"]]
    assert ratios == pytest.approx((alphas_cumprod / (1 - alphas_cumprod)).tolist(), rel=0.1)
    assert abs(drawn[0]["images"][0].astype(int) - 100).max() < 8 < abs(drawn[0]["images"][2].astype(int) - 100).mean()


def test_epochs_strip_shows_the_weights_of_each_moment(run, drawn):
    from cond_ddpm.ema import combine_snapshots, snapshot_steps

    pipeline = CondDDPMPipeline.from_pretrained(run / "pipeline")
    steps = snapshot_steps(run / "ema")
    visualize.epochs_strip(run, pipeline, [1], "x", columns=2, seed=4, num_inference_steps=2)
    assert drawn[0]["columns"] == [f"step {steps[len(steps) // 2 - 1]}", f"step {steps[-1]}"]
    for column, name in enumerate(drawn[0]["columns"]):
        pipeline.unet.load_state_dict(combine_snapshots(run / "ema", 0.05, int(name.split()[1]))[0])
        assert np.array_equal(drawn[0]["images"][column], generate(pipeline, [1], [4], num_inference_steps=2)[0])


def test_runs_of_the_same_name_are_both_drawn(run, tmp_path, monkeypatch):
    import shutil

    for parent in ("a", "b"):
        shutil.copytree(run, tmp_path / parent / "run")
    found = {}
    monkeypatch.setattr(visualize, "loss_curve", lambda runs, path: found.update(runs))
    runs = [str(tmp_path / parent / "run") for parent in ("a", "b")]
    assert main(["visualize", "loss", "--run", *runs, "--output", str(tmp_path / "x.png")]) == 0
    assert list(found) == runs


@pytest.mark.hostile(20)
def test_names_without_letters_in_any_font_are_numbered_with_one_warning(tmp_path, monkeypatch):
    """And nothing is drawn as a box: matplotlib, which would warn of each, does not."""
    import warnings

    drawn = []
    save = visualize.drawing._save
    monkeypatch.setattr(
        visualize.drawing, "_save", lambda figure, path, legend: drawn.append(legend) or save(figure, path, legend)
    )
    monkeypatch.setattr(visualize.drawing, "_fonts_for", lambda letters: ([], set("猫狗") & set(letters)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        class_grid(np.zeros((3, 1, 8, 8), np.uint8), ["cat", "猫", "狗"], tmp_path / "x.png", "猫, seed 3")
    assert len(said) == 1 and "1 = 猫, 2 = 狗, *2 = 猫, seed 3" in str(said[0].message)
    assert drawn == ["1 = \\u732b\n2 = \\u72d7\n*2 = \\u732b, seed 3"]


@pytest.mark.hostile(20)
def test_letters_come_from_an_installed_font_that_has_them():
    """A letter that DejaVu Sans has not, but another that matplotlib brings has; none has one that does not exist."""
    from matplotlib import font_manager

    font = lambda family: font_manager.get_font(font_manager.findfont(family))  # noqa: E731
    theirs = set(font("STIXGeneral").get_charmap()) - set(font("DejaVu Sans").get_charmap())
    letter = next(chr(code) for code in sorted(theirs) if not chr(code).isspace())
    chosen, missing = visualize.drawing._fonts_for(f"a{letter}")
    assert chosen and not missing
    assert visualize.drawing._fonts_for("abc é") == ([], set()) and visualize.drawing._fonts_for("\U0003fffe")[1] == {
        "\U0003fffe"
    }


@pytest.mark.hostile(20)
@pytest.mark.end_to_end
def test_any_names_in_every_picture(tmp_path):
    """Line breaks, mathematics, control characters, 5000 letters: pictures of a usual size."""
    names = ["two\nlines", "$x^$", "\x1b[31m", "x" * 5000, "_hidden", "<b>"]
    class_grid(np.zeros((6, 3, 8, 8), np.uint8), names, tmp_path / "grid.png", names[0], names[:1])
    visualize.confusion_picture(np.eye(6, 7, dtype=int), names, tmp_path / "confusion.png")
    rows = [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0}]
    loss_curve(dict.fromkeys(names, rows), tmp_path / "loss.png")
    row = {"epochs": 1, "minutes": 1, "training_flop": 1, "frechet_distance": 1.0}
    visualize.quality_curves([{**row, "model": name} for name in names], {"frechet_distance": 0.5}, tmp_path / "quality.png")
    for name in ("grid", "confusion", "loss", "quality"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert max(picture.size) < 3000


@pytest.mark.hostile(24)
@pytest.mark.end_to_end
def test_a_picture_of_many_images_is_drawn_smaller(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, *_, **named: sizes.append(figure.get_size_inches() * figure.dpi)
    )
    class_grid(np.zeros((1000, 1, 4, 4), np.uint8), ["a"] * 1000, tmp_path / "x.png")
    visualize.confusion_picture(np.eye(700, 701, dtype=int), ["a"] * 700, tmp_path / "x.png")
    assert all(max(size) < 2**16 and size[0] * size[1] < 2.1e8 for size in sizes) and len(sizes) == 2


@pytest.mark.hostile(22)
@pytest.mark.parametrize(
    "content",
    [
        "null\n",
        "",
        "epoch,train_loss,val_loss\n",
        "epoch,train_loss,val_loss\nnull,null,null\n",
        "epoch,train_loss,val_loss\n1,2\n",
        "epoch,x\n1,2\n",
        "epoch,train_loss,val_loss\n1,2,3,4\n",
        "epoch,train_loss,val_loss\nnan,2,3\n",
    ],
)
def test_metrics_of_something_else_are_said_in_one_line(tmp_path, content, capsys):
    (tmp_path / "metrics.csv").write_text(content)
    assert main(["visualize", "loss", "--run", str(tmp_path), "--output", str(tmp_path / "x.png")]) == 1
    assert capsys.readouterr().err.startswith("error: run: expected rows")
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="run: expected rows"):
        read_metrics(tmp_path)
