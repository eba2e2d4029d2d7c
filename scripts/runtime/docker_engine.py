"""Run a server in a container of the Docker engine that DOCKER_HOST names, or the system's."""

from __future__ import annotations

from functools import partial

from runtime import container

CONTAINED = True
OWN_NETWORK = True
ENGINE = container.Engine(
    "docker", "DOCKER_HOST", "unix:///var/run/docker.sock", container.device_requests
)

serve = partial(container.serve, ENGINE)
prepare = partial(container.prepare, ENGINE)
missing = partial(container.missing, ENGINE)
digest = partial(container.digest, ENGINE)
