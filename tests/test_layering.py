"""Imports go down only, and each library is imported where DESIGN says."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["settings", "data", "serving", "tasks", "flows"]
ONLY_IN = {
    "mlflow": ("tasks/registry.py",),
    "lancedb": ("data/store/",),
    "deepeval": ("tasks/metrics/",),
    "ragas": ("tasks/metrics/",),
}
NEVER_BELOW_TASKS = ("prefect", "mlflow")


def modules() -> list[Path]:
    return sorted(file for layer in LAYERS[1:] for file in (ROOT / layer).rglob("*.py") if "sample" not in file.parts)


def imports(file: Path) -> set[str]:
    """Top-level names of everything a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def violations(place: str, names: set[str]) -> list[str]:
    layer = LAYERS.index(place.split("/")[0])
    above = [name for name in names if name in LAYERS and LAYERS.index(name) > layer]
    strayed = [name for name in names if name in ONLY_IN and not place.startswith(ONLY_IN[name])]
    low = [name for name in names if name in NEVER_BELOW_TASKS and layer < LAYERS.index("tasks")]
    return sorted({*above, *strayed, *low})


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_downwards(file):
    assert violations(str(file.relative_to(ROOT)), imports(file)) == []


def test_the_walk_sees_what_it_must_refuse():
    assert violations("data/store/search.py", {"tasks"}) == ["tasks"]
    assert violations("serving/app.py", {"prefect", "mlflow"}) == ["mlflow", "prefect"]
    assert violations("tasks/gate.py", {"lancedb", "ragas"}) == ["lancedb", "ragas"]


def test_flow_modules_start_without_the_heavy_libraries():
    heavy = ["torch", "transformers", "lancedb", "openvino_genai", "ragas", "deepeval", "ray", "mlflow"]
    code = f"import flows.remedies, flows.monitor, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_the_lock_holds_everything_the_project_asks_for_in_a_version_it_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    lines = ["torch==2.13.0", *(ROOT / "requirements.lock").read_text().split()]  # torch: the Makefile's own line
    lock = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    wanted = {canonicalize_name(one.name): one.specifier for one in map(Requirement, asked)}
    assert [name for name, takes in wanted.items() if name not in lock or lock[name] not in takes] == []
