"""The commands that were reviewed (golden/), parsed by the backend's own parser: in its environment, or from its wheel laid over one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parent / "golden"
VLLM = """
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(argv[3:])
"""
LMDEPLOY = """
from lmdeploy.cli.cli import CLI
from lmdeploy.cli.serve import SubCliServe
SubCliServe.add_parsers()
parsed = CLI.parser.parse_args(argv[3:])
"""
# What the parser's modules import and the converter's environment lacks.
LMDEPLOY_WHEELS = [
    "lmdeploy==0.18.0",
    "mmengine-lite==0.10.7",
    "yapf==0.43.0",
    "platformdirs==4.14.7",
    "addict==2.4.0",
    "termcolor==3.3.0",
    "shortuuid==1.0.13",
]


def parsed(python: str, program: str, argv: list[str], path: str = "") -> dict[str, object]:
    """Attributes that the parser gives the command of golden/, without its two further arguments."""
    shown = f"import json, sys\nargv = json.loads(sys.argv[1])\n{program}\nprint(json.dumps({{k: v for k, v in vars(parsed).items() if isinstance(v, (bool, int, float, str))}}))"
    done = subprocess.run(
        [python, "-c", shown, json.dumps(argv[:-2])],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def reviewed(name: str) -> list[str]:
    argv: list[str] = json.loads((GOLDEN / f"{name}.json").read_text())["serve, gpu, more"]["argv"]
    return argv


def test_vllm_takes_its_command(converter: str) -> None:
    told = parsed(converter, VLLM, reviewed("vllm"))

    assert (
        told
        | {
            "max_num_seqs": 8,
            "max_model_len": 2048,
            "enable_prefix_caching": True,
            "tensor_parallel_size": 2,
            "dtype": "float16",
            "trust_remote_code": True,
        }
        == told
    )


def test_lmdeploy_takes_its_command(converter: str, tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(tmp_path),
            *LMDEPLOY_WHEELS,
        ],
        check=True,
        capture_output=True,
    )
    told = parsed(converter, LMDEPLOY, reviewed("lmdeploy"), str(tmp_path))

    assert (
        told
        | {
            "max_batch_size": 8,
            "session_len": 2048,
            "enable_prefix_caching": True,
            "dtype": "float16",
            "cache_max_entry_count": 0.8,
            "trust_remote_code": True,
        }
        == told
    )
