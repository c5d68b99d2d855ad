"""One picture of any format, size and mode -> one array (C, H, W) uint8.

May import: `config.data`. Here a picture is what a file holds, and an image is the array made of it. Next: `cache.py`.
"""

import io
import os
from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from cond_ddpm.config.data import Fit

RULE = 2  # version of the rule in `to_array`: part of the cache's name, so that changing the rule decodes all pictures again
FITS = get_args(Fit)
GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I")
GREY_MODES = (*GREY, "LA", "La")  # those with transparency too
# What `losses` finds, and how a warning says it.
LOSSES = {
    "grey": "grey and are converted to RGB, like the first picture; set the number of channels to avoid it",
    "colour": "in colour and are converted to grey, like the first picture; set the number of channels to avoid it",
    "transparent": "partly transparent; the transparent parts become white",
    "frames": "animations or have several pages, of which only the first is used",
    "CMYK": "in CMYK and are converted to RGB without a colour profile",
}


def to_array(picture, resolution: int, channels: int, fit: str = "crop") -> np.ndarray:
    """Convert one picture by the rule in the docstring of `load_images`."""
    import PIL.Image
    import PIL.ImageOps

    picture, size, scaling = converted(picture, channels), (resolution, resolution), PIL.Image.Resampling.LANCZOS
    if picture.size != size:
        if fit == "crop":
            picture = PIL.ImageOps.fit(picture, size, scaling)
        elif fit == "pad":
            colour = np.median(edge(picture), axis=0).astype(int)
            picture = PIL.ImageOps.pad(picture, size, scaling, color=tuple(colour) if channels == 3 else int(colour))
        elif fit == "stretch":
            picture = picture.resize(size, scaling)
        else:
            raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}.")
    array = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def edge(picture) -> np.ndarray:
    """The outermost pixels of a picture, (N,) or (N, 3)."""
    array = np.asarray(picture)
    return np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])


def converted(picture, channels: int):
    """The picture upright, opaque, and grey or RGB of 8 bits; its size is not changed."""
    import PIL.Image
    import PIL.ImageOps

    bits = 16  # of grey: the range of a mode that starts with "I;16", unless a TIFF says otherwise
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(258, (bits,))[0]  # BitsPerSample
    if picture.mode == "I" and picture.format != "PPM":  # of a PPM, Pillow has already scaled the values to 16 bits
        raise ValueError("32-bit whole numbers, whose range is unknown; save it with 8 or 16 bits")
    if picture.getexif().get(0x0112, 1) != 1:  # 0x0112 is Orientation; 1 is upright
        picture = PIL.ImageOps.exif_transpose(picture)
    mode = "L" if channels == 1 else "RGB"
    if picture.mode.startswith("I"):  # more than 8 bits of grey, which Pillow's convert would clip at 255
        highest = 2**bits - 1
        values = np.asarray(picture).astype(np.int64).clip(0, highest)
        picture = PIL.Image.fromarray((values * 255 // highest).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating-point numbers, whose range is unknown; save it with 8 bits")
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode != mode:
        picture = picture.convert(mode)
    return picture


def losses(picture, channels: int) -> list[str]:
    """What a picture loses in `to_array`, apart from scaling: keys of `LOSSES`."""
    transparent = ("A" in picture.mode or "transparency" in picture.info) and (
        picture.convert("RGBA").getchannel("A").getextrema()[0] < 255
    )
    found = {
        "grey": channels == 3 and picture.mode in GREY,
        "colour": channels == 1 and picture.mode not in GREY_MODES,
        "transparent": transparent,
        "frames": getattr(picture, "n_frames", 1) > 1,
        "CMYK": picture.mode == "CMYK",
    }
    return [loss for loss, true in found.items() if true]


def location(record: dict | None) -> str:
    """Where the picture of a row is: the path of the user's own file, not of the link through which it is read."""
    path = record.get("path") if record else None
    return f" ({os.readlink(path) if os.path.islink(path) else path})" if path else ""


def with_picture(record: dict | None, row: int, use: Callable[[Any], Any]) -> Any:
    """`use(picture)` for the picture of a row, {"bytes": ..., "path": ...}.

    Raises:
        ValueError: the picture cannot be read, or `use` fails; the error names the row.
    """
    import PIL.Image

    try:
        if record is None:
            raise ValueError("the row has no picture")
        with PIL.Image.open(io.BytesIO(record["bytes"]) if record["bytes"] is not None else record["path"]) as picture:
            picture.load()
            return use(picture)
    except Exception as error:  # depending on its format, a broken file raises OSError, SyntaxError, struct.error and others
        raise ValueError(
            f"row {row}{location(record)}: expected a picture, got one that cannot be read ({root_cause(error)}); repair it"
            " or remove the row."
        ) from error


def root_cause(error: BaseException) -> str:
    """The error from which this one came, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
