"""What a program that is not ours does not get of this process's environment."""

from __future__ import annotations

import os

# Tokens that it has no use for, and this interpreter's own settings.
WITHHELD = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def environment_of_others() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in WITHHELD}
