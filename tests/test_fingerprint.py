from __future__ import annotations

from pathlib import Path

import pytest

import fingerprint


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "measure.py").write_text('"""Doc."""\nimport os\nfrom loadgen import drive\nimport backends\n\ndef f():\n    """Doc."""\n    return 1  # why\n')
    (tmp_path / "loadgen").mkdir()
    (tmp_path / "loadgen/__init__.py").write_text("")
    (tmp_path / "loadgen/drive.py").write_text("from loadgen.client import send\n")
    (tmp_path / "loadgen/client.py").write_text("import loadgen.drive\nsend = 1\n")
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends/__init__.py").write_text("import store\n")
    (tmp_path / "backends/vllm.py").write_text("from backends import x\n")
    (tmp_path / "backends/tgi.py").write_text("x = 1\n")
    (tmp_path / "store.py").write_text("x = 1\n")
    (tmp_path / "report.py").write_text("x = 1\n")
    return tmp_path


def code(scripts: Path) -> str:
    for function in (fingerprint.code, fingerprint.sources, fingerprint.normalized):
        function.cache_clear()
    return fingerprint.code(scripts, "measure.py", "backends/vllm.py")


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("measure.py", "return 1", "return 2", True),
        ("loadgen/drive.py", "import send", "import send as s", True),
        ("loadgen/client.py", "send = 1", "send = 2", True),
        ("loadgen/__init__.py", "", "x = 1", True),
        ("backends/__init__.py", "import store", "import store as s", True),
        ("backends/vllm.py", "import x", "import y", True),
        ("backends/tgi.py", "x = 1", "x = 2", False),
        ("report.py", "x = 1", "x = 2", False),
        ("store.py", "x = 1", "x = 2", False),
        ("measure.py", "  # why", "", False),
        ("measure.py", '"""Doc."""', '"""Another."""', False),
        ("measure.py", "    return 1", "\n\n    return (\n        1)", False),
    ],
)
def test_what_changes_the_fingerprint(scripts: Path, file: str, old: str, new: str, counts: bool) -> None:
    before = code(scripts)
    path = scripts / file
    path.write_text(path.read_text().replace(old, new) if old else new)

    assert (code(scripts) != before) == counts


def test_import_cycles_end(scripts: Path) -> None:
    found = fingerprint.sources(scripts, (scripts / "measure.py").resolve())

    assert {path.name for path in found} == {"measure.py", "__init__.py", "drive.py", "client.py", "store.py"}


def test_every_script_of_the_product_parses() -> None:
    scripts = Path(fingerprint.__file__).parent
    for path in scripts.rglob("*.py"):
        assert fingerprint.code(scripts, str(path.relative_to(scripts)))
