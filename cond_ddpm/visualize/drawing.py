"""What all pictures share: texts in fonts that have their characters, and figures that are never too large to save.

May import: `text`. Next: `grids.py`.
"""

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cond_ddpm.text import shown


@dataclass(frozen=True)
class Lettering:
    """The texts of a picture as they can be drawn.

    Args:
        groups: the texts.
        fonts: families that together have all the characters.
        legend: what the numbers mean that stand for texts that no font can show; empty if there are none.
    """

    groups: list[list[str]]
    fonts: list[str]
    legend: str


def lettering(*groups: Sequence[str]) -> Lettering:
    """Make texts drawable: control characters are escaped, long texts are shortened, and fonts are found for all characters.

    Texts for which no installed font has the characters are replaced by numbers; the legend and a warning explain them.
    """
    import matplotlib

    short = [[_shortened(text) for text in texts] for texts in groups]
    fallback, missing = _fonts_for("".join(sorted({c for texts in short for text in texts for c in text})))
    fonts = [*matplotlib.rcParams["font.family"], *fallback]
    if not missing:
        return Lettering(short, fonts, "")
    unreadable = [text for text in dict.fromkeys(text for texts in short for text in texts) if missing & set(text)]
    # The number of a class is its place among the names, which is its id if all classes are drawn.
    numbers = {text: str(short[0].index(text)) if text in short[0] else f"*{n}" for n, text in enumerate(unreadable)}
    warnings.warn(
        "no installed font has the characters of some names, which are numbered in pictures:"
        f" {', '.join(f'{number} = {text}' for text, number in numbers.items())}. Install a font such as Noto Sans CJK.",
        stacklevel=3,
    )
    legend = [f"{number} = {ascii(text)[1:-1]}" for text, number in numbers.items()]
    return Lettering([[numbers.get(text, text) for text in texts] for texts in short], fonts, _legend(legend))


def _shortened(text: str, length: int = 48) -> str:
    text = shown(text)
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 4 :]}"


def _legend(lines: list[str], most: int = 30) -> str:
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*(_shortened(line, 80) for line in lines[:most]), *more])


@functools.lru_cache
def _fonts_for(characters: str) -> tuple[list[str], set[str]]:
    """Installed fonts for the characters that matplotlib's default font lacks, and the characters that no font has."""
    from matplotlib import font_manager

    def characters_in(file: str, wanted: set[str]) -> set[str]:
        try:
            font = font_manager.get_font(file)
        except (OSError, RuntimeError):  # it has been removed, or is broken
            return set()
        return {c for c in wanted if font.get_char_index(ord(c))}

    missing = {c for c in characters if not c.isspace()}
    missing -= characters_in(font_manager.findfont(font_manager.FontProperties()), missing)
    if not missing:
        return [], missing
    # Upright fonts of normal weight, without the one that has a box as the glyph of every character.
    fonts = {
        font.name: font.fname for font in font_manager.fontManager.ttflist if (font.style, font.weight) == ("normal", 400)
    }
    fonts.pop("Last Resort High-Efficiency", None)
    chosen = []
    for family in sorted(fonts, key=lambda name: ("Sans" not in name, "CJK" not in name, name)):
        found = characters_in(fonts[family], missing)
        if found:
            chosen.append(family)
            missing -= found
        if not missing:
            break
    return chosen, missing


@contextlib.contextmanager
def figure(path: str | Path | io.BytesIO, size: tuple[float, float], dpi: int, letters: Lettering) -> Iterator[Any]:
    """A matplotlib figure of `size` inches to draw on; it is saved to `path` at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": letters.fonts}):
        drawn = Figure(figsize=size, dpi=dpi, layout="constrained")
        yield drawn
        _save(drawn, path, letters.legend)


def _save(drawn, path: str | Path | io.BytesIO, legend: str) -> None:
    """Save at the figure's resolution, or at a lower one if a picture cannot have so many pixels."""
    if legend:
        drawn.text(0, 0, legend, fontsize=6, va="top", parse_math=False)
    width, height = drawn.get_size_inches()
    drawn.set_dpi(min(drawn.dpi, 60_000 / max(width, height), math.sqrt(2e8 / (width * height))))
    drawn.savefig(path, dpi="figure", bbox_inches="tight", pad_inches=0.05)
