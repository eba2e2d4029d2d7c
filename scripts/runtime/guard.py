"""Remove a container, and its network of the same name, when standard input ends without a word.

usage: guard.py ENGINE_ADDRESS NAME GRACE_SECONDS
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read():
        return
    import docker
    from docker.errors import DockerException

    address, name, grace_s = sys.argv[1:]
    client = docker.DockerClient(base_url=address, version="1.41")
    with suppress(DockerException):
        client.containers.get(name).stop(timeout=int(grace_s))
    with suppress(DockerException):
        client.containers.get(name).remove(force=True, v=True)
    with suppress(DockerException):
        client.networks.get(name).remove()


if __name__ == "__main__":
    main()
