"""What the packages are to a newcomer and to a user: a story in each `__init__`, words in each module, one version."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

import torpor

ROOT = Path(__file__).parent.parent
PACKAGES = ("wire", "sfu", "turn", "objects", "hibernation", "partykit_compat", "torpor", "loadtest")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.read_text())


def _public(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(alias.asname or alias.name.split(".")[0] for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring.splitlines()[0].strip().endswith((".", ":", "`"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_module_exports_by_name_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text())
    exported = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    ]
    for names in exported:
        assert len(names) == len(set(names))
        assert set(names) <= _public(tree)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed_and_in_the_distribution(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / package).rglob("__init__.py")}
    listed = set(project["tool"]["setuptools"]["packages"])
    assert {".".join(folder.parts) for folder in folders if "node_modules" not in folder.parts} <= listed
    importlib.import_module(package)


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == torpor.__version__


def test_the_command_is_where_the_distribution_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["torpor"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
