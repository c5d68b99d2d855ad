"""Who imports whom, as the design has it; and that importing us costs nothing."""

import ast
import graphlib
import subprocess
import sys

import pytest
from conftest import ROOT

import cond_ddpm

OURS = {"cond_ddpm", "pipelines", "configs", "train_cond_ddpm", "tests"}
# Arrows only run down this list: a module imports what stands below it, and the files of its own package.
FLOORS = [
    {"cli"},
    {"commands"},
    {"api"},
    {"experiments", "quickstart"},
    {"training", "evaluation"},
    {"hub"},
    {"visualize"},
    {"web", "loading"},
    {"sampling", "export"},
    {"heartbeat"},
    {"ema", "processes"},
    {"hardware"},
    {"diffusion", "data", "models", "pipelines"},
    {"config", "files", "fingerprints", "pretrained_models", "text"},
    {"", "demo"},
]


def _imports(path):
    """Modules that a file imports, also inside functions, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", ["cond_ddpm/models/cond_unet.py", "pipelines/pipeline_cond_ddpm.py"])
def test_published_files_import_the_standard_library_torch_and_diffusers(path):
    roots = {name.partition(".")[0] for name in _imports(ROOT / path)}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "diffusers"}


@pytest.mark.parametrize("path", sorted((ROOT / "cond_ddpm").rglob("*.py")), ids=lambda path: path.stem)
def test_modules_import_only_what_the_design_allows(path):
    parts = path.relative_to(ROOT / "cond_ddpm").with_suffix("").parts
    module = "" if parts == ("__init__",) else parts[0]
    ours = [name for name in _imports(path) if name.partition(".")[0] in OURS]
    imported = {(name.split(".") + [""])[1] for name in ours}
    (floor,) = (number for number, modules in enumerate(FLOORS) if module in modules)
    assert imported <= set().union({module}, *FLOORS[floor + 1 :]), f"{path.name} imports {ours}"


def test_no_file_imports_itself_by_way_of_others():
    """An import of a package is one of its `__init__.py`, which imports its files; so these must not import the package."""
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in (ROOT / "cond_ddpm").rglob("*.py")}
    modules = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {module: [name for name in _imports(path) if name in modules] for module, path in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("head", sorted((ROOT / "cond_ddpm").glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_the_head_of_a_package_lists_its_files(head):
    text = ast.get_docstring(ast.parse(head.read_text()))
    files = {path.name for path in head.parent.glob("*.py")} - {head.name}
    assert {name for name in files if name not in text} == set()


def test_import_is_lazy_and_public_names_resolve():
    script = (
        "import sys, cond_ddpm, cond_ddpm.cli, cond_ddpm.config; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"], done.stderr
    for name in cond_ddpm.__all__:
        assert getattr(cond_ddpm, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'train_all'; its public names are"):
        cond_ddpm.train_all  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["visualize", "gif", "--help"]])
def test_help_imports_the_standard_library_alone(arguments):
    script = f"""
import sys
before = set(sys.modules)
from cond_ddpm.cli import main
try:
    main({arguments!r})
except SystemExit as exit:
    assert not exit.code
print(*sorted({{name.partition(".")[0] for name in sys.modules.keys() - before}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
    imported = set(done.stderr.split()) - set(sys.stdlib_module_names) - {"cond_ddpm"}
    assert not imported


def test_pipelines_and_configs_are_found_in_a_checkout_that_is_not_installed(tmp_path):
    script = """
from importlib.util import find_spec
for name in ("cond_ddpm.pipelines.pipeline_cond_ddpm", "cond_ddpm.configs"):
    print(find_spec(name).origin)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == [str(ROOT / "pipelines/pipeline_cond_ddpm.py"), str(ROOT / "configs/__init__.py")]


@pytest.mark.parametrize("name", ["tests", "benchmarks", "cond_ddpm", "setup"])
def test_nothing_else_of_a_checkout_is_in_the_package(name):
    done = subprocess.run([sys.executable, "-c", f"import cond_ddpm.{name}"], capture_output=True, text=True, cwd=ROOT)
    assert f"No module named 'cond_ddpm.{name}'" in done.stderr
