"""Ray, started on this machine for as long as it is needed, or a cluster that is there already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ncp_rl.errors import NCPError

#: Trainings take little memory for objects of Ray.
_OBJECT_STORE_BYTES = 100 * 2**20
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # The other output is silent where it is told to be.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # The run folders have the curves.
    "RAY_worker_niceness": "0",  # Workers have the priority of the driver, not the lowest.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # module:id is found in the current folder.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class ClusterError(NCPError):
    """Ray cannot be started or reached; the message says where, and why."""


@contextmanager
def ray_running(address: str | None, num_cpus: int | None) -> Iterator[None]:
    """Ray, started for the context or connected to; one that the process has started already is used and left running.

    Args:
        address: Address of a Ray cluster; None starts Ray on this machine.
        num_cpus: Processes with a CPU each that may run at a time, where Ray is started here; as many as there are CPUs
            where None.

    Raises:
        ClusterError: Ray cannot be started, or the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    before = dict(os.environ)
    os.environ.update({name: value for name, value in _RAY.items() if name not in os.environ})
    local: dict[str, Any] = dict(num_cpus=num_cpus, object_store_memory=_OBJECT_STORE_BYTES, include_dashboard=False)
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if address else local),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
