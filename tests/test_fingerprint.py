"""What counts as a change of code."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import fingerprint

FOLDERS = ("loadgen", "backends")


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    sources = {
        "measure.py": '"""Doc."""\nimport os\nfrom loadgen import drive\nimport backends\nimport store\n'
        '\ndef f():\n    """Doc."""\n    return 1  # why\n',
        "loadgen/__init__.py": "",
        "loadgen/drive.py": "from loadgen.client import send\n",
        "loadgen/client.py": "import loadgen.drive\nsend = 1\n",
        "backends/__init__.py": "import store\n",
        "backends/vllm.py": "from backends import x\n",
        "backends/tgi.py": "x = 1\n",
        "store.py": "from loadgen import late\nx = 1\n",
        "loadgen/late.py": "x = 1\n",
        "page.css": "p { }\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def code(scripts: Path) -> str:
    return fingerprint.code(scripts, ("measure.py", "backends/vllm.py", "page.css"), FOLDERS)


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("measure.py", "return 1", "return 2", True),
        ("loadgen/drive.py", "import send", "import send as s", True),
        ("loadgen/client.py", "send = 1", "send = 2", True),
        ("loadgen/__init__.py", "", "x = 1", True),
        ("backends/__init__.py", "import store", "import store as s", True),
        ("backends/vllm.py", "import x", "import y", True),
        ("page.css", "p { }", "p {  }", True),
        ("backends/tgi.py", "x = 1", "x = 2", False),
        ("store.py", "x = 1", "x = 2", False),  # imported, but its folder does not count
        ("loadgen/late.py", "x = 1", "x = 2", False),  # imported by what does not count
        ("measure.py", "  # why", "", False),
        ("measure.py", '"""Doc."""', '"""Another."""', False),
        ("measure.py", "    return 1", "\n\n    return (\n        1)", False),
    ],
)
def test_what_changes_the_fingerprint(
    scripts: Path, file: str, old: str, new: str, counts: bool
) -> None:
    before = code(scripts)
    path = scripts / file
    path.write_text(path.read_text().replace(old, new) if old else new)

    assert (code(scripts) != before) == counts


def test_import_cycles_end(scripts: Path) -> None:
    found = fingerprint.sources(scripts, ("measure.py",), FOLDERS)

    names = {str(path.relative_to(scripts)) for path in found}
    assert names == {
        "measure.py",
        "loadgen/__init__.py",
        "loadgen/drive.py",
        "loadgen/client.py",
        "backends/__init__.py",
    }


def test_the_same_files_give_the_same_fingerprint_wherever_they_lie(
    scripts: Path, tmp_path: Path
) -> None:
    scripts.rename(tmp_path.parent / "elsewhere")
    other = tmp_path.parent / "elsewhere"
    before = code(other)
    other.rename(scripts)

    assert code(scripts) == before
