"""The code that a Hugging Face folder carries: copies of our own modules that import each other, not us.

The copies are made from the source at hand, so they cannot drift from it. `harmon.model.mar` becomes
`harmon_model_mar.py` and its imports of ours become relative ones; Transformers loads such files from one
flat folder. The three modules of `harmon.convert.remote` keep their own names.
"""

import ast
from pathlib import Path

import harmon
import pipelines

ENTRIES = ("configuration_harmon", "modeling_harmon", "processing_harmon")
_REMOTE = "harmon.convert.remote"
_ROOTS = {package.__name__: Path(package.__path__[0]) for package in (harmon, pipelines)}


def remote_code() -> dict[str, str]:
    """File name -> source of every file that the folder needs, found from the imports of ENTRIES."""
    files: dict[str, str] = {}
    waiting = [f"{_REMOTE}.{entry}" for entry in ENTRIES]
    while waiting:
        module = waiting.pop()
        name = f"{_flat(module)}.py"
        if name in files:
            continue
        source = _file(module).read_text(encoding="utf-8")
        files[name], needed = _rewritten(source, module)
        waiting += needed
    return files


def _rewritten(source: str, module: str) -> tuple[str, list[str]]:
    """`source` with its imports of our modules made relative, and the modules that it needs."""
    lines = source.splitlines(keepends=True)
    needed = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in _ROOTS for alias in node.names):
            raise ValueError(f"{module}, line {node.lineno}: write `from package.module import name`")
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level or node.module is None:
            raise ValueError(f"{module}, line {node.lineno}: write the module's whole name")
        if node.module.split(".")[0] in _ROOTS:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {node.module} import", f"from .{_flat(node.module)} import", 1)
            needed.append(node.module)
    note = f"# Written by `harmon convert` from {module.replace('.', '/')}.py; change it there.\n"
    return note + "".join(lines), needed


def _flat(module: str) -> str:
    """The name of a module's copy."""
    return module.removeprefix(f"{_REMOTE}.") if module.startswith(f"{_REMOTE}.") else module.replace(".", "_")


def _file(module: str) -> Path:
    package, _, rest = module.partition(".")
    return _ROOTS[package] / f"{rest.replace('.', '/')}.py"
