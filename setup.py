"""What setup.cfg cannot say: PyPI's page. README.md names files of the repository, and on PyPI such pictures and links break.

They become absolute by `REPOSITORY` of cond_ddpm/__init__.py; as long as that is empty, pictures are left out.
"""

import ast
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent


def constant(name: str) -> str:
    """A text in cond_ddpm/__init__.py, which a build must not import."""
    tree = ast.parse((HERE / "cond_ddpm" / "__init__.py").read_text(encoding="utf-8"))
    return next(
        ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == name
    )


def description(readme: str, repository: str, version: str) -> str:
    """README.md for PyPI: what it names of the repository is that of the version's tag."""
    link, source = r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)", r'(<img[^>]* src=")(?!https?:)([^"]+)("[^>]*>)'
    if not repository:
        without = re.sub(source, "", readme)
        return re.sub(link, lambda found: "" if found[1] else found[2], without)
    raw, page = f"{repository}/raw/v{version}", f"{repository}/blob/v{version}"
    readme = re.sub(source, rf"\g<1>{raw}/\g<2>\g<3>", readme)
    return re.sub(link, lambda found: f"{found[1]}[{found[2]}]({raw if found[1] else page}/{found[3]})", readme)


if __name__ == "__main__":
    repository, version = constant("REPOSITORY"), constant("__version__")
    setup(
        long_description=description((HERE / "README.md").read_text(encoding="utf-8"), repository, version),
        project_urls={"Source": repository, "Changelog": f"{repository}/blob/v{version}/CHANGELOG.md"} if repository else {},
    )
