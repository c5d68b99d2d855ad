"""Words of others, such as class names, as they may be shown: on a terminal, in Markdown, in code; and JSON of others, read.

May import: nothing of ours. `visualize.py`, `evaluate/`, `hub/` and the command line write through it.
"""

import json
import re
import unicodedata

# What a text may hold that is not to be seen: control characters (a terminal obeys ESC), separators of lines, halves of
# surrogates, and the marks that turn the direction of what follows.
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What begins something in Markdown, HTML, a template or a table: a colon within a word (a link's), the dot of "www.", an
# underscore that is not between letters, and list marks at the start.
_MARKS = re.compile(r"[\\`*{}\[\]<>|~&$#@]|:(?=\S)|(?<=\bwww)\.|(?<![^\W_])_|_(?![^\W_])|^\s*[-+=]", re.IGNORECASE)


def shown(text: str) -> str:
    r"""One line of what is to be seen: control characters, line breaks and the like as their escapes, such as `\n`, `\x1b`."""
    unseen = {c for c in set(text) if c in _TURNING or unicodedata.category(c) in _UNSEEN}
    return "".join(ascii(c)[1:-1] if c in unseen else c for c in text)


def markdown(text: str) -> str:
    """The same for Markdown, also in a cell of a table: it is read as it is, and makes no link, picture, HTML or cell."""
    return _MARKS.sub(lambda mark: "".join(f"&#{ord(c)};" for c in mark.group()), shown(text))


def literal(text: str) -> str:
    """A string as Python code, on one line."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else ascii(text)


def read_json(content: bytes, what: str, advice: str) -> dict:
    """The object that a JSON file of `content` holds.

    Args:
        content: of the file.
        what: the file's name, for the error.
        advice: what to do about a file of something else, for the error.

    Raises:
        ValueError: it is not UTF-8, not JSON, or JSON of something else than an object.
    """
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, too deep
        got = f"a file that cannot be read as JSON ({shown(str(error))})"
    else:
        if isinstance(found, dict):
            return found
        got = shown(json.dumps(found)[:40])
    raise ValueError(f"{what}: expected a JSON object, got {got}; {advice}.")
