"""Packages import one way, and nothing heavy loads with the command line or the dataset package."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "pipelines": {"pipelines"},
    "recaption": {"recaption", "pipelines"},
    "filtering": {"filtering", "pipelines"},
    "harmon": {"harmon", "pipelines"},
    "flows": {"flows", "recaption", "filtering", "harmon", "pipelines"},
}


def imported_roots(tree: ast.AST) -> set[str]:
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            roots.add(node.module.split(".")[0])
    return roots


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_the_packages_below_it(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in sources(package)
        if (found := imported_roots(ast.parse(path.read_text())) & MAY_IMPORT.keys() - MAY_IMPORT[package])
    }
    assert not wrong


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if name != "flows"])
def test_prefect_is_imported_in_flows_alone(package: str) -> None:
    assert not [p for p in sources(package) if "prefect" in imported_roots(ast.parse(p.read_text()))]


def test_the_dataset_package_loads_neither_torch_nor_ray_nor_prefect() -> None:
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sources("pipelines")]
    modules = [m.removesuffix(".__init__") for m in modules]
    script = (
        f"import importlib, sys\n[importlib.import_module(m) for m in {modules!r}]\n"
        "loaded = {'torch', 'ray', 'prefect'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_help_answers_in_half_a_second() -> None:
    """The best of five runs, since another process may hold both cores for a moment."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "--help"], cwd=ROOT, check=True, capture_output=True, timeout=60
        )
        times.append(time.perf_counter() - start)
    assert min(times) <= 0.5, times
