"""Which GPUs are a job's own; no GPU is invented."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from host import gpus
from host.gpus import allocated, gpu_kind
from host.memory import free_memory
from pipeline.failure import Failure


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FAKE of NVML's answers."""
    monkeypatch.setattr(gpus, "gpu_handles", lambda: list(range(4)))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{'abcd'[handle]}{handle}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "NVIDIA H100")
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=80 << 30, used=0)
    )
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", lambda handle: (9, 0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "count", "uuids"),
    [
        (None, 2, ["GPU-a0", "GPU-b1"]),
        ("2", 1, ["GPU-c2"]),
        ("3,1", 2, ["GPU-d3", "GPU-b1"]),
        ("GPU-c2,0", 2, ["GPU-c2", "GPU-a0"]),
        ("GPU-d", 1, ["GPU-d3"]),
    ],
)
def test_gpus_are_those_of_the_allocation_in_its_order(
    four_gpus: None,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    count: int,
    uuids: list[str],
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert [gpu["uuid"] for gpu in allocated(count)] == uuids


@pytest.mark.parametrize(
    ("visible", "count", "words"),
    [
        (None, 5, "5 GPUs are asked for, and this host has 4"),
        ("1", 2, "CUDA_VISIBLE_DEVICES=1 leaves 1"),
        ("", 1, "leaves 0"),
    ],
)
def test_too_few_gpus_are_told_with_the_numbers(
    four_gpus: None, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, words: str
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    with pytest.raises(Failure, match=words) as caught:
        allocated(count)
    assert caught.value.kind == "no_gpu"


def test_a_host_without_gpus_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpu_handles", list)

    assert gpu_kind() is None
    with pytest.raises(Failure, match="this host has 0"):
        allocated(1)


def test_free_memory_is_the_hosts_or_the_groups_whichever_is_less(tmp_path: Path) -> None:
    host = free_memory(tmp_path)
    assert 0 < host <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert free_memory(tmp_path) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 600_000, "a group without a limit"
