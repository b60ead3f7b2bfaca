"""Imports go one way (docs/architecture.md): `wire` ← `sfu`, `turn`; `objects` ← `hibernation` ← `partykit_compat`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

OURS = {"wire", "sfu", "turn", "objects", "hibernation", "partykit_compat", "torpor", "loadtest"}

MAY_IMPORT: dict[str, set[str]] = {
    "wire": set(),
    "turn": {"wire"},
    "sfu": {"wire"},
    "objects": set(),
    "hibernation": {"objects.ports", "objects.ids", "objects.errors"},
    "partykit_compat": {"objects", "hibernation"},
    "loadtest": {"wire"},
    "torpor": OURS - {"torpor"},
}

ASYNC_AND_SOCKETS = {"asyncio", "socket", "select", "selectors", "uvloop"}
WEB_FRAMEWORK = {"fastapi", "starlette", "uvicorn"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def allowed(name: str, permitted: set[str]) -> bool:
    return any(name == p or name.startswith(p + ".") or p.startswith(name + ".") for p in permitted)


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_import_only_in_the_stated_direction(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imports(path)
        if (top := name.split(".")[0]) in OURS and top != package and not allowed(name, MAY_IMPORT[package])
    ]
    assert not wrong


@pytest.mark.parametrize("package", sorted(OURS))
def test_no_package_reaches_into_anothers_private_modules(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imports(path)
        if (parts := name.split("."))[0] in OURS - {package} and any(p.startswith("_") for p in parts[1:])
    ]
    # The batched UDP is wire's service to both data planes; assembling planes and tables is torpor's job.
    permitted = (
        "wire._batch",
        "wire._batch.udp",
        "hibernation._sockets.table",
        "hibernation._sockets.table.SocketTable",
    )
    assert [w for w in wrong if not w.endswith(permitted)] == []


@pytest.mark.parametrize("package", ["wire", "sfu", "turn"])
def test_cores_hold_no_sockets_and_no_loop(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        if path.stem not in {"endpoint", "peer_endpoint", "stream_endpoint", "routes", "service"}
        for name in imports(path)
        if name.split(".")[0] in ASYNC_AND_SOCKETS
    ]
    assert not wrong


def test_only_routes_know_the_web_framework() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in OURS - {"torpor", "loadtest"}
        for path in modules(package)
        if path.stem not in {"routes", "fetch", "gateway"}
        for name in imports(path)
        if name.split(".")[0] in WEB_FRAMEWORK
    ]
    assert not wrong


def test_wire_needs_only_the_standard_library() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("wire")
        for name in imports(path)
        if name.split(".")[0] not in sys.stdlib_module_names | {"wire"}
    ]
    assert not wrong


def test_cython_lives_only_in_folders_with_a_leading_underscore() -> None:
    tracked = [p for package in OURS for p in (ROOT / package).rglob("*.pyx")]
    assert all(p.parent.name.startswith("_") for p in tracked)
    assert all(p.with_suffix(".pyi").exists() for p in tracked)
