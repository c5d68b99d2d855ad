"""The site of these pages: `make docs` builds it with Sphinx, without the internet, and takes warnings for errors.

May import: `config` and the table of the commands, from which the reference of the command line is written.
"""

from dataclasses import Field

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import cond_ddpm
from cond_ddpm.cli import COMMANDS, Command, settings_class
from cond_ddpm.config.settings import default_of, describe, required_names, typed_fields

project, author, release = "cond_ddpm", "The cond_ddpm developers", cond_ddpm.__version__
project_copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist", "dollarmath"]
smartquotes = False  # two dashes begin a flag
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebook; the site shows the outputs that it was saved with
nb_merge_streams = True
default_role = "code"  # docstrings write `names` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"cond_ddpm {release}"
# furo then links each page to its source.
source = {"source_repository": cond_ddpm.REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
html_theme_options = source if cond_ddpm.REPOSITORY else {}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"


def _inline_math(self, node) -> None:
    self.body.append(convert(node.astext()))
    raise SkipNode


def _block_math(self, node) -> None:
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def _command_line() -> str:
    """A section for each command, with its settings as `--help` shows them."""
    return "\n\n".join(_section(name, command) for name, command in COMMANDS.items())


def _section(name: str, command: Command) -> str:
    title = f"## `cond-ddpm {name}`\n\n{command.text[0].upper()}{command.text[1:]}."
    if command.kinds is None:
        return f"{title}\n\n{_settings(command)}"
    kinds = [f"### `cond-ddpm {name} {kind}`\n\n{one.text}\n\n{_settings(one)}" for kind, one in command.kinds.items()]
    return "\n\n".join([title, *kinds])


def _settings(command: Command) -> str:
    class_ = settings_class(command)
    required = required_names(class_)
    order = lambda pair: (pair[0].name not in required, pair[0].name not in class_.__annotations__)  # noqa: E731  as in --help
    lines = []
    for field, type_ in sorted(typed_fields(class_), key=order):
        words = "; ".join([describe(field, type_), *_default(field, required)])
        lines.append(f"`--{field.name}` ({words})\n: {field.metadata['help']}")
    return "\n\n".join(lines) or "It has no settings."


def _default(field: Field, required: list[str]) -> list[str]:
    default = default_of(field)
    if field.name in required:
        return ["required"]
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return [] if default in (None, {}) else [f"default: `{shown}`"]


def _complete(app, docname: str, source: list[str]) -> None:
    """Write the commands into their page before it is parsed."""
    if docname == "reference/command_line":
        source[0] += _command_line() + "\n"


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("source-read", _complete)
