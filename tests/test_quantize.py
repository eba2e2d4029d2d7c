from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

import quantize
import quantizers
import stages
from conftest import ROOT
from foreign.requantize import requantize
from host.gpus import gpu_kind
from models import safetensors
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from pipeline.spec import Quantization, plain


@pytest.fixture
def model(tmp_path: Path) -> Manifest:
    """A GGUF with one matrix, one vector, and metadata of several types."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("matrix", np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32))
    writer.add_tensor("vector", np.arange(4, dtype=np.float32))
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    return Manifest(
        "download",
        "k",
        {},
        str(tmp_path),
        str(tmp_path),
        [],
        {"gguf": "m.gguf", "gguf_form": "GGUF F32", "origin": "test"},
    )


def made(quantization: Quantization, model: Manifest, folder: Path) -> dict[str, Any]:
    return quantize.quantize(quantization, model, folder, None, None, folder / "log")


def test_matrices_change_and_all_else_stays(model: Manifest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    facts = made(Quantization("q8", "gguf", "gguf", type="Q8_0"), model, tmp_path / "out")

    before, after = (
        gguf.GGUFReader(model.file("gguf")),
        gguf.GGUFReader(tmp_path / "out" / facts["gguf"]),
    )
    matrix, vector = (
        next(tensor for tensor in after.tensors if tensor.name == name)
        for name in ("matrix", "vector")
    )
    original = next(tensor for tensor in before.tensors if tensor.name == "matrix").data
    assert matrix.tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert vector.tensor_type == gguf.GGMLQuantizationType.F32
    # Q8_0: one scale of max/127 a block of 32, so no value is off by more than half a step
    assert (
        np.abs(gguf.dequantize(matrix.data, matrix.tensor_type) - original).max()
        <= np.abs(original).max() / 127 * 0.51
    )
    assert {
        name: field.contents()
        for name, field in after.fields.items()
        if not name.startswith("GGUF.")
    } == {
        name: field.contents()
        for name, field in before.fields.items()
        if not name.startswith("GGUF.")
    }
    assert facts["gguf_form"] == "GGUF Q8_0, from GGUF F32"


def test_none_and_what_a_build_quantizes_are_the_model_itself(
    model: Manifest, tmp_path: Path
) -> None:
    for quantization in (
        Quantization("none", "none"),
        Quantization("q4", "mlc", type="q4f16_1"),
        Quantization("fp8", "modelopt", type="fp8"),
    ):
        facts = made(quantization, model, tmp_path)

        assert facts["path"] == model.path
        assert facts["gguf"] == "m.gguf"


def test_a_model_without_gguf_is_refused(model: Manifest, tmp_path: Path) -> None:
    bare = Manifest("download", "k", {}, "", "", [], {"hf": ".", "origin": "folder m"})

    with pytest.raises(Failure, match="folder m has no GGUF form"):
        made(Quantization("q8", "gguf", "gguf", type="Q8_0"), bare, tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "nan.gguf", "llama")
    writer.add_tensor("matrix", np.full((4, 32), np.nan, dtype=np.float32))
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()

    with pytest.raises(ValueError, match="matrix holds values that are not finite"):
        requantize(tmp_path / "nan.gguf", tmp_path / "out.gguf", gguf.GGMLQuantizationType.Q8_0)
    damaged = Manifest(
        "download",
        "k",
        {},
        str(tmp_path),
        str(tmp_path),
        [],
        {"gguf": "nan.gguf", "gguf_form": "GGUF F32", "origin": "test"},
    )
    with pytest.raises(
        Failure, match=r"nan\.gguf: matrix holds values that are not finite\. Use undamaged weights"
    ):
        made(Quantization("q8", "gguf", "gguf", type="Q8_0"), damaged, tmp_path)


AWQ = Quantization(
    "awq",
    "llmcompressor",
    "compressed-tensors",
    bits=4,
    group_size=64,
    symmetric=False,
    grid=20,
    seed=1,
)
ENVIRONMENT = Manifest(
    "environment", "e", {}, "", "", [], {"python": sys.executable, "versions": {"tool": "1"}}
)


def folder_of(path: Path, tensors: dict[str, np.ndarray], **facts: str) -> Manifest:
    """A Hugging Face folder with these tensors."""
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(
        json.dumps({"model_type": "llama", "rope_theta": 7.0, "dtype": "bfloat16"})
    )
    (path / "tokenizer.json").write_text("{}")
    return Manifest(
        "download",
        "k",
        {"weights": {}},
        str(path),
        str(path),
        [],
        {"hf": ".", "hf_form": "F32 safetensors", "origin": "here", **facts},
    )


MATRIX = {
    "model.layers.0.mlp.down_proj.weight": np.ones((8, 576), np.float32),
    "model.embed_tokens.weight": np.ones((10, 9), np.float32),
}


def sees(quantization: Quantization, model: Manifest) -> None:
    quantize.see_fit(quantization, model, model.file("hf"))


def test_sound_weights_of_the_right_width_are_accepted(tmp_path: Path) -> None:
    sees(AWQ, folder_of(tmp_path / "m", MATRIX))


def test_groups_that_do_not_divide_a_matrix_are_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(
        Failure,
        match=r"Groups of 128 do not divide the 576 inputs of model\.layers\.0\.mlp\.down_proj\.weight\. Set group_size to 32 or 64\.",
    ) as refused:
        sees(dataclasses.replace(AWQ, group_size=128), folder_of(tmp_path / "m", MATRIX))
    assert refused.value.kind == "quantize_failed"


def test_eight_bits_by_channel_need_no_groups(tmp_path: Path) -> None:
    sees(dataclasses.replace(AWQ, bits=8, group_size=128), folder_of(tmp_path / "m", MATRIX))


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"here is quantized already \(layout awq\).*method: none"):
        sees(AWQ, folder_of(tmp_path / "m", MATRIX, layout="awq"))


def test_a_model_larger_than_the_memory_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "gpu_kind", lambda: None)
    monkeypatch.setattr(safetensors, "free_memory", lambda: 10_000)
    with pytest.raises(
        Failure,
        match=r"The weights alone take 0\.0 GB in 32 bits \(0\.00 billion\); 0\.0 GB of memory are free",
    ):
        sees(AWQ, folder_of(tmp_path / "m", MATRIX))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_damaged_weights_are_refused_by_name(tmp_path: Path, kind: str, value: float) -> None:
    """One bad value among a hundred thousand good ones, in each type that a checkpoint has."""
    good = np.linspace(-1e4, 1e4, 100_032, dtype=np.float32).reshape(-1, 64)
    bad = good.copy()
    bad[700, 3] = value
    for values, sound in ((good, True), (bad, False)):
        path = tmp_path / f"{sound}.safetensors"
        raw = {
            "F32": values,
            "F16": values.astype(np.float16),
            "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
        }[kind]
        entry = json.dumps(
            {"w": {"dtype": kind, "shape": list(raw.shape), "data_offsets": [0, raw.nbytes]}}
        ).encode()
        path.write_bytes(len(entry).to_bytes(8, "little") + entry + raw.tobytes())
        [tensor] = safetensors.header(path).values()
        assert safetensors.finite(path, tensor) is sound
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "True.safetensors").unlink()
    with pytest.raises(Failure, match=r"False\.safetensors: w holds values that are not finite"):
        sees(
            AWQ, Manifest("download", "k", {}, "", str(tmp_path), [], {"hf": ".", "origin": "here"})
        )


def test_the_checkpoint_has_the_models_own_tokenizer_and_configuration(tmp_path: Path) -> None:
    model, out = folder_of(tmp_path / "m", MATRIX), tmp_path / "out"
    out.mkdir()
    save_file({"w": np.ones(2, np.float32)}, out / "model.safetensors")
    (out / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "rope_theta": 1.0,
                "quantization_config": {"quant_method": "awq"},
                "torch_dtype": "float16",
            }
        )
    )
    quantize.complete(model.file("hf"), out)

    assert json.loads((out / "config.json").read_text()) == {
        "model_type": "llama",
        "rope_theta": 7.0,
        "dtype": "bfloat16",
        "torch_dtype": "float16",
        "quantization_config": {"quant_method": "awq"},
    }
    assert (out / "tokenizer.json").exists()
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644
    (out / "model.safetensors").unlink()
    with pytest.raises(Failure, match="left no safetensors file"):
        quantize.complete(model.file("hf"), out)


PROGRAM = """
import json, pathlib, shutil, sys, time
source, folder, samples, asked = sys.argv[1:5]
assert len(json.loads(pathlib.Path(samples).read_text())) == 2
for layer in range(3):
    print(f"layer {layer + 1} of 3", flush=True)
    time.sleep({pause})
shutil.copy(pathlib.Path(source, "model.safetensors"), folder)
pathlib.Path(folder, "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "made", "asked": json.loads(asked)}}))
print("the end", flush=True)
"""


RUN = """
import pathlib, sys
sys.path.insert(0, {scripts!r})
import quantize
from quantizers import llmcompressor
from runtime import command
command.PROGRESS_S = 0.3
llmcompressor.PROGRAMS = pathlib.Path({programs!r})
quantize.main()
"""


def by_command(tmp_path: Path, pause: float) -> list[str]:
    """quantize.py as the rule calls it, with a FAKE in place of the method's own program: it copies the weights, layer by layer."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "quantize_llmcompressor.py").write_text(PROGRAM.replace("{pause}", str(pause)))
    folder_of(tmp_path / "m", MATRIX).save(tmp_path / "model.json")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/samples.json").write_text("[[1, 2], [3, 4]]")
    samples = {"samples": "samples.json", "count": 2, "length": 2, "seed": 1}
    Manifest("texts", "t", {}, "", str(tmp_path / "samples"), [], samples).save(
        tmp_path / "samples.json"
    )
    ENVIRONMENT.save(tmp_path / "environment.json")
    run = RUN.format(scripts=str(ROOT / "scripts"), programs=str(programs))
    inputs = {name: tmp_path / f"{name}.json" for name in ("model", "samples", "environment")}
    return [
        sys.executable,
        "-c",
        run,
        *stages.arguments(tmp_path, "out", {"quantization": plain(AWQ)}, **inputs),
    ]


def test_the_manifest_says_what_it_took_and_the_log_how_far_it_is(tmp_path: Path) -> None:
    subprocess.run(
        by_command(tmp_path, 0.7),
        check=True,
        env=os.environ | {"SHOWDOWN_STORE": str(tmp_path / "store")},
    )
    made = Manifest.load(tmp_path / "out.json")

    assert made.failure is None
    assert made.facts["layout"] == "compressed-tensors"
    assert (
        made.facts["hf_form"]
        == "4-bit AWQ by llm-compressor (groups of 64, asymmetric), from F32 safetensors"
    )
    assert made.facts["calibration"] == {"count": 2, "length": 2, "seed": 1}
    assert made.facts["reproducible"] == (gpu_kind() is None)
    assert made.facts["versions"] == {"tool": "1"}
    assert made.duration_s > 2
    assert made.peak_memory_bytes > 5 << 20
    asked = json.loads((Path(made.path) / "config.json").read_text())["quantization_config"][
        "asked"
    ]
    assert (asked["bits"], asked["group_size"], asked["seed"]) == (4, 64, 1)
    assert "layer 1 of 3" in (tmp_path / "log").read_text()
    assert "the end" in (tmp_path / "log.program.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_killed_half_way_leaves_nothing_that_looks_whole(
    tmp_path: Path, number: int
) -> None:
    command = by_command(tmp_path, 60)
    entries = tmp_path / "store/quantize"
    with subprocess.Popen(
        command, env=os.environ | {"SHOWDOWN_STORE": str(tmp_path / "store")}
    ) as running:
        deadline = time.monotonic() + 30
        while (
            "layer"
            not in (
                program.read_text() if (program := tmp_path / "log.program.log").exists() else ""
            )
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        children = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(number)

    assert children
    assert not psutil.wait_procs(children, timeout=30)[1], "the program is gone as well"
    assert not list(entries.glob("*/manifest.json"))
    assert not (tmp_path / "out.json").exists()
    (tmp_path / "programs/quantize_llmcompressor.py").write_text(PROGRAM.replace("{pause}", "0"))
    subprocess.run(
        command, check=True, env=os.environ | {"SHOWDOWN_STORE": str(tmp_path / "store")}
    )
    assert Manifest.load(tmp_path / "out.json").failure is None


def test_a_program_that_fails_tells_its_last_words(tmp_path: Path) -> None:
    command = by_command(tmp_path, 0)
    (tmp_path / "programs/quantize_llmcompressor.py").write_text(
        "raise SystemExit('no such architecture')"
    )
    subprocess.run(
        command, check=True, env=os.environ | {"SHOWDOWN_STORE": str(tmp_path / "store")}
    )
    failure = Manifest.load(tmp_path / "out.json").failure

    assert failure
    assert failure["kind"] == "quantize_failed"
    assert "ended with exit code 1: no such architecture" in failure["reason"]


def test_each_methods_program_is_told_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizers.module("lmdeploy"), "gpu_kind", lambda: None)
    openvino, lmdeploy = (quantizers.command(name) for name in ("openvino", "lmdeploy"))
    asked = {"bits": 4, "group_size": 64, "symmetric": True, "trust_remote_code": False}

    assert openvino("python", Path("/m"), Path("/o"), None, asked)[3:] == (
        [
            "export",
            "openvino",
            "--model",
            "/m",
            "--task",
            "text-generation-with-past",
            "--weight-format",
            "int4",
            "--group-size",
            "64",
            "--ratio",
            "1.0",
            "--sym",
            "/o",
        ]
    )
    assert openvino("python", Path("/m"), Path("/o"), None, asked | {"bits": 16})[-3:] == [
        "--weight-format",
        "fp16",
        "/o",
    ]
    assert lmdeploy("python", Path("/m"), Path("/o"), None, asked)[3:] == (
        [
            "lite",
            "auto_awq",
            "/m",
            "--work-dir",
            "/o",
            "--calib-samples",
            "0",
            "--dtype",
            "float16",
            "--w-bits",
            "4",
            "--w-group-size",
            "64",
            "--device",
            "cpu",
        ]
    )
