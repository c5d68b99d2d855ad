"""Foreign text, such as class names, made safe to show on a terminal, in Markdown and in code; and reading foreign JSON.

May import: nothing of ours. `visualize/`, `evaluation/`, `hub/` and the command line use it for all text from elsewhere.
"""

import json
import re
import unicodedata

# Invisible characters: control characters (a terminal obeys ESC), lone surrogates, separators of lines and paragraphs, and the
# marks that change the direction of the text after them.
_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")
_DIRECTION_MARKS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Characters with a meaning in Markdown, HTML, templates or tables, among them a colon inside a word (as in links), the dot of
# "www.", an underscore that is not between letters, and list marks at the start.
_MARKS = re.compile(r"[\\`*{}\[\]<>|~&$#@]|:(?=\S)|(?<=\bwww)\.|(?<![^\W_])_|_(?![^\W_])|^\s*[-+=]", re.IGNORECASE)


def shown(text: str) -> str:
    r"""The text in one line, with invisible characters such as line breaks replaced by their escapes, `\n` or `\x1b`."""
    invisible = {c for c in set(text) if c in _DIRECTION_MARKS or unicodedata.category(c) in _INVISIBLE}
    return "".join(ascii(c)[1:-1] if c in invisible else c for c in text)


def markdown(text: str) -> str:
    """As `shown`, for Markdown, even in a table cell: the text appears as it is and makes no link, image, HTML or cell."""
    return _MARKS.sub(lambda mark: "".join(f"&#{ord(c)};" for c in mark.group()), shown(text))


def literal(text: str) -> str:
    """The text as a Python string literal in one line."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else ascii(text)


def read_json(content: bytes, what: str, advice: str) -> dict:
    """The JSON object in the content of a file.

    Args:
        content: of the file.
        what: name of the file, for the error.
        advice: what to do about a file with other content, for the error.

    Raises:
        ValueError: it is not UTF-8, not JSON, or not a JSON object.
    """
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        got = f"a file that cannot be read as JSON ({shown(str(error))})"
    else:
        if isinstance(found, dict):
            return found
        got = shown(json.dumps(found)[:40])
    raise ValueError(f"{what}: expected a JSON object, got {got}; {advice}.")
