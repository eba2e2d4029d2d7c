"""One suite over every backend there is: the files of scripts/backends."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import backends
import quantizers
from conftest import ROOT
from pipeline.artifact import Manifest
from pipeline.failure import Failure

NAMES = backends.names()
GOLDEN = Path(__file__).parent / "golden"


def serve(name: str, **changes: Any) -> backends.Serve:
    """Settings for this backend, on what it computes on first: with an engine if it builds one."""
    adapter = backends.load(name)
    options = changes.pop("options", adapter.Options())
    built = {"engine": "."} if adapter.builds(options) else {"gguf": "model.gguf", "hf": "hf"}
    engine = Manifest(
        "build",
        "key",
        {},
        "/store/build/key",
        "/store/build/key/data" if adapter.builds(options) else "/store/download/key/data",
        [],
        built,
    )
    settings = {
        "served_name": "m",
        "port": 8000,
        "context_length": 2048,
        "max_sequences": 8,
        "threads": 3,
        "seed": 7,
        "args": (),
    }
    settings |= {"device": "cpu" if "cpu" in adapter.DEVICES else "gpu"}
    return backends.Serve(
        engine=engine,
        python="/env/bin/python",
        options=options,
        programs=Path("/programs"),
        **(settings | changes),
    )


def ask(**changes: Any) -> backends.Ask:
    settings: dict[str, Any] = {
        "prompt": "Why?",
        "earlier": (),
        "system_prompt": None,
        "max_tokens": 16,
        "forced": False,
        "temperature": 0,
        "seed": 7,
    }
    return backends.Ask(**(settings | changes))


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_what_an_adapter_gives(name: str) -> None:
    adapter = backends.load(name)

    assert adapter.__doc__
    assert adapter.WEIGHTS
    assert {"hf", "gguf", "openvino"} >= set(adapter.WEIGHTS)
    assert not adapter.METHODS or adapter.builds(adapter.Options()), "it quantizes as it builds"
    assert not adapter.METHODS & set(quantizers.names()), (
        "what quantize makes is no method of a build"
    )
    assert adapter.READY.startswith("/")
    assert adapter.ENVIRONMENT is None or (ROOT / "envs" / f"{adapter.ENVIRONMENT}.txt").is_file()
    assert adapter.ENVIRONMENT or adapter.IMAGE or adapter.CONTAINER, "something to run it in"
    assert adapter.IMAGE is None or re.fullmatch(r"[\w.-]+(/[\w.-]+)+:[\w.-]+", adapter.IMAGE), (
        "a tag that stays, by name"
    )
    assert (
        adapter.CONTAINER is None
        or (ROOT / "containers" / adapter.CONTAINER / "Dockerfile").is_file()
    )
    assert {"cpu", "gpu"} >= adapter.DEVICES
    assert all(
        path.startswith("/")
        for path in (*adapter.INFO, *([adapter.METRICS] if adapter.METRICS else []))
    )
    assert adapter.realised("nothing of use", {}) == {}
    assert dataclasses.is_dataclass(adapter.Options)
    assert adapter.Options.__doc__
    assert all(
        type(value) in (bool, int, float, str)
        for value in dataclasses.asdict(adapter.Options()).values()
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "equal": {},
    "as_shipped": {"equal": False},
    "more": {
        "prefix_caching": True,
        "tensor_parallel": 2,
        "dtype": "float16",
        "trust_remote_code": True,
        "gpu_memory_share": 0.8,
        "args": ("--further", "x"),
    },
}
METHOD = {"mlc_llm": ("mlc", "q4f16_1"), "tensorrt_llm": ("modelopt", "int4_awq")}


def told(name: str) -> dict[str, Any]:
    """All commands of a backend for some settings: how it is served on each device, and how its engine is built."""
    adapter, found = backends.load(name), {}
    for device in sorted(adapter.DEVICES):
        for policy, changes in SETTINGS.items():
            found[f"serve, {device}, {policy}"] = dataclasses.asdict(
                adapter.command(serve(name, device=device, **changes))
            )
    if adapter.builds(adapter.Options()):
        weights = Manifest(
            "quantize",
            "key",
            {},
            "/store/quantize/key",
            "/weights",
            [],
            {"hf": ".", "gguf": "model.gguf", "gguf_type": "Q4_1"},
        )
        for method, kind in [("none", None), *([METHOD[name]] if name in METHOD else [])]:
            build = backends.Build(
                weights,
                Path("/engine"),
                "python3",
                method,
                kind,
                2048,
                8,
                "auto",
                2,
                adapter.Options(),
            )
            found[f"build, {method}"] = [
                dataclasses.asdict(command) for command in adapter.steps(build)
            ]
    return {name: str_paths(commands) for name, commands in found.items()}


def str_paths(commands: Any) -> Any:
    """The commands without this checkout's own folder in them."""
    return json.loads(json.dumps(commands).replace(str(ROOT / "scripts"), "/scripts"))


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_are_what_was_reviewed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`golden/<name>.json` holds the commands for some settings; delete it to have it written again, then read it."""
    if name == "vllm":
        monkeypatch.setattr(backends.load(name), "cpu_flags", lambda: {"avx512f", "avx512_bf16"})
    written = json.dumps(told(name), indent=1) + "\n"
    golden = GOLDEN / f"{name}.json"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(written)
        pytest.fail(f"{golden} was written: read it")

    assert written == golden.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_server_listens_on_loopback_at_its_port_and_takes_further_arguments(name: str) -> None:
    argv = backends.load(name).command(serve(name, port=8123, args=("--further", "x"))).argv

    assert argv[0] == ("/env/bin/python" if name != "tgi" else "--model-id"), (
        "its image's own entry point takes the arguments"
    )
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
    _, body = backends.load(name).request(
        ask(earlier=("Hello.", "Hi!"), system_prompt="Be kind."), serve(name)
    )

    assert [(message["role"], message["content"]) for message in body["messages"]] == [
        ("system", "Be kind."),
        ("user", "Hello."),
        ("assistant", "Hi!"),
        ("user", "Why?"),
    ]


FORCED: dict[str, dict[str, Any]] = {
    "llamacpp": {"ignore_eos": True},
    "openvino": {"ignore_eos": True},
    "vllm": {"ignore_eos": True, "min_tokens": 16},
    "sglang": {"ignore_eos": True, "min_tokens": 16},
    "tensorrt_llm": {"ignore_eos": True, "min_tokens": 16},
    "lmdeploy": {"ignore_eos": True, "min_new_tokens": 16},
    "mlc_llm": {"debug_config": {"ignore_eos": True}},
    "transformers": {},
    "tgi": {},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_forced_length_is_asked_for_in_the_servers_own_words(name: str) -> None:
    adapter = backends.load(name)
    natural, forced = (
        adapter.request(ask(forced=forced), serve(name))[1] for forced in (False, True)
    )

    assert forced == natural | FORCED[name]
    assert bool(FORCED[name]) == adapter.FORCES_LENGTH


def test_transformers_is_sent_no_field_that_it_rejects() -> None:
    _, body = backends.load("transformers").request(ask(forced=True), serve("transformers"))

    assert not {"ignore_eos", "seed"} & set(body)
    assert body["model"] == "/store/download/key/data/hf"


@pytest.mark.parametrize("name", NAMES)
def test_prefix_caching_is_off_unless_asked_for(name: str) -> None:
    if name == "transformers":
        pytest.skip("has no prefix cache to switch")
    adapter = backends.load(name)

    assert adapter.command(serve(name)) != adapter.command(serve(name, prefix_caching=True))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"transformers"}))
def test_sequences_are_set_under_the_equal_policy(name: str) -> None:
    adapter = backends.load(name)
    words = [
        " ".join(adapter.command(serve(name, max_sequences=77, equal=equal)).argv)
        for equal in (True, False)
    ]

    assert "77" in words[0]
    assert "77" not in words[1] or {"cpu"} == adapter.DEVICES, "as shipped, the backend chooses"


def test_threads_of_vllm_are_bound_to_as_many_cores() -> None:
    assert (
        backends.load("vllm").command(serve("vllm", threads=3)).env["VLLM_CPU_OMP_THREADS_BIND"]
        == "0-2"
    )


@pytest.mark.parametrize("name", ["vllm", "transformers", "lmdeploy", "sglang", "tgi"])
def test_code_of_the_model_is_run_only_when_trusted(name: str) -> None:
    adapter = backends.load(name)

    assert "--trust-remote-code" not in adapter.command(serve(name)).argv
    assert "--trust-remote-code" in adapter.command(serve(name, trust_remote_code=True)).argv


# What servers said of themselves: logs/vllm.log and logs/lmdeploy.log are from the run in experiments/random-8b-gpu; the answers
# of the others are as their released sources write them (sglang 0.5.23 http_server.py, TGI 3.3.7 router/src/lib.rs, llama.cpp).
REALISED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vllm": (
        {"/version": {"version": "0.26.0"}},
        {
            "version": "0.26.0",
            "dtype": "bfloat16",
            "prefix_caching": False,
            "context_length": 4096,
            "max_sequences": 64,
            "kv_cache_tokens": 452208,
            "kernel": "FLASH_ATTN",
        },
    ),
    "lmdeploy": (
        {},
        {"dtype": "bfloat16", "max_sequences": 64, "context_length": 4096, "prefix_caching": False},
    ),
    "sglang": (
        {
            "/server_info": {
                "version": "0.5.23",
                "dtype": "auto",
                "max_running_requests": 64,
                "disable_radix_cache": True,
                "max_total_num_tokens": 9000,
                "attention_backend": "fa3",
            }
        },
        {
            "version": "0.5.23",
            "dtype": "auto",
            "max_sequences": 64,
            "prefix_caching": False,
            "kv_cache_tokens": 9000,
            "kernel": "fa3",
        },
    ),
    "tgi": (
        {
            "/info": {
                "version": "3.3.7",
                "model_dtype": "float16",
                "max_concurrent_requests": 64,
                "max_total_tokens": 4096,
            }
        },
        {"version": "3.3.7", "dtype": "float16", "max_sequences": 64, "context_length": 4096},
    ),
    "llamacpp": (
        {"/props": {"total_slots": 8, "default_generation_settings": {"n_ctx": 2048}}},
        {"max_sequences": 8, "context_length": 2048},
    ),
}


@pytest.mark.parametrize("name", REALISED)
def test_what_a_server_says_of_itself_is_read(name: str) -> None:
    info, found = REALISED[name]
    log = Path(__file__).parent / "logs" / f"{name}.log"

    assert backends.load(name).realised(log.read_text() if log.exists() else "", info) == found


IDS = [504, 31936, 288]
# What each server answers where it is asked for the probabilities of these ids: vLLM 0.32's CPU build, our front end of OpenVINO GenAI
# 2026.4.1 and llama.cpp (xllamacpp 2026.10.11549), as recorded; SGLang writes what OpenAI's reference says.
ECHOED = {
    "choices": [
        {
            "logprobs": {
                "token_logprobs": [None, -14.907350540161133, -3.6335668563842773, -1.84],
                "top_logprobs": [None, {}, {}, {}],
            }
        }
    ]
}
TOLD: dict[str, list[dict[str, Any]]] = {
    "vllm": [ECHOED],
    "sglang": [ECHOED],
    "openvino": [ECHOED],
    "llamacpp": [
        {
            "completion_probabilities": [
                {
                    "id": 31936,
                    "logprob": -14.907350540161133,
                    "top_logprobs": [{"id": 2618, "logprob": -2.39}],
                }
            ]
        },
        {
            "completion_probabilities": [
                {"id": 288, "logprob": -3.6335668563842773, "top_logprobs": []}
            ]
        },
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_likelihood_of_a_text_is_asked_for_and_read(name: str) -> None:
    how = backends.load(name).LIKELIHOOD
    assert (how is not None) == (name in TOLD)
    if how is None:
        return
    asked = how.ask(IDS, serve(name))

    assert len(asked) == len(TOLD[name])
    assert [path for path, _ in asked] == (
        ["/completion"] * 2 if name == "llamacpp" else ["/v1/completions"]
    )
    assert [body["prompt"] for _, body in asked] == (
        [IDS[:1], IDS[:2]] if name == "llamacpp" else [IDS]
    )
    assert how.read(IDS, TOLD[name]) == [-14.907350540161133, -3.6335668563842773]


def test_llamacpp_is_not_believed_where_it_went_another_way() -> None:
    how = backends.load("llamacpp").LIKELIHOOD
    assert how

    with pytest.raises(ValueError, match="other tokens"):
        how.read([504, 1, 288], TOLD["llamacpp"])


def test_openvino_reads_a_gguf_with_float_minima_in_sixteen_bits_and_others_as_they_are() -> None:
    adapter = backends.load("openvino")

    def steps(**facts: str) -> list[backends.Command]:
        weights = Manifest("quantize", "k", {}, "/w", "/w", [], facts)
        return adapter.steps(
            backends.Build(
                weights,
                Path("/engine"),
                "python3",
                "none",
                None,
                2048,
                8,
                "auto",
                1,
                adapter.Options(),
            )
        )

    assert [command.argv[-2:] for command in steps(gguf="m.gguf", gguf_type="Q4_1")] == [
        ["/engine/model.gguf", "F16"]
    ]
    assert steps(gguf="m.gguf", gguf_type="Q8_0") == []
    assert steps(openvino=".", gguf="m.gguf", gguf_type="Q4_1") == []


@pytest.mark.parametrize(
    ("layout", "flags", "dtype"),
    [
        (None, {"avx2"}, "float32"),
        (None, {"avx512f"}, "float32"),
        (None, {"avx512f", "avx512_bf16"}, "bfloat16"),
        ("awq", {"avx512f"}, "bfloat16"),
        ("fp8", {"avx2"}, "float32"),
    ],
)
def test_vllm_computes_in_a_type_that_the_cpu_and_the_weights_have(
    monkeypatch: pytest.MonkeyPatch, layout: str | None, flags: set[str], dtype: str
) -> None:
    adapter = backends.load("vllm")
    monkeypatch.setattr(adapter, "cpu_flags", lambda: flags)
    facts = {"hf": "hf"} | ({"layout": layout} if layout else {})
    engine = Manifest("build", "k", {}, "/e", "/e", [], facts)
    argv = adapter.command(dataclasses.replace(serve("vllm"), engine=engine)).argv

    assert argv[argv.index("--dtype") + 1] == dtype


@pytest.mark.parametrize("layout", ["awq", "compressed-tensors"])
def test_vllm_refuses_four_bits_on_a_cpu_that_cannot_multiply_them(
    monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    adapter = backends.load("vllm")
    monkeypatch.setattr(adapter, "cpu_flags", lambda: {"avx2"})
    engine = Manifest("build", "k", {}, "/e", "/e", [], {"hf": "hf", "layout": layout})

    with pytest.raises(Failure, match=f"layout {layout}.*AVX-512") as refused:
        adapter.command(dataclasses.replace(serve("vllm"), engine=engine))
    assert refused.value.kind == "unsupported"
