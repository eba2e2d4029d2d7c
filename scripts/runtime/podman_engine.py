"""Run a server in a container of Podman, through its service that speaks Docker's API (`podman system service`)."""

from __future__ import annotations

import os
from functools import partial

from runtime import container

CONTAINED = True
OWN_NETWORK = True
SOCKET = (
    f"unix:///run/user/{os.getuid()}/podman/podman.sock"
    if os.getuid()
    else "unix:///run/podman/podman.sock"
)
ENGINE = container.Engine("podman", "CONTAINER_HOST", SOCKET, container.cdi_devices)

serve = partial(container.serve, ENGINE)
prepare = partial(container.prepare, ENGINE)
missing = partial(container.missing, ENGINE)
digest = partial(container.digest, ENGINE)
