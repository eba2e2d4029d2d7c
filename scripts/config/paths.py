"""Where the product lies, and where a path of the configuration leads."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def locate(path: str) -> Path:
    """A path of the configuration: from the working directory, else from the folder of the Snakefile."""
    here = Path(path).expanduser()
    return here.absolute() if here.exists() else ROOT / path
