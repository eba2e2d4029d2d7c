from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import quantize
from failure import Failure
from manifest import Manifest
from spec import Quantization


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
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return Manifest("download", "k", {}, str(tmp_path), str(tmp_path), [], {"gguf": "m.gguf", "gguf_form": "GGUF F32", "origin": "test"})


def test_matrices_change_and_all_else_stays(model: Manifest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    facts = quantize.quantize(Quantization("q8", "gguf", "Q8_0"), model, tmp_path / "out")

    before, after = gguf.GGUFReader(model.file("gguf")), gguf.GGUFReader(tmp_path / "out" / facts["gguf"])
    matrix, vector = (next(tensor for tensor in after.tensors if tensor.name == name) for name in ("matrix", "vector"))
    original = next(tensor for tensor in before.tensors if tensor.name == "matrix").data
    assert matrix.tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert vector.tensor_type == gguf.GGMLQuantizationType.F32
    # Q8_0: one scale of max/127 a block of 32, so no value is off by more than half a step
    assert np.abs(gguf.dequantize(matrix.data, matrix.tensor_type) - original).max() <= np.abs(original).max() / 127 * 0.51
    assert {name: field.contents() for name, field in after.fields.items() if not name.startswith("GGUF.")} == {
        name: field.contents() for name, field in before.fields.items() if not name.startswith("GGUF.")
    }
    assert facts["gguf_form"] == "GGUF Q8_0, from GGUF F32"


def test_none_is_the_model_itself(model: Manifest, tmp_path: Path) -> None:
    facts = quantize.quantize(Quantization("none", "none"), model, tmp_path)

    assert facts["path"] == model.path
    assert facts["gguf"] == "m.gguf"


def test_a_model_without_gguf_is_refused(model: Manifest, tmp_path: Path) -> None:
    bare = Manifest("download", "k", {}, "", "", [], {"hf": ".", "origin": "folder m"})

    with pytest.raises(Failure, match="folder m has no GGUF form"):
        quantize.quantize(Quantization("q8", "gguf", "Q8_0"), bare, tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "nan.gguf", "llama")
    writer.add_tensor("matrix", np.full((4, 32), np.nan, dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()

    with pytest.raises(Failure, match="matrix holds values that are not finite"):
        quantize.requantize(tmp_path / "nan.gguf", tmp_path / "out.gguf", gguf.GGMLQuantizationType.Q8_0)
