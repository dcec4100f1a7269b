"""The layout: folders are floors, and no import runs up or in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import wenet

ROOT = Path(wenet.__file__).parent
# From the ground up; a folder imports from those below it, and from itself.
FLOORS = (
    "version",
    "files",
    "words",
    "cells",
    "parallel",
    "data",
    "nn",
    "tasks",
    "run",
    "training",
    "searching",
    "report",
    "exporting",
    "results",
    "api",
    "estimators",
    "cli",
)
PUBLIC = ("genotypes", "programs")  # what programs import; nothing within the package does


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> list[str]:
    """The modules of this package that a module imports, at the top or within a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wenet":
            found += [f"{node.module}.{name.name}" for name in node.names]
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] == "wenet"]
    return [name if name in modules() else name.rpartition(".")[0] for name in found]


def floor(module: str) -> int | None:
    parts = module.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else None


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_import_runs_up(module):
    own = floor(module)
    if own is None:
        assert module in ("wenet", *(f"wenet.{name}" for name in PUBLIC)), f"{module} stands on no floor"
        return
    for imported in imports_of(modules()[module]):
        below = floor(imported)
        assert below is not None and below <= own, f"{module} imports {imported} from above"


def test_no_import_runs_in_a_circle():
    """Of modules; a package stands for what its `__init__` imports."""
    graph = {name: set(imports_of(path)) - {name} for name, path in modules().items()}
    assert list(TopologicalSorter(graph).static_order())


def test_no_module_has_the_name_of_a_public_function():
    functions = {name for name in wenet.__all__ if callable(getattr(wenet, name)) and name.islower()}
    assert not functions & {path.stem for path in ROOT.iterdir()}


def test_the_kernels_know_nothing_of_the_rest():
    for path in (ROOT.parent / "wenet_kernels").rglob("*.py"):
        assert not imports_of(path), path
