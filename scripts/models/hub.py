"""The Hugging Face Hub: what a revision means, which files are needed, their transfer, and their check.

Transfer, cache, login, mirrors (HF_ENDPOINT), offline mode (HF_HUB_OFFLINE) and proxies are huggingface_hub's own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub.constants as constants
from huggingface_hub import (
    HfApi,
    get_cached_repo_tree,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
    XetDownloadError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]

from pipeline.failure import Failure

log = logging.getLogger(__name__)
PROGRESS_S = 5.0
# Files at a time: the library's own default.
AT_ONCE = 8
PICKLED = (".bin", ".pth", ".pt", ".ckpt")
TOKENIZER = (
    "tokenizer",
    "vocab",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template",
    "spiece.model",
    "sentencepiece",
)
CONFIGURATION = (
    "config.json",
    "generation_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
)


@dataclass(frozen=True)
class Repository:
    """A repository at a commit; `kind` is 'model' or 'dataset'."""

    kind: str
    repo_id: str
    commit: str

    def __str__(self) -> str:
        return f"{'data set ' if self.kind == 'dataset' else ''}{self.repo_id} at {self.commit}"

    @property
    def blobs(self) -> Path:
        """Where the cache keeps the repository's bytes, each file under its hash."""
        return Path(
            constants.HF_HUB_CACHE,
            repo_folder_name(repo_id=self.repo_id, repo_type=self.kind),
            "blobs",
        )

    def cached(self, file: str) -> Path | None:
        found = try_to_load_from_cache(
            self.repo_id, file, revision=self.commit, repo_type=self.kind
        )
        return Path(found) if isinstance(found, str) else None


def page(kind: str, repo_id: str) -> str:
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def commit_of(kind: str, repo_id: str, revision: str) -> str:
    """The commit that a branch or tag names now; Failure `download_failed` where the hub does not say."""
    with explained(kind, repo_id, revision):
        return str(HfApi().resolve_revision(repo_id, repo_type=kind, revision=revision).resolved)


def model_files(
    names: Sequence[str], gguf: str | None, pickled: Sequence[str], remote_code: bool
) -> list[str]:
    """Of a model's files those that serving it needs: weights in one format, tokenizer, configuration, chat template.

    Folders are left out (original/, onnx/), and so are weights that stand there twice (consolidated, variants such as
    model.fp16). Failure `bad_model` where there are no weights but pickled ones, which run code as they are read,
    unless `pickled` names them.
    """
    missing = sorted({*pickled, *([gguf] if gguf else [])} - set(names))
    if missing:
        raise Failure(
            "bad_model",
            f"The repository has no file {', '.join(missing)}.",
            f"It has: {', '.join(sorted(names)[:20])}.",
        )
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if re.fullmatch(r"(?!consolidated)[\w-]+\.safetensors", name)]
    if not (weights or pickled or gguf):
        unsafe = sorted(name for name in names if name.endswith(PICKLED))
        raise Failure(
            "bad_model",
            f"The repository has no safetensors; it has {', '.join(unsafe[:4]) or 'no weights at all'}.",
            "Pickled weights run code of their author's when they are read. If you trust them, name them in `pickle_weights` of the model; better, use a revision with safetensors."
            if unsafe
            else "Name a repository of a model.",
        )
    sources = tuple(name for name in top if name.endswith(".py")) if remote_code else ()
    return sorted(
        {
            *(pickled if pickled else weights),
            *([gguf] if gguf else []),
            *tokenizer_files(names),
            *(name for name in top if name in CONFIGURATION),
            *(
                name
                for name in top
                if name.endswith(".index.json") and (".safetensors." in name or pickled)
            ),
            *sources,
        }
    )


def tokenizer_files(names: Sequence[str]) -> list[str]:
    """The files of a tokenizer and its chat template."""
    return [
        name
        for name in names
        if "/" not in name
        and (name.startswith(TOKENIZER) or name.endswith(".tiktoken"))
        and not name.endswith(PICKLED)
    ]


def fetch(
    repository: Repository, choose: Callable[[list[str]], list[str]]
) -> tuple[Path, list[dict[str, Any]]]:
    """Bring the files that `choose` picks into the hub's cache; gives the snapshot's folder and their inventory (pipeline.artifact.Manifest.files).

    Size and free disk are compared before the first byte, hashes after the last; a file whose bytes are not the hub's is
    fetched once more. What is cached already costs no request. Failure `download_failed`, `disk_full`, or what `choose` raises.
    """
    with explained(repository.kind, repository.repo_id, repository.commit):
        tree = cached_tree(repository) or online_tree(repository)
        files = choose([entry.path for entry in tree])
        missing = {name for name in files if not repository.cached(name)}
        if missing:
            wanted = [entry for entry in online_tree(repository) if entry.path in missing]
            room_for(repository, sum(entry.size for entry in wanted))
            with telling(repository, sum(entry.size for entry in wanted)), leaving_at_once():
                for entry in wanted:
                    resume(repository, entry)
                folder = snapshot(repository, files)
        else:
            folder = snapshot(repository, files)
        inventory, wrong = check(repository, folder, files)
        if wrong:
            log.warning(
                "%s: fetching again %s: other bytes than the hub's", repository, ", ".join(wrong)
            )
            for name in wrong:
                (folder / name).resolve().unlink(missing_ok=True)
                (folder / name).unlink(missing_ok=True)
            inventory, wrong = check(repository, snapshot(repository, files), files)
        if wrong:
            raise Failure(
                "download_failed",
                f"{repository}: {', '.join(wrong)} came twice with other bytes than the hub says.",
                "Something between here and the hub changes or cuts what it carries; try another network or HF_ENDPOINT.",
            )
        return folder, inventory


def cached_tree(repository: Repository) -> list[RepoFile]:
    """The listing that an earlier download left in the cache; empty if there is none."""
    try:
        return get_cached_repo_tree(
            repository.repo_id, repo_type=repository.kind, revision=repository.commit
        )
    except CachedRepoTreeNotFoundError:
        return []


def online_tree(repository: Repository) -> list[RepoFile]:
    entries = HfApi().list_repo_tree(
        repository.repo_id, recursive=True, revision=repository.commit, repo_type=repository.kind
    )
    return [entry for entry in entries if isinstance(entry, RepoFile)]


def snapshot(repository: Repository, files: Sequence[str]) -> Path:
    disable_progress_bars()
    return Path(
        snapshot_download(
            repository.repo_id,
            repo_type=repository.kind,
            revision=repository.commit,
            allow_patterns=[escape(name) for name in files],
            max_workers=AT_ONCE,
        )
    )


def room_for(repository: Repository, size: int) -> None:
    """Failure `disk_full` where the cache has no room for so many bytes."""
    place = repository.blobs
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise Failure(
            "disk_full",
            f"{repository} needs {size / 1e9:.2f} GB, and {constants.HF_HUB_CACHE} has {free / 1e9:.2f} GB free.",
            "Free space there, or set HF_HOME to a larger disk.",
        )
    log.info("%s: %.2f GB to fetch, %.2f GB free", repository, size / 1e9, free / 1e9)


def resume(repository: Repository, entry: RepoFile) -> None:
    """Go on with a file that a killed run left half-way.

    The library begins such a file anew. Its part is named after the file's hash and a random suffix; the largest is continued
    by the library's own ranged request, the others are dropped. Files in Xet storage are put together from chunks: no part to go on with.
    """
    target = repository.blobs / (entry.lfs.sha256 if entry.lfs else entry.blob_id)
    parts = sorted(
        repository.blobs.glob(f"{target.name}.*.incomplete"), key=lambda part: part.stat().st_size
    )
    if (
        parts
        and not target.exists()
        and not entry.xet_hash
        and 0 < parts[-1].stat().st_size < entry.size
    ):
        part = parts.pop()
        done = part.stat().st_size
        log.info(
            "%s: going on with %s at %.1f of %.1f MB",
            repository,
            entry.path,
            done / 1e6,
            entry.size / 1e6,
        )
        url = hf_hub_url(
            repository.repo_id, entry.path, repo_type=repository.kind, revision=repository.commit
        )
        with part.open("ab") as sink:
            http_get(
                url, sink, resume_size=done, headers=build_hf_headers(), expected_size=entry.size
            )
        part.rename(target)
    for part in parts:
        part.unlink()


def check(
    repository: Repository, folder: Path, files: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Inventory of the files, and the names of those whose bytes are not what the hub promised.

    The cache names a file's bytes by the hub's own hash of them: sha256 of what lies in LFS or Xet, git's sha1 of the rest.
    """
    inventory, wrong = [], []
    for name in files:
        path = folder / name
        promised = Path(os.readlink(path)).name if path.is_symlink() else ""
        sha256, size = hashlib.sha256(), path.stat().st_size
        sha1 = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as stream:
            while piece := stream.read(1 << 22):
                sha256.update(piece)
                if len(promised) == 40:
                    sha1.update(piece)
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", promised):
            log.warning(
                "%s: the hub gives no hash of %s; its size alone was checked", repository, name
            )
        elif promised != (sha1 if len(promised) == 40 else sha256).hexdigest():
            wrong.append(name)
        inventory.append({"path": name, "bytes": size, "sha256": sha256.hexdigest()})
    return inventory, wrong


@contextmanager
def telling(repository: Repository, total: int) -> Iterator[None]:
    """Say every few seconds how much has come and how fast, from the size of what lies in the cache."""
    before, started, over = on_disk(repository.blobs), time.monotonic(), threading.Event()

    def tell() -> None:
        came, passed = on_disk(repository.blobs) - before, time.monotonic() - started
        rate = came / passed
        left = f", {max(0, total - came) / rate:.0f} s left" if rate > 0 else ""
        log.info(
            "%s: %.1f of %.1f MB, %.1f MB/s%s",
            repository.repo_id,
            came / 1e6,
            total / 1e6,
            rate / 1e6,
            left,
        )

    def work() -> None:
        while not over.wait(PROGRESS_S):
            tell()

    thread = threading.Thread(target=work, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    tell()


def on_disk(folder: Path) -> int:
    """Bytes below a folder that others write to: files may go while it is read."""
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """End the process where a signal would otherwise wait for every transfer under way; what has come stays for the next run."""
    before = {
        number: signal.signal(number, lambda told, _: os._exit(128 + told))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def explained(kind: str, repo_id: str, revision: str) -> Iterator[None]:
    """Turn what the hub or the way to it says into a Failure that names the repository and what to do."""
    what = f"{'data set ' if kind == 'dataset' else ''}{repo_id} at {revision}"

    def failed(reason: str, remedy: str) -> Failure:
        return Failure("download_failed", f"{what}: {reason}", remedy)

    try:
        yield
    except GatedRepoError as error:
        raise failed(
            "access is gated.",
            f"Ask for access at {page(kind, repo_id)}, then set HF_TOKEN (or run `hf auth login`) with a token of the account that got it.",
        ) from error
    except RevisionNotFoundError as error:
        raise failed(
            "there is no such revision.",
            f"Look at {page(kind, repo_id)}/commits/main and correct `revision`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise failed(
            "there is no such repository, or it is private.",
            f"Correct `repo_id`; if it is private, ask for access at {page(kind, repo_id)} and set HF_TOKEN (or run `hf auth login`).",
        ) from error
    except (OfflineModeIsEnabled, RevisionResolutionError, LocalEntryNotFoundError) as error:
        offline = constants.is_offline_mode()
        reason = (
            "it is not whole in the cache, and HF_HUB_OFFLINE forbids to fetch it."
            if offline
            else f"the hub cannot be reached: {brief(error)}"
        )
        raise failed(
            reason,
            "Run once with a network."
            if offline
            else "See that the network is up, or set HF_ENDPOINT to a mirror.",
        ) from error
    except EntryNotFoundError as error:
        raise failed(brief(error), "Correct the name of the file.") from error
    except HfHubHTTPError as error:
        raise failed(*told_by_status(error, kind, repo_id)) from error
    except (httpx2.TransportError, XetDownloadError, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # this machine's own: a full disk, a folder that may not be written
            raise
        raise failed(
            f"{type(error).__name__}: {brief(error)}",
            "See that the network is up, or set HF_ENDPOINT to a mirror; what has come is kept.",
        ) from error


def told_by_status(error: HfHubHTTPError, kind: str, repo_id: str) -> tuple[str, str]:
    """Reason and remedy of an answer that is none of the hub's own kinds of refusal."""
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return (
            f"the hub refuses access ({status}).",
            f"Ask for access at {page(kind, repo_id)}, and see that HF_TOKEN (or `hf auth login`) holds a valid token that may read it.",
        )
    if status == 429:
        return (
            "the hub asks to slow down (429).",
            "Try again later; with HF_TOKEN set it allows more.",
        )
    if status >= 500:
        return f"the hub is in trouble ({status}).", "Try again later; what has come is kept."
    return f"the hub answered {status}: {brief(error)}", "See the log of this stage."


def brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
