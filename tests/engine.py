"""A Docker engine of the tests' own, started by hand, and a base image made of this machine's own Python: no registry, no download."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import docker

BASE = "showdown-tests/python:1"
LINKS = {
    "bin": "usr/bin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "sbin": "usr/sbin",
    "usr/bin/sh": "dash",
}
FOLDERS = (
    "tmp",
    "proc",
    "sys",
    "dev",
    "root",
    "run",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/sbin",
    "etc",
    "var",
    "var/tmp",
)
# What compiled packages expect of a system, beside the C library.
EXPECTED = (
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libgomp.so.1",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
)
PROGRAMS = ("/usr/bin/dash", "/usr/bin/env", "/usr/bin/sleep", "/usr/bin/cat")
# A FAKE of NVIDIA's hook, by whose presence the engine takes requests for GPUs; and runc without limits that this machine may not raise.
PROGRAMS_BESIDE = {
    "nvidia-container-runtime-hook": "#!/bin/sh\ncat >/dev/null\n",
    "runc-bare": f"""#!{sys.executable}
import json, os, sys
if "--bundle" in sys.argv:
    path = os.path.join(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
    config = json.load(open(path))
    config["process"].pop("rlimits", None)
    json.dump(config, open(path, "w"))
os.execv("/usr/sbin/runc", ["runc", *sys.argv[1:]])
""",
}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def why_not() -> str | None:
    """Why no engine can be started here."""
    if os.getuid() != 0:
        return "not root: no Docker engine is started, and NO CONTAINER WAS RUN"
    if not shutil.which("dockerd"):
        return "no dockerd (apt install docker.io iptables): NO CONTAINER WAS RUN"
    return None


@contextmanager
def running() -> Iterator[str]:
    """An engine with folders of its own; gives its address."""
    # A socket's path may have 107 bytes, fewer than a test's own folder takes.
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    address = f"unix://{folder}/docker.sock"
    (folder / "config.json").write_text("{}")
    (folder / "bin").mkdir()
    for name, text in PROGRAMS_BESIDE.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    places = [
        f"--add-runtime=bare={folder}/bin/runc-bare",
        "--default-runtime=bare",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/pid",
        f"--config-file={folder}/config.json",
    ]
    with (folder / "log").open("wb") as sink:
        daemon = subprocess.Popen(
            ["dockerd", f"--host={address}", *places, "--ip-forward=false", "--ip-masq=false"],
            stdout=sink,
            stderr=sink,
            env=os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"},
        )
    try:
        for _ in range(300):
            # The library leaves a socket open that could not connect, so it is not asked before somebody listens.
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(f"{folder}/docker.sock")
                break
            assert daemon.poll() is None, (folder / "log").read_text()[-3000:]
            time.sleep(0.1)
        yield address
    finally:
        daemon.terminate()
        daemon.wait(60)
        for mount in [
            line.split()[1]
            for line in Path("/proc/mounts").read_text().splitlines()
            if str(folder) in line
        ]:
            subprocess.run(["umount", mount])
        shutil.rmtree(folder, ignore_errors=True)


def libraries(path: Path) -> list[str]:
    """Shared libraries that a program or library loads."""
    return re.findall(
        r"(/\S+\.so\S*)", subprocess.run(["ldd", str(path)], capture_output=True, text=True).stdout
    )


def python_image(address: str) -> str:
    """Import the base image: this interpreter with its standard library and pip, a shell, the certificates."""
    python, stdlib = Path(os.path.realpath(sys.executable)), Path(sysconfig.get_paths()["stdlib"])
    pip = Path(
        sys.prefix,
        "lib",
        f"python{sys.version_info[0]}.{sys.version_info[1]}",
        "site-packages",
        "pip",
    )
    left_out = {
        "__pycache__",
        "test",
        "tests",
        "site-packages",
        "dist-packages",
        "idlelib",
        "tkinter",
        "ensurepip",
    }
    files = {
        path: str(path)
        for path in stdlib.rglob("*")
        if path.is_file() and not left_out & set(path.relative_to(stdlib).parts)
    }
    files |= {
        path: f"/opt/pip/pip/{path.relative_to(pip)}"
        for path in pip.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    programs = [python, *map(Path, PROGRAMS), *(path for path in files if path.suffix == ".so")]
    cache = dict(
        re.findall(
            r"^\s+(\S+) .*x86-64.* => (\S+)$",
            subprocess.check_output(["ldconfig", "-p"], text=True),
            re.MULTILINE,
        )
    )
    wanted = {library for program in programs for library in libraries(program)} | {
        cache[name] for name in EXPECTED if name in cache
    }
    wanted |= {
        library for name in EXPECTED if name in cache for library in libraries(Path(cache[name]))
    }
    files |= {Path(path): path for path in (*wanted, CERTIFICATES, *PROGRAMS, str(python))}
    linked = LINKS | {f"usr/bin/{name}": str(python) for name in ("python3", "python")}
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", dereference=True) as archive:
            for name in FOLDERS:
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
                archive.addfile(entry)
            for name, target in linked.items():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                archive.addfile(entry)
            done = set()
            for path, target in files.items():
                # On the host /lib is a link to /usr/lib: a file goes where it really lies.
                inside = os.path.join(
                    os.path.realpath(os.path.dirname(target)), os.path.basename(target)
                ).lstrip("/")
                if target.startswith("/lib64/"):
                    inside = f"usr/lib64/{os.path.basename(target)}"
                if inside not in done and path.exists():
                    done.add(inside)
                    archive.add(path, arcname=inside, recursive=False)
        # A changed standard library's home is found from the program's own path; pip comes from beside it.
        changes = [
            "ENV PYTHONPATH=/opt/pip",
            "ENV PYTHONUNBUFFERED=1",
            f"ENV PYTHONHOME={sys.base_prefix}",
            "ENV PATH=/usr/bin",
        ]
        with closing(docker.DockerClient(base_url=address, version="1.41")) as client:
            client.api.import_image_from_data(
                buffer.getvalue(),
                repository=BASE.split(":")[0],
                tag=BASE.split(":")[1],
                changes=changes,
            )
    return BASE
