"""Fingerprint of a script and of every local file it imports; decides reruns in place of file time.

Comments, docstrings and layout do not count: the hash is over the syntax tree. Nor does the plumbing: files that say
how results are kept and told, not what they are. Else a better error message would cost a night of measuring.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PLUMBING = {"job.py", "store.py", "manifest.py", "failure.py", "spec.py"}


@cache
def code(scripts: Path, *names: str) -> str:
    """Hash of the named files (relative to `scripts`) and of all they import from there: 16 hex digits."""
    files = sorted({path for name in names for path in sources(scripts, (scripts / name).resolve()) if path.name not in PLUMBING})
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{normalized(path)}\0".encode())
    return digest.hexdigest()[:16]


@cache
def own(scripts: Path, name: str) -> str:
    """Hash of one file (relative to `scripts`) without what it imports: 16 hex digits."""
    return hashlib.sha256(normalized((scripts / name).resolve()).encode()).hexdigest()[:16]


@cache
def sources(scripts: Path, script: Path) -> frozenset[Path]:
    """The script and every file below `scripts` that it imports, directly or not; packages count with their __init__.py."""
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for module in imported(path):
            waiting.extend(locate(scripts.resolve(), module))
    return frozenset(found)


def imported(path: Path) -> list[str]:
    """Dotted names a file imports; `from a import b` gives both `a` and `a.b`."""
    names = []
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def locate(scripts: Path, module: str) -> list[Path]:
    """Local files that importing a dotted name runs: the module and the packages it lies in."""
    parts = module.split(".")
    packages = [scripts.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)]
    return [path for path in [*packages, scripts.joinpath(*parts).with_suffix(".py")] if path.is_file()]


@cache
def normalized(path: Path) -> str:
    """The file's syntax tree as text, without comments and docstrings."""
    tree = ast.parse(path.read_bytes(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
