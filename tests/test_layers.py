"""The house rules that imports can break: floors, absolute imports, no `utils`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dinomed"
FLOORS = {
    "errors": 0,
    "ops": 1,
    "networks": 2,
    "losses": 2,
    "metrics": 2,
    "transforms": 2,
    "inferers": 2,
    "data": 3,
    "handlers": 3,
    "export": 3,
    "bundle": 4,
    "predictor": 5,
    "serving": 6,
    "label_app": 6,
    "cli": 7,
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported_modules(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the full dotted name"
            names.append(node.module or "")
            if node.module == "dinomed":
                names += [f"dinomed.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "dinomed"]


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_module_imports_only_from_lower_floors(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in FLOORS, f"dinomed/{own} has no floor; add it to ARCHITECTURE.md and to FLOORS"
    for name in imported_modules(path):
        other = part_of(name)
        if other in ("", own, "__version__", "Predictor"):
            continue
        assert other in FLOORS, f"{path.name} imports {name}, which has no floor"
        assert FLOORS[other] < FLOORS[own], f"{path.name} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[other]})"


def test_there_is_no_utils() -> None:
    assert not [path for path in PACKAGE.rglob("*") if path.stem in ("utils", "helpers", "common", "misc")]


def test_networks_know_nothing_of_medicine() -> None:
    for path in (PACKAGE / "networks").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("monai", "nibabel", "SimpleITK", "itk")], path
