"""The site of these pages: `make docs` builds it with Sphinx, without the internet, and takes warnings for errors.

May import: `config` and the table of the commands, from which the reference of the command line is written.
"""

from latex2mathml.converter import convert

import cond_ddpm
from cond_ddpm.cli import COMMANDS, Command, settings_class
from cond_ddpm.config.settings import default_of, describe, required_names, typed_fields

project, author, release = "cond_ddpm", "The cond_ddpm developers", cond_ddpm.__version__
project_copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebook; the site shows the outputs that it was saved with
default_role = "code"  # docstrings write `names` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"cond_ddpm {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"


def _inline_math(self, node) -> None:
    self.body.append(convert(node.astext()))


def _block_math(self, node) -> None:
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')


def _leave(self, node) -> None:
    """The whole formula is written when its node is entered."""


def _command_line() -> str:
    """A section for each command with a table of its settings, as `--help` shows them."""
    return "\n\n".join(_section(name, command) for name, command in COMMANDS.items())


def _section(name: str, command: Command) -> str:
    title = f"## `cond-ddpm {name}`\n\n{command.text[0].upper()}{command.text[1:]}."
    if command.kinds is None:
        return f"{title}\n\n{_settings(command)}"
    kinds = [f"### `cond-ddpm {name} {kind}`\n\n{one.text}\n\n{_settings(one)}" for kind, one in command.kinds.items()]
    return "\n\n".join([title, *kinds])


def _settings(command: Command) -> str:
    class_ = settings_class(command)
    fields, required = typed_fields(class_), required_names(class_)
    rows = [
        [f"`--{field.name}`", describe(field, type_), _default(field, required), field.metadata["help"]]
        for field, type_ in sorted(
            fields, key=lambda pair: (pair[0].name not in required, pair[0].name not in class_.__annotations__)
        )
    ]
    if not rows:
        return "It has no settings."
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(["| flag | value | default | meaning |", "|---|---|---|---|", *(f"| {line} |" for line in lines)])


def _default(field, required: list[str]) -> str:
    default = default_of(field)
    if field.name in required:
        return "required"
    return "" if default in (None, {}) else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _complete(app, docname: str, source: list[str]) -> None:
    """Write the commands into their page before it is parsed."""
    if docname == "reference/command_line":
        source[0] += _command_line() + "\n"


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (_inline_math, _leave), (_block_math, _leave))
    app.connect("source-read", _complete)
