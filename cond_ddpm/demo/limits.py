"""What a visitor may ask for. Everything that comes from a browser or a program is checked here, and refused in words.

May import: the standard library, numpy, Pillow. Next in the data flow: `studio.py` draws what was asked for.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # each decoded by Pillow itself, of one picture without scripts or links


class Refusal(ValueError):
    """A request that is refused; the message is shown to the visitor."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of the requests at a time.

    Args:
        images: pictures of one request.
        steps: steps of the sampler.
        forwards: forward passes, each of one picture: about a minute on two CPU cores for the model of the package.
        waiting: requests that wait for their turn; one more is refused.
        upload_bytes, upload_pixels: of an uploaded picture.
    """

    images: int = 64
    steps: int = 250
    forwards: int = 6_400
    waiting: int = 24
    upload_bytes: int = 5_000_000
    upload_pixels: int = 25_000_000


DEFAULT_LIMITS = Limits()


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int within bounds. Browsers send whole numbers as floats, too."""
    number = int(value) if isinstance(value, (int, float)) and math.isfinite(value) and value == int(value) else None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise Refusal(f"{name}: expected a whole number from {low} to {high}, got {_short(value)}.")
    return number


def number(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float within bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:  # NaN is within none
        raise Refusal(f"{name}: expected a number from {low:g} to {high:g}, got {_short(value)}.")
    return float(value)


def read_picture(file: Path, size: int, channels: int, limits: Limits) -> np.ndarray:
    """An uploaded picture, its middle square at the network's size: (C, H, W) uint8.

    Raises:
        Refusal: too large a file, too many pixels (before they are decoded), or no picture.
    """
    if file.stat().st_size > limits.upload_bytes:
        raise Refusal(f"picture: expected a file of at most {limits.upload_bytes / 1e6:g} MB, got a larger one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning of large pictures; the bound here is lower
            with Image.open(file, formats=_FORMATS) as opened:
                width, height = opened.size
                if width * height > limits.upload_pixels:
                    raise Refusal(
                        f"picture: expected at most {limits.upload_pixels / 1e6:g} million pixels, got {width} x {height}."
                    )
                upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except Refusal:
        raise
    except Image.DecompressionBombError:
        most = limits.upload_pixels / 1e6
        raise Refusal(f"picture: expected at most {most:g} million pixels, got many more.") from None
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise Refusal(
            f"picture: expected a whole {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file, got one that cannot be read."
        ) from error
    on_white = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    square = ImageOps.fit(on_white.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.atleast_3d(np.asarray(square)).transpose(2, 0, 1)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]} and so on"
