"""Programs that run under another environment's Python: servers, quantizers, converters. Each reruns the stage that starts it.

They import nothing of ours.
"""

from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent
