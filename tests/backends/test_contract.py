"""One suite over every backend there is: the files of scripts/backends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import backends
from conftest import ROOT
from manifest import Manifest

NAMES = backends.names()
GOLDEN = Path(__file__).parent / "golden"


def serve(name: str, **changes: Any) -> backends.Serve:
    engine = Manifest("build", "key", {}, "/store/build/key", "/store/download/key/data", [], {"gguf": "model.gguf", "hf": "hf"})
    settings = {"served_name": "m", "port": 8000, "context_length": 2048, "max_sequences": 8, "threads": 3, "seed": 7, "args": ()} | changes
    return backends.Serve(engine=engine, python="/env/bin/python", options=backends.load(name).Options(), **settings)


def ask(**changes: Any) -> backends.Ask:
    settings: dict[str, Any] = {"prompt": "Why?", "earlier": (), "system_prompt": None, "max_tokens": 16, "forced": False, "temperature": 0, "seed": 7}
    return backends.Ask(**(settings | changes))


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_what_an_adapter_gives(name: str) -> None:
    adapter = backends.load(name)

    assert adapter.__doc__
    assert adapter.WEIGHTS in ("hf", "gguf")
    assert "none" in adapter.METHODS
    assert adapter.READY.startswith("/")
    assert adapter.ENVIRONMENT is None or (ROOT / "envs" / f"{adapter.ENVIRONMENT}.txt").is_file()
    assert dataclasses.is_dataclass(adapter.Options)
    assert adapter.Options.__doc__
    assert all(type(value) in (bool, int, float, str) for value in dataclasses.asdict(adapter.Options()).values())


@pytest.mark.parametrize("name", NAMES)
def test_the_command_is_what_was_reviewed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`golden/<name>.json` holds the command for one set of settings; delete it to have it written again, then read it."""
    if name == "vllm":
        monkeypatch.setattr(backends.load(name), "native_dtype", lambda: "bfloat16")
    command = dataclasses.asdict(backends.load(name).command(serve(name)))
    told = json.dumps(command, indent=1).replace(str(ROOT), "ROOT") + "\n"
    golden = GOLDEN / f"{name}.json"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(told)
        pytest.fail(f"{golden} was written: read it")

    assert told == golden.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_server_listens_on_loopback_at_its_port_and_takes_further_arguments(name: str) -> None:
    argv = backends.load(name).command(serve(name, port=8123, args=("--further", "x"))).argv

    assert argv[0] == "/env/bin/python"
    assert "127.0.0.1" in argv
    assert "0.0.0.0" not in argv
    assert "8123" in argv
    assert argv[-2:] == ["--further", "x"]


@pytest.mark.parametrize("name", NAMES)
def test_a_request_streams_and_asks_for_usage(name: str) -> None:
    path, body = backends.load(name).request(ask(), serve(name))

    assert path.startswith("/v1/")
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "Why?"}]
    assert body["max_tokens"] == 16
    assert body["temperature"] == 0
    assert body["model"]
    assert "ignore_eos" not in body
    json.dumps(body)


@pytest.mark.parametrize("name", NAMES)
def test_a_system_prompt_comes_first_and_only_if_there_is_one(name: str) -> None:
    _, body = backends.load(name).request(ask(system_prompt="Be kind."), serve(name))

    assert [message["role"] for message in body["messages"]] == ["system", "user"]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_said_before_comes_before_in_turn(name: str) -> None:
    _, body = backends.load(name).request(ask(earlier=("Hello.", "Hi!"), system_prompt="Be kind."), serve(name))

    assert [(message["role"], message["content"]) for message in body["messages"]] == [("system", "Be kind."), ("user", "Hello."), ("assistant", "Hi!"), ("user", "Why?")]


FORCED = {"llamacpp": {"ignore_eos": True}, "openvino": {"ignore_eos": True}, "vllm": {"ignore_eos": True, "min_tokens": 16}, "transformers": {}}


@pytest.mark.parametrize("name", NAMES)
def test_a_forced_length_is_asked_for_in_the_servers_own_words(name: str) -> None:
    adapter = backends.load(name)
    natural, forced = (adapter.request(ask(forced=forced), serve(name))[1] for forced in (False, True))

    assert forced == natural | FORCED[name]
    assert bool(FORCED[name]) == adapter.FORCES_LENGTH


def test_transformers_is_sent_no_field_that_it_rejects() -> None:
    _, body = backends.load("transformers").request(ask(forced=True), serve("transformers"))

    assert not {"ignore_eos", "seed"} & set(body)
    assert body["model"] == "/store/download/key/data/hf"


@pytest.mark.parametrize("name", NAMES)
def test_prefix_caching_is_off_unless_asked_for(name: str) -> None:
    adapter = backends.load(name)
    if "prefix_cache" not in {option.name for option in dataclasses.fields(adapter.Options)}:
        pytest.skip("has no prefix cache to switch")
    on = dataclasses.replace(serve(name), options=adapter.Options(prefix_cache=True))

    assert adapter.Options().prefix_cache is False
    assert adapter.command(serve(name)).argv != adapter.command(on).argv


def test_threads_of_vllm_are_bound_to_as_many_cores() -> None:
    assert backends.load("vllm").command(serve("vllm", threads=3)).env["VLLM_CPU_OMP_THREADS_BIND"] == "0-2"


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_code_of_the_model_is_run_only_when_trusted(name: str) -> None:
    adapter = backends.load(name)

    assert "--trust-remote-code" not in adapter.command(serve(name)).argv
    assert "--trust-remote-code" in adapter.command(serve(name, trust_remote_code=True)).argv
