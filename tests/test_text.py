"""Foreign text, made safe to show."""

import ast

import pytest

from cond_ddpm.text import literal, markdown, read_json, shown

HOSTILE = [
    "<!-- c",
    "a|b",
    "two\nlines",
    "`code`",
    "![x](http://evil)",
    "[x](javascript:alert(1))",
    "{{ jinja }}",
    "{% raw %}",
]
HOSTILE += [
    "<script>x</script>",
    "\x1b[31mred",
    "www.evil.com",
    "http://evil",
    "*a* _b_ **c** ~~d~~",
    "a\\|b",
    "\u202eabc",
    "$x$",
    "# a",
]


@pytest.mark.hostile(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_name_is_markdown(name):
    """And it comes back: an entity is shown as the character that it is of."""
    import html

    text = markdown(name)
    without = text.replace("&#", "")
    assert not set(without) & set("<>|`*[]{}~\\$\n\x1b\u202e") and "://" not in text and "www." not in text
    assert html.unescape(text) == shown(name)


@pytest.mark.hostile(20)
def test_plain_names_stay_as_they_are():
    for name in (
        "airplane",
        "polar_bear",
        "St. Bernard",
        "crème brûlée, large",
        "猫",
        "8",
        "x (2)",
        "it's 90% - 1.5e+09 FLOP; a: b",
    ):
        assert markdown(name) == shown(name) == name


@pytest.mark.hostile(20)
@pytest.mark.parametrize("name", [*HOSTILE, 'q"uote', "😀", "\ud800", "it's"])
def test_a_name_in_code_is_that_name(name):
    assert ast.literal_eval(literal(name)) == name and "\n" not in literal(name)


@pytest.mark.hostile(22)
@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b'"x"', b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_json_of_something_else_is_said_in_one_line(content):
    with pytest.raises(ValueError, match=r"^x\.json: expected a JSON object, got [^\n]*; remove it\.$"):
        read_json(content, "x.json", "remove it")
