"""Pictures of diffusion at work: noising, denoising, classes, sweeps of guidance and steps, epochs, neighbours, losses.

May import: `sampling, ema, text`, the pipeline. Arrays, pipelines and rows of metrics come in, image files go out;
nothing is next.
"""

import csv
import functools
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from cond_ddpm.ema import combine_snapshots, snapshot_steps
from cond_ddpm.pipelines.pipeline_cond_ddpm import CondDDPMPipeline
from cond_ddpm.sampling import autocast, generate
from cond_ddpm.text import shown

# Letters


def _lettering(*groups: Sequence[str]) -> tuple[dict, list[list[str]], str]:
    """How texts of a picture are to be drawn: settings of matplotlib, the texts, and a legend, or "".

    Control characters become escapes, long texts lose their middle. Letters that matplotlib's own font has not are drawn in
    an installed font that has them. Where there is none, such names are numbered, and the legend and a warning say what is
    what.
    """
    import matplotlib

    groups = [[_short_name(text) for text in texts] for texts in groups]
    letters = "".join(sorted({c for texts in groups for text in texts for c in text}))
    fallback, missing = _fonts_for(letters)
    settings = {"font.family": [*matplotlib.rcParams["font.family"], *fallback]}
    if not missing:
        return settings, groups, ""
    unreadable = [text for text in dict.fromkeys(text for texts in groups for text in texts) if missing & set(text)]
    # A class's number is its place among the names, which is its id where all classes are drawn.
    numbers = {text: str(groups[0].index(text)) if text in groups[0] else f"*{n}" for n, text in enumerate(unreadable)}
    warnings.warn(
        "no installed font has the letters of some names; in pictures they are numbered:"
        f" {', '.join(f'{number} = {text}' for text, number in numbers.items())}. Install a font such as Noto Sans CJK.",
        stacklevel=3,
    )
    escaped = [f"{number} = {ascii(text)[1:-1]}" for text, number in numbers.items()]
    return settings, [[numbers.get(text, text) for text in texts] for texts in groups], _legend(escaped)


def _short_name(text: str, length: int = 48) -> str:
    text = shown(text)
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 4 :]}"


def _legend(lines: list[str], most: int = 30) -> str:
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*(_short_name(line, 80) for line in lines[:most]), *more])


@functools.lru_cache
def _fonts_for(letters: str) -> tuple[list[str], set[str]]:
    """Installed fonts for the letters that matplotlib's default has not, and the letters that none has."""
    from matplotlib import font_manager

    def of(file: str, wanted: set[str]) -> set[str]:
        try:
            font = font_manager.get_font(file)
        except (OSError, RuntimeError):  # it is not there any more, or broken
            return set()
        return {c for c in wanted if font.get_char_index(ord(c))}

    missing = {c for c in letters if not c.isspace()}
    missing -= of(font_manager.findfont(font_manager.FontProperties()), missing)
    if not missing:
        return [], missing
    # Upright ones of usual weight; not the one whose glyphs are boxes for every character there is.
    fonts = {
        font.name: font.fname for font in font_manager.fontManager.ttflist if (font.style, font.weight) == ("normal", 400)
    }
    fonts.pop("Last Resort High-Efficiency", None)
    chosen = []
    for family in sorted(fonts, key=lambda name: ("Sans" not in name, "CJK" not in name, name)):
        found = of(fonts[family], missing)
        if found:
            chosen.append(family)
            missing -= found
        if not missing:
            break
    return chosen, missing


def _save(figure, path: str | Path | io.BytesIO, legend: str = "") -> None:
    """At the figure's resolution, or less where that would be more pixels than a picture can have."""
    if legend:
        figure.text(0, 0, legend, fontsize=6, va="top", parse_math=False)
    wide, high = figure.get_size_inches()
    figure.set_dpi(min(figure.dpi, 60_000 / max(wide, high), math.sqrt(2e8 / (wide * high))))
    figure.savefig(path, dpi="figure", bbox_inches="tight", pad_inches=0.05)


# Grids


def class_grid(
    images: np.ndarray,
    row_names: Sequence[str],
    path: str | Path | io.BytesIO,
    title: str | None = None,
    column_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    inches: float = 0.5,
) -> None:
    """Write a PNG with a labelled row a class, or of whatever else the rows and columns are.

    Args:
        images: (rows * columns, C, H, W) uint8, row by row.
        row_names: name of each row.
        path: of the PNG.
        title: above the grid.
        column_names: above each column.
        captions: below each image.
        inches: of an image, at 200 pixels an inch; 0.5 is three screen pixels for each of a 32-pixel image.
    """
    import matplotlib
    from matplotlib.figure import Figure

    texts = (row_names, column_names or [], [title] if title else [])
    settings, (row_names, column_names, titles), legend = _lettering(*texts)
    rows, columns = len(row_names), len(images) // len(row_names)
    channels, height, width = images.shape[1:]
    gap = max(1, height // 16)
    row_gap = gap if captions is None else round(0.15 / inches * height * (1 + max(text.count("\n") for text in captions)))
    canvas = np.full((rows * (height + row_gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    corners = [(index // columns * (height + row_gap), index % columns * (width + gap)) for index in range(rows * columns)]
    for (top, left), image in zip(corners, images):
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)

    label_inches = 0.3 + 0.085 * max(len(name) for name in row_names)
    inches_high = canvas.shape[0] / height * inches + (0.3 if titles else 0) + (0.3 if column_names else 0.1)
    with matplotlib.rc_context(settings):
        size = (canvas.shape[1] / width * inches + label_inches, inches_high)
        figure = Figure(figsize=size, dpi=200, layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_yticks([row * (height + row_gap) + height / 2 for row in range(rows)], row_names, parse_math=False)
        centres = [column * (width + gap) + width / 2 for column in range(columns)]
        axes.set_xticks(centres if column_names else [], column_names, parse_math=False, fontsize=8)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        for (top, left), text in zip(corners, captions or ()):
            axes.text(left + width / 2, top + height + gap / 2, text, ha="center", va="top", fontsize=6.5, parse_math=False)
        if titles:
            axes.set_title(titles[0], fontsize=9, parse_math=False)
        _save(figure, path, legend)


def _names(pipeline: CondDDPMPipeline, labels: Sequence[int]) -> list[str]:
    return [(pipeline.id2label or {}).get(label, f"class {label}") for label in labels]


def _pixels(samples: torch.Tensor) -> np.ndarray:
    """[-1, 1] -> uint8; what lies outside, as noise does, is clipped."""
    return ((samples.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


# Noising and denoising


def forward_strip(
    image: np.ndarray,
    scheduler: DDPMScheduler,
    path: str | Path,
    title: str | None = None,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
) -> None:
    """A real image under more and more of the same noise, the signal-to-noise ratio under each.

    Args:
        image: (C, H, W) uint8.
        scheduler: any with the model's betas.
        path: of the PNG.
        title: above the strip.
        timesteps: if not given, nine from the first to the last, denser at first.
        seed: of the noise.
    """
    last = scheduler.config.num_train_timesteps - 1
    timesteps = torch.tensor(timesteps or sorted({round(last * (i / 8) ** 1.5) for i in range(9)}))
    clean = torch.tensor(image).float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).expand(len(timesteps), *clean.shape)
    noising = DDPMScheduler.from_config(scheduler.config)
    noisy = noising.add_noise(clean.expand_as(noise), noise, timesteps)
    captions = [f"t = {t}\nSNR {_short(snr)}" for t, snr in zip(timesteps.tolist(), compute_snr(noising, timesteps).tolist())]
    class_grid(_pixels(noisy), ["x_t"], path, title, captions=captions, inches=0.8)


def _short(number: float) -> str:
    """Two digits, without an exponent: 9999, 5.7, 0.18, 0.00004."""
    digits = max(0, 1 - math.floor(math.log10(number))) if 0 < number < 10 else 0
    return f"{number:.{digits}f}"


def _steps(pipeline: CondDDPMPipeline, arguments: dict) -> int:
    return arguments.get("num_inference_steps") or pipeline.default_steps(pipeline.make_scheduler(arguments.get("sampler")))


def denoising_strip(
    pipeline: CondDDPMPipeline, class_label: int | str, path: str | Path, columns: int = 9, seed: int = 0, **arguments
) -> None:
    """How noise becomes an image of the class: x_t above, the x_0 predicted from it below.

    Args:
        pipeline: the model.
        class_label: id or name.
        path: of the PNG.
        columns: steps shown, evenly spaced from first to last.
        seed: of the image.
        arguments: passed on to the pipeline.
    """
    steps = _steps(pipeline, arguments)
    shown = min(columns, steps)
    with autocast(arguments.pop("mixed_precision", "no"), pipeline.device):
        output = pipeline([class_label], seeds=[seed], return_intermediates=shown, output_type="pt", **arguments)
    strips = torch.cat([output.intermediate_samples[:, 0], output.intermediate_predictions[:, 0]])
    names = [f"t = {t:g}" for t in output.intermediate_timesteps.tolist()]
    title = f"{_names(pipeline, pipeline.label_ids(class_label))[0]}, seed {seed}"
    class_grid(_pixels(strips), ["x_t", "predicted x_0"], path, title, column_names=names, inches=0.8)


def denoising_gif(
    pipeline: CondDDPMPipeline,
    class_labels: Sequence[int | str],
    path: str | Path,
    columns: int = 4,
    frames: int = 20,
    seed: int = 0,
    **arguments,
) -> None:
    """The same for several classes, x_t in motion; it stays on the last image for two seconds.

    Args:
        pipeline: the model.
        class_labels: ids or names, a row each.
        path: of the GIF.
        columns: images of each class.
        frames: steps shown, evenly spaced from first to last, if there are so many.
        seed: of the first image.
        arguments: passed on to the pipeline.
    """
    from PIL import Image

    labels = pipeline.label_ids(class_labels)
    steps = _steps(pipeline, arguments)
    seeds = range(seed, seed + len(labels) * columns)
    with autocast(arguments.pop("mixed_precision", "no"), pipeline.device):
        output = pipeline(
            labels,
            num_images_per_label=columns,
            seeds=list(seeds),
            return_intermediates=min(frames, steps),
            output_type="pt",
            **arguments,
        )
    final = (output.images * 255).round().to(torch.uint8).cpu().numpy()
    states = [*map(_pixels, output.intermediate_samples), final]
    titles = [*(f"t = {t:g}" for t in output.intermediate_timesteps.tolist()), "done"]
    pictures = []
    for state, title in zip(states, titles):
        file = io.BytesIO()
        class_grid(state, _names(pipeline, labels), file, title)
        picture = Image.open(file).convert("RGB")
        pictures.append(picture.resize(pictures[0].size if pictures else (picture.width // 2, picture.height // 2)))
    durations = [100] * (len(pictures) - 1) + [2000]
    # One palette for all frames, of the first and the last, so that colours do not flicker.
    both = Image.new("RGB", (pictures[0].width, 2 * pictures[0].height))
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[-1], (0, pictures[0].height))
    palette = both.quantize(255)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False)


# Sweeps: a row a class, the same noise along a row


def guidance_sweep(
    pipeline: CondDDPMPipeline,
    class_labels: Sequence[int | str],
    path: str | Path,
    scales: Sequence[float] = (0, 0.5, 1, 1.5, 2, 3, 5, 8),
    seed: int = 0,
    **arguments,
) -> None:
    """What `guidance_scale` does: 0 is told no class, 1 the class, more exaggerates it.

    Args:
        pipeline: the model.
        class_labels: ids or names, a row each.
        path: of the PNG.
        scales: a column each.
        seed: of the first row.
        arguments: passed on to the pipeline.
    """
    each = [{"guidance_scale": scale} for scale in scales]
    _sweep(pipeline, class_labels, path, each, [f"w = {scale:g}" for scale in scales], "guidance_scale w", seed, arguments)


def steps_sweep(
    pipeline: CondDDPMPipeline,
    class_labels: Sequence[int | str],
    path: str | Path,
    steps: Sequence[int] = (2, 3, 5, 10, 20, 50, 100),
    seed: int = 0,
    **arguments,
) -> None:
    """How many steps are enough.

    Args:
        pipeline: the model.
        class_labels: ids or names, a row each.
        path: of the PNG.
        steps: numbers of them, a column each.
        seed: of the first row.
        arguments: passed on to the pipeline.
    """
    each = [{"num_inference_steps": number} for number in steps]
    title = f"num_inference_steps, {arguments.get('sampler') or type(pipeline.scheduler).__name__}"
    _sweep(pipeline, class_labels, path, each, [str(number) for number in steps], title, seed, arguments)


_GUIDING = ("guide", "guidance_interval", "guidance_rescale")


def _sweep(pipeline, class_labels, path, each, names, title, seed, arguments) -> None:
    labels = pipeline.label_ids(class_labels)
    seeds = range(seed, seed + len(labels))
    columns = []
    for more in each:
        called = {**arguments, **more}
        if more.get("guidance_scale") == 1:  # then these have no effect, and are refused
            called = {name: value for name, value in called.items() if name not in _GUIDING}
        columns.append(generate(pipeline, labels, seeds, **called))
    images = np.stack(columns, axis=1)  # (rows, columns, C, H, W)
    class_grid(images.reshape(-1, *images.shape[2:]), _names(pipeline, labels), path, title, column_names=names, inches=0.6)


def epochs_strip(
    run: Path,
    pipeline: CondDDPMPipeline,
    class_labels: Sequence[int | str],
    path: str | Path,
    columns: int = 8,
    std: float = 0.05,
    seed: int = 0,
    **arguments,
) -> None:
    """What the network made of the same noise as it was trained: from the snapshots of its averages.

    Args:
        run: a run's folder, with `ema/`.
        pipeline: the run's; its network gets the weights of each moment in turn, and keeps the last.
        class_labels: ids or names, a row each.
        path: of the PNG.
        columns: moments shown, the last and those evenly spaced before it.
        std: relative width of the averages.
        seed: of the first row.
        arguments: passed on to the pipeline.

    Raises:
        ValueError: a run without snapshots.
    """
    labels = pipeline.label_ids(class_labels)
    steps = snapshot_steps(run / "ema")
    steps = [steps[i] for i in sorted({round((i + 1) * len(steps) / columns) - 1 for i in range(columns)}) if i >= 0]
    seeds, images = range(seed, seed + len(labels)), []
    for step in steps:
        pipeline.unet.load_state_dict(combine_snapshots(run / "ema", std, step)[0])
        images.append(generate(pipeline, labels, seeds, **arguments))
    images = np.stack(images, axis=1)
    names = [f"step {step}" for step in steps]
    class_grid(
        images.reshape(-1, *images.shape[2:]), _names(pipeline, labels), path, "training", column_names=names, inches=0.6
    )


# Memorisation


def nearest_neighbours(
    images: np.ndarray, names: Sequence[str], training_images: np.ndarray, path: str | Path, columns: int = 5
) -> np.ndarray:
    """Each sample and the training images, mirrored ones too, that are nearest to it: a check of memorisation.

    Args:
        images: samples, (N, C, H, W) uint8, a row each.
        names: of the rows.
        training_images: (M, C, H, W) uint8.
        path: of the PNG.
        columns: neighbours shown.

    Returns:
        The distances, (N, columns): the root mean square over pixels, of 255.

    Raises:
        ValueError: more columns than training images.
    """
    if columns > len(training_images):
        raise ValueError(f"columns: expected at most the {len(training_images)} training images, got {columns}.")
    indices, mirrored, distances = nearest(images, training_images, columns)
    rows, captions = [], []
    for image, of_image, turned, far in zip(images, indices, mirrored, distances):
        near = training_images[of_image]
        rows += [image, *(picture[..., ::-1] if flip else picture for picture, flip in zip(near, turned))]
        captions += ["", *(f"{distance:.1f}" for distance in far)]
    column_names = ["sample", "nearest", *(f"{rank}." for rank in range(2, columns + 1))]
    title = "nearest training images (root mean square difference, of 255)"
    class_grid(np.stack(rows), names, path, title, column_names, captions, inches=0.6)
    return distances


def nearest(images: np.ndarray, training_images: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of (N, C, H, W) uint8 the `count` nearest of (M, C, H, W), as they are or mirrored, nearest first.

    Returns:
        Indices (N, count), which were mirrored (N, count), and distances (N, count): root mean square over pixels.
    """
    samples = torch.from_numpy(images.reshape(len(images), -1)).float()
    found = []  # (N, <= count) each: squared distances, rows, mirrored
    for flip in (False, True):
        for start in range(0, len(training_images), 5000):
            block = training_images[start : start + 5000]
            block = np.array(block[..., ::-1] if flip else block, np.float32, order="C")  # a copy: a mapped file is read-only
            block = torch.from_numpy(block).reshape(len(block), -1)
            squares = (samples**2).sum(1)[:, None] - 2 * samples @ block.T + (block**2).sum(1)
            values, rows = squares.topk(min(count, len(block)), largest=False)
            found.append((values, rows + start, torch.full_like(rows, flip)))
    squares, rows, flips = (torch.cat(parts, dim=1) for parts in zip(*found))
    order = squares.argsort(dim=1, stable=True)
    squares, rows, flips = (part.gather(1, order).numpy() for part in (squares, rows, flips))
    # A symmetric image comes twice: as it is, and mirrored.
    first = np.array([[row not in of_one[:i] for i, row in enumerate(of_one)] for of_one in rows])
    kept = np.array([np.flatnonzero(of_one)[:count] for of_one in first])
    rows, flips = (np.take_along_axis(part, kept, axis=1) for part in (rows, flips))
    found = training_images[rows]  # (N, count, C, H, W)
    found = np.where(flips.astype(bool)[:, :, None, None, None], found[..., ::-1], found)
    # Anew from the differences: the squares above are rounded, being those of large sums.
    distances = np.sqrt(((found.astype(np.float64) - images[:, None]) ** 2).mean(axis=(2, 3, 4)))
    return rows, flips.astype(bool), distances


# Classes seen by a classifier


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """Write a PNG of what share of each class asked for is taken for which class.

    Args:
        confusion: (K, K) counts: class asked for, class seen.
        class_names: K of them.
        path: of the PNG.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings, (class_names,), legend = _lettering(class_names)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = 1.5 + 0.42 * len(class_names)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(size, size), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=45, ha="right", parse_math=False, fontsize=8)
        axes.set_yticks(ticks, class_names, parse_math=False, fontsize=8)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005 and len(class_names) <= 30:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=6, color=colour)
        axes.set_xlabel("seen by the classifier")
        axes.set_ylabel("asked for")
        axes.set_title(f"{np.trace(confusion) / confusion.sum():.1%} of {confusion.sum()} are what was asked for", fontsize=9)
        _save(figure, path, legend)


# Losses and other courses


def quality_curves(rows: Sequence[dict], real: Mapping[str, float], path: str | Path) -> None:
    """Write a PNG of a study: Frechet distance and label accuracy against epochs, minutes and training FLOP.

    Args:
        rows: with `model`, `epochs`, `minutes`, `training_flop`, `frechet_distance` and perhaps `label_accuracy`.
        real: the same figures of held-out real images, the limit.
        path: of the PNG.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["model"] for row in rows))
    settings, (labels,), legend = _lettering(names)
    count = f" ({real['num_images']:,} of them)" if real.get("num_images") else ""
    kinds = [key for key in ("frechet_distance", "label_accuracy") if any(row.get(key) is not None for row in rows)]
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(10, 0.5 + 2.8 * len(kinds)), dpi=150, layout="constrained")
        grid = figure.subplots(len(kinds), 3, squeeze=False, sharey="row")
        costs = {"epochs": "epochs", "minutes": "minutes of training", "training_flop": "training FLOP"}
        for axes_row, kind in zip(grid, kinds):
            for axes, (cost, label) in zip(axes_row, costs.items()):
                for name, shown_name in zip(names, labels):
                    mine = [row for row in rows if row["model"] == name]
                    axes.plot([row[cost] for row in mine], [row[kind] for row in mine], marker="o", label=_kept(shown_name))
                if real.get(kind) is not None:
                    axes.axhline(real[kind], color="gray", linewidth=0.8, linestyle=":", label=f"real images, held out{count}")
                axes.set_xlabel(label)
                axes.grid(alpha=0.3)
            axes_row[0].set_ylabel(kind.replace("_", " "))
            if kind == "frechet_distance":
                axes_row[0].set_yscale("log")
        _plain(grid[0][0].legend(fontsize=8))
        _save(figure, path, legend)


def _kept(label: str) -> str:
    """matplotlib leaves a label out of the legend that begins with an underscore."""
    return f" {label}" if label.startswith("_") else label


def _plain(legend) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)


def read_metrics(run: Path) -> list[dict]:
    """The rows of a run's metrics.csv.

    Raises:
        ValueError: it has none, or a file of something else.
    """
    file = run / "metrics.csv"
    if not file.is_file():
        raise ValueError(f"run: expected a run's folder, with a metrics.csv, got {run}; it is written after the first epoch.")
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
        rows = [
            {**row, "epoch": int(row["epoch"]), "val_loss": row["val_loss"], "train_loss": row["train_loss"]} for row in rows
        ]
    except (ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        raise ValueError(
            f"run: expected rows of numbers in {file}, with epoch, train_loss and val_loss, got others"
            f" ({type(error).__name__}: {shown(str(error))}); remove what is not a row."
        ) from None
    if not rows:
        raise ValueError(f"run: expected rows in {file}, got none; the first is written after the first epoch.")
    return rows


def loss_curve(runs: Mapping[str, Sequence[dict]], path: str | Path | io.BytesIO) -> None:
    """Write a PNG of training and validation loss by epoch, of one run or several.

    Args:
        runs: name of each run -> its rows of metrics.csv.
        path: of the PNG.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings, (names,), legend = _lettering(list(runs))
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6, 3.5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        for number, (name, metrics) in enumerate(zip(names, runs.values())):
            epochs = [row["epoch"] for row in metrics]
            marker = "." if len(metrics) < 40 else None
            for key, what, line in (("train_loss", "training", "--"), ("val_loss", "validation", "-")):
                colour = f"C{number}" if len(runs) > 1 else None
                label = _kept(f"{name}, {what}") if len(runs) > 1 else what
                line = line if len(runs) > 1 else "-"
                axes.plot(epochs, [row[key] for row in metrics], line, color=colour, label=label, marker=marker)
            best = min(metrics, key=lambda row: row["val_loss"])
            label = f"best epoch, {best['epoch']}" if len(runs) == 1 else None
            axes.axvline(
                best["epoch"], color=f"C{number}" if len(runs) > 1 else "gray", linewidth=0.8, linestyle=":", label=label
            )
        rows = [row for metrics in runs.values() for row in metrics]
        if max(row["train_loss"] for row in rows) > 4 * min(row["val_loss"] for row in rows) > 0:
            axes.set_yscale("log")  # the first epoch would flatten all others
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        _plain(axes.legend(fontsize="small" if len(runs) > 1 else None))
        _save(figure, path, legend)
