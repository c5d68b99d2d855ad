"""Arrays -> HTML: crisp pictures with alternative texts, a slider through time, downloads, messages.

May import: `demo.limits`, the standard library, numpy, Pillow. The panels show what it returns. Pictures and files are inside
the page as data, so nothing is written to the server's disk, and no request can name a file of it.
"""

import base64
import html
import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

escape = html.escape

# For `gr.HTML`: the slider shows one moment of a film; it is moved by mouse, finger or keyboard, without the server.
FILM_SCRIPT = """
const show = (film, number) => {
  film.querySelectorAll('[data-moment]').forEach(one => { one.hidden = one.dataset.moment !== String(number); });
  film.querySelector('input').setAttribute('aria-valuetext', film.querySelector(`p[data-moment="${number}"]`).textContent);
};
element.addEventListener('input', event => {
  const film = event.target.closest('.film');
  if (film) show(film, event.target.value);
});
element.addEventListener('click', event => {
  const film = event.target.closest('.film');
  if (!film || !event.target.closest('[data-play]')) return;
  const slider = film.querySelector('input');
  clearInterval(film.playing);
  let number = Number(slider.value) < Number(slider.max) ? Number(slider.value) : -1;
  film.playing = setInterval(() => {
    number += 1;
    if (!film.isConnected || number > Number(slider.max)) return clearInterval(film.playing);
    slider.value = number;
    show(film, number);
  }, 120);
});
"""


def pixels(images: Any) -> np.ndarray:
    """Images in [0, 1], (N, C, H, W), a tensor -> uint8, as `cond_ddpm.generate` rounds them."""
    return (images * 255).round().clamp(0, 255).byte().cpu().numpy()


def picture(image: np.ndarray) -> Image.Image:
    """(C, H, W) uint8 -> a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0).squeeze()))


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """(N, C, H, W) uint8 -> one picture of rows and columns without margins; the rest of the last row is black."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, channels, height, width), np.uint8)
    padded[:count] = images
    grid = padded.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return picture(grid.reshape(channels, rows * height, columns * width))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def gif(frames: Sequence[Image.Image], milliseconds: int = 80) -> bytes:
    """An animation that rests on its last frame."""
    file = io.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    frames[0].save(file, "GIF", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, content in files.items():
            written.writestr(zipfile.ZipInfo(name), content)  # without a time, so that equal files are equal
    return file.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_tag(image: np.ndarray, alt: str, attributes: str = "") -> str:
    size = f'width="{image.shape[2]}" height="{image.shape[1]}"'
    return f'<img class="pixels" {size} src="{data_uri(png(picture(image)), "image/png")}" alt="{escape(alt)}" {attributes}>'


def rows_of_pictures(rows: Sequence[tuple[str, np.ndarray]], captions: Sequence[str] = ()) -> str:
    """A labelled row of pictures for each (name, images (N, C, H, W) uint8), with a caption for each column."""
    drawn = []
    for name, images in rows:
        tags = [
            f"<figure>{image_tag(image, f'{name}, {caption}' if caption else name)}"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for image, caption in zip(images, [*captions, *[""] * (len(images) - len(captions))])
        ]
        drawn.append(f'<section class="row"><h3>{escape(name)}</h3><div class="pictures">{"".join(tags)}</div></section>')
    return f'<div class="rows">{"".join(drawn)}</div>'


def film(columns: Sequence[tuple[str, np.ndarray]], captions: Sequence[str], at: int, name: str) -> str:
    """Pictures side by side, each of one moment, and a slider through all moments.

    Args:
        columns: (title, images (moments, C, H, W) uint8).
        captions: of each moment, as plain text.
        at: the moment that is shown first.
        name: what the pictures are of, for the alternative texts.
    """
    hidden = ["" if moment == at else "hidden" for moment in range(len(captions))]
    shown = "".join(
        f"<figure><figcaption>{title}</figcaption>"
        + "".join(
            image_tag(image, f"{name}: {_plain(title)}, {caption}", f'data-moment="{moment}" {hidden[moment]}')
            for moment, (image, caption) in enumerate(zip(images, captions))
        )
        + "</figure>"
        for title, images in columns
    )
    texts = "".join(f'<p data-moment="{i}" {hidden[i]}>{escape(text)}</p>' for i, text in enumerate(captions))
    slider = (
        f'<input type="range" min="0" max="{len(captions) - 1}" value="{at}" step="1" aria-label="moment"'
        f' aria-valuetext="{escape(captions[at])}">'
    )
    play = '<button type="button" data-play aria-label="play all moments">&#9654; play</button>'
    return f'<div class="film"><div class="screens">{shown}</div><div class="time">{play}{slider}</div>{texts}</div>'


def downloads(files: dict[str, tuple[bytes, str]]) -> str:
    """Links that save files: name -> (content, media type)."""
    links = [
        f'<a class="download" download="{escape(name)}" href="{data_uri(content, kind)}">{escape(name)}'
        f" <small>{_size(len(content))}</small></a>"
        for name, (content, kind) in files.items()
    ]
    return f'<p class="downloads"><span>Download</span> {"".join(links)}</p>'


def empty(text: str) -> str:
    """What a panel shows before it has anything to show."""
    return f'<div class="empty"><p>{text}</p></div>'


def message(text: str) -> str:
    return f'<p class="message" role="status">{escape(text)}</p>'


def error(text: str) -> str:
    return f'<p class="message error" role="alert">{escape(text)}</p>'


def progress(done: int, total: int, text: str) -> str:
    return (
        f'<div class="message" role="status"><label>{escape(text)}'
        f'<progress max="{total}" value="{done}"></progress></label></div>'
    )


def _plain(title: str) -> str:
    return title.replace("<sub>", "_").replace("</sub>", "")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count / 1e3, 0.1):.1f} kB"
