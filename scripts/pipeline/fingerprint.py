"""Fingerprint of code; decides reruns in place of file time.

Comments, docstrings and layout do not count: the hash is over the syntax tree.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection
from functools import cache
from pathlib import Path


def code(scripts: Path, files: tuple[str, ...], folders: tuple[str, ...]) -> str:
    """Hash of these files (relative to `scripts`) and of all that they import from these folders: 16 hex digits.

    What lies in other folders does not count, whoever imports it: config/plan.py says which count for what.
    """
    digest = hashlib.sha256()
    for path in sorted(sources(scripts.resolve(), files, folders)):
        digest.update(f"{path.relative_to(scripts.resolve())}\0{normalized(path)}\0".encode())
    return digest.hexdigest()[:16]


def sources(scripts: Path, files: Collection[str], folders: Collection[str]) -> set[Path]:
    """The named files and those of the folders that they import, directly or by one another."""
    found: set[Path] = set()
    waiting = [scripts / file for file in files]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for module in imported(path):
            if module.split(".")[0] in folders:
                waiting.extend(locate(scripts, module))
    return found


def imported(path: Path) -> tuple[str, ...]:
    """Dotted names a file imports; `from a import b` gives both `a` and `a.b`."""
    return _imported(path.read_bytes()) if path.suffix == ".py" else ()


@cache
def _imported(source: bytes) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def locate(scripts: Path, module: str) -> list[Path]:
    """Local files that importing a dotted name runs: the module and the packages it lies in."""
    parts = module.split(".")
    packages = [scripts.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)]
    return [
        path for path in [*packages, scripts.joinpath(*parts).with_suffix(".py")] if path.is_file()
    ]


def normalized(path: Path) -> str:
    """A Python file's syntax tree without comments and docstrings, or any other file's bytes; hashed."""
    source = path.read_bytes()
    return _normalized(source) if path.suffix == ".py" else hashlib.sha256(source).hexdigest()


@cache
def _normalized(source: bytes) -> str:
    tree = ast.parse(source)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
