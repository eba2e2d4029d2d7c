"""The typed form of one cell and of its parts, to and from the one JSON parameter that Snakemake compares."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Environment:
    """What a backend runs in. `kind` says which fields are set.

    pipeline     the pipeline's own interpreter: python
    lock         an environment installed from envs/<name>.txt: python, lock_sha256
    interpreter  one that is there already: interpreter, its path
    image        a container image: runtime, image (by digest where the registry gave one)
    container    a container image built from containers/<image>: runtime, image, sources_sha256, build_args, and lock with
                 lock_sha256 where it installs an environment of envs/

    `env`: what an interpreter needs in its environment to find its packages.
    """

    name: str
    kind: str
    python: str | None = None
    lock: str | None = None
    lock_sha256: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    interpreter: str | None = None
    runtime: str | None = None
    image: str | None = None
    sources_sha256: str | None = None
    build_args: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Where a checkpoint or a tokenizer comes from; which fields are set depends on `source` (config.schema.yaml).
    `revision` is a commit, whatever the configuration said."""

    source: str
    package: str | None = None
    version: str | None = None
    sha256: str | None = None
    gguf: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    path: str | None = None
    files_sha256: str | None = None
    architecture: dict[str, Any] | None = None
    dtype: str | None = None
    layout: str | None = None
    tokenizer: Weights | None = None
    pickle_weights: tuple[str, ...] = ()
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Model:
    """`converter`: versions of the packages that make or convert the checkpoint; None if nothing is."""

    name: str
    weights: Weights
    converter: dict[str, str] | None


@dataclass(frozen=True)
class Backend:
    """`runtime` starts it: process, docker, podman, apptainer. `env`, `workdir` and `user` (of a container) are the
    configuration's additions; `builds`: whether there is an engine to build."""

    name: str
    adapter: str
    environment: Environment
    options: dict[str, Any] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    runtime: str = "process"
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    builds: bool = False


@dataclass(frozen=True)
class Prompts:
    source: str
    columns: tuple[str, ...]
    join: str
    min_tokens: int
    max_tokens: int
    count: int | None = None
    path: str | None = None
    sha256: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None
    turns: str | None = None
    layout: str | None = None
    corpus_sha256: str | None = None


@dataclass(frozen=True)
class Calibration:
    """What a method watches a model with while it quantizes: so many blocks of so many tokens, cut from these prompts."""

    prompts: Prompts
    samples: int
    sequence_length: int


@dataclass(frozen=True)
class Quantization:
    """`method` makes it, `layout` is what comes out (None where the weights stay, or a backend quantizes in its build); which
    of the other fields are set depends on the method (config.schema.yaml, scripts/quantizers). `environment`: what a method
    that is a program of its own runs in."""

    name: str
    method: str
    layout: str | None = None
    type: str | None = None
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    grid: int | None = None
    clip: bool | None = None
    seed: int | None = None
    calibration: Calibration | None = None
    environment: Environment | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tasks:
    """Tasks of lm-evaluation-harness: their names, of each the first `limit` items, solved examples before
    each, and the folder of local ones with its identity."""

    names: tuple[str, ...]
    limit: int
    shots: int
    path: str | None = None
    files_sha256: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What the quality of a served model is judged by: `text` (held out), `prompts` to be answered greedily, `tasks`."""

    text: Prompts | None
    prompts: Prompts | None
    answer_tokens: int
    tasks: Tasks | None


@dataclass(frozen=True)
class Workload:
    name: str
    prompts: Prompts
    max_tokens: int
    system_prompt: str | None
    output_length: str
    temperature: float


@dataclass(frozen=True)
class Load:
    warmup_requests: int
    ramp_s: float
    window_s: float
    rest_s: float
    request_timeout_s: float
    settle_s: float
    arrivals: str
    burstiness: float
    workers: int | None


@dataclass(frozen=True)
class Offered:
    """The load that a cell offers, by kind: so many 'users' at a time (closed loop), requests a second ('rate', open loop),
    or a trace's arrivals at so many times their 'speed' (open loop)."""

    kind: str
    value: float

    @property
    def name(self) -> str:
        """Its part of every path: c8, r2.5, x1."""
        return f"{LETTERS[self.kind]}{self.value:g}"


LETTERS = {"users": "c", "rate": "r", "speed": "x"}


@dataclass(frozen=True)
class Server:
    """What every server is told alike. `policy`: 'equal' sets all of it, 'as_shipped' leaves sequences, caching and memory to the backend."""

    context_length: int
    max_sequences: int
    threads: int | None
    port: int | None
    start_timeout_s: float
    policy: str
    device: str
    dtype: str
    tensor_parallel: int
    gpu_memory_share: float
    prefix_caching: bool
    memory_gib: float | None


@dataclass(frozen=True)
class Served:
    """A model in one quantization behind one backend: what a server is started for."""

    model: Model
    quantization: Quantization
    backend: Backend
    server: Server
    seed: int

    @property
    def path(self) -> str:
        return f"{self.model.name}/{self.quantization.name}/{self.backend.name}"


def place(workload: str, offered: Offered) -> str:
    """Where a load of a workload lies below its session's folder."""
    return f"{workload}/{offered.name}"


@dataclass(frozen=True)
class Cell:
    """One point of the matrix, with all that decides what its measurement means."""

    model: Model
    quantization: Quantization
    backend: Backend
    workload: Workload
    offered: Offered
    trial: int
    seed: int
    load: Load
    server: Server
    isolation: str

    @property
    def load_path(self) -> str:
        """Its place below the session's folder."""
        return place(self.workload.name, self.offered)

    @property
    def served(self) -> Served:
        return Served(self.model, self.quantization, self.backend, self.server, self.seed)

    @property
    def path(self) -> str:
        """The cell's part of every path; the grammar stands in the Snakefile."""
        return f"{self.served.path}/t{self.trial}/{self.load_path}"


def to_json(value: Any) -> str:
    """Sorted JSON of a specification, fields that are None left out: the one parameter that Snakemake compares."""
    return json.dumps(plain(value), sort_keys=True)


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries, fields that are None left out; tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if getattr(value, f.name) is not None
        }
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `to_json`, after json.loads: builds the dataclass `kind` from plain values."""
    if value is None:
        return None
    if isinstance(kind, types.UnionType):
        return from_json(
            next(option for option in typing.get_args(kind) if option is not type(None)), value
        )
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(
            **{
                f.name: from_json(hints[f.name], value.get(f.name))
                for f in dataclasses.fields(kind)
                if f.name in value or _required(f)
            }
        )
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    return value


def _required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
