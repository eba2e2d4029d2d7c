"""The methods themselves, each in its own locked environment, on a real model of the Llama family with random weights: minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import environment
import quantize
import quantizers
from config.experiment import environment as locked
from foreign import PROGRAMS
from pipeline import store
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from pipeline.spec import Quantization, to_json

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
}
BY_PROGRAM = [name for name in quantizers.names() if quantizers.load(name).environment]


def installed(lock: str) -> Manifest:
    """An environment of envs/, from the user's own store: installed once."""
    url = "https://download.pytorch.org/whl/cpu"
    spec = json.loads(to_json(locked(lock)))
    return store.obtain(
        store.root(),
        "environment",
        spec,
        "",
        lambda folder: environment.install(environment.LOCKS / f"{lock}.txt", url, folder),
        hashed=False,
    )


@pytest.fixture(scope="module")
def small(smollm2: Manifest, converter: str, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("small") / "hf"
    subprocess.run(
        [
            converter,
            str(PROGRAMS / "random_weights.py"),
            json.dumps(ARCHITECTURE),
            "bfloat16",
            str(smollm2.file("hf")),
            str(folder),
        ],
        check=True,
    )
    saved = json.loads((folder / "config.json").read_text()) | {"rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(saved))
    return Manifest(
        "download",
        "k",
        {"weights": {}},
        str(folder),
        str(folder),
        [],
        {"hf": ".", "hf_form": "random bfloat16", "origin": "random"},
    )


def made(method: str, model: Manifest, folder: Path, **changes: Any) -> dict[str, Any]:
    told = quantizers.load(method)
    asked: dict[str, Any] = {
        "bits": 4,
        "group_size": 64,
        "symmetric": told.symmetric[0],
        "seed": 5,
    } | ({"grid": 3} if method == "llmcompressor" else {})
    quantization = Quantization(
        method,
        method,
        told.layouts[0],
        **(asked | ({"clip": True} if method == "autoawq" else {}) | changes),
    )
    samples = folder / "samples"
    samples.mkdir(parents=True)
    (samples / "samples.json").write_text(
        json.dumps([list(range(start, start + 32)) for start in range(100, 500, 100)])
    )
    calibration = Manifest(
        "texts",
        "t",
        {},
        "",
        str(samples),
        [],
        {"samples": "samples.json", "count": 4, "length": 32, "seed": 5},
    )
    (folder / "out").mkdir()
    assert told.environment
    return quantize.quantize(
        quantization,
        model,
        folder / "out",
        calibration if told.calibrated else None,
        installed(told.environment),
        folder / "program.log",
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted((folder / "out").iterdir())
        if path.suffix in (".safetensors", ".bin")
    }


@pytest.mark.slow
@pytest.mark.parametrize("method", BY_PROGRAM)
def test_a_method_makes_its_layout_and_the_same_bytes_twice_where_it_says_so(
    method: str, small: Manifest, tmp_path: Path
) -> None:
    facts = made(method, small, tmp_path / "once")
    out = tmp_path / "once/out"

    assert facts["layout"] == quantizers.load(method).layouts[0]
    assert facts["peak_memory_bytes"] > 100 << 20
    if method == "openvino":
        assert {path.suffix for path in out.iterdir()} >= {".xml", ".bin"}
    else:
        config = json.loads((out / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == facts["layout"]
        assert config["rope_theta"] == 10000.0
        assert (out / "tokenizer.json").read_bytes() == (
            small.file("hf") / "tokenizer.json"
        ).read_bytes()
        assert sum(path.stat().st_size for path in out.glob("*.safetensors")) < sum(
            path.stat().st_size for path in small.file("hf").glob("*.safetensors")
        )
    if quantizers.load(method).reproducible:
        made(method, small, tmp_path / "twice")
        assert bytes_of(tmp_path / "once") == bytes_of(tmp_path / "twice")


@pytest.mark.slow
def test_groups_that_do_not_fit_are_refused_before_the_program_starts(
    small: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(Failure, match=r"Groups of 96 do not divide the (128|256) inputs"):
        made("llmcompressor", small, tmp_path / "x", group_size=96)
    assert not (tmp_path / "x/program.log").exists()


WITHOUT_THE_REMEDY = "import sys; sys.path.insert(0, {folder!r}); import quantize_autoawq as q; q.search_on_copies = lambda: None; q.quantize(q.Path({source!r}), q.Path({target!r}), q.json.load(open({samples!r})), {asked!r})"


def autoawq_without_the_remedy(
    source: Path, target: Path, samples: Path, asked: dict[str, Any]
) -> None:
    """AutoAWQ as it is published: on a CPU it spoils the weights that it searches scales for."""
    program = WITHOUT_THE_REMEDY.format(
        folder=str(PROGRAMS),
        source=str(source),
        target=str(target),
        samples=str(samples),
        asked=asked,
    )
    subprocess.run(
        [installed("autoawq").facts["python"], "-c", program],
        check=True,
        env=quantize.KEEP_MEMORY | quantize.OFFLINE,
        stdout=sys.stderr,
    )
