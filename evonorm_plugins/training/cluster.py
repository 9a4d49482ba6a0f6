"""Ray on this machine, or a cluster's. Ray is imported when it is started."""

import logging
import os
import socket
import threading

from evonorm_plugins.errors import RayError, say_error

# Megabytes: our tasks exchange numbers, not tensors. Ray's own choice is a third of the memory.
_OBJECT_STORE = 80
_START_SECONDS = 120


def connect(address, *, unit, cpus, gpus=0, on_hang=None):
    """Start Ray on this machine, or connect to a cluster's at ``address``; returns the module.

    Args:
        address: ``HOST:PORT``, ``auto`` on one of a cluster's machines, or None.
        on_hang: called with a message, from another thread, where Ray has not started, or not
            answered, after two minutes. This thread then waits inside of Ray, where no exception
            reaches it: a command gives :func:`end_process`. None: a warning, and it waits on.
        unit: what ``cpus`` and ``gpus`` are for, in error messages: "trial", "worker".

    Raises:
        RayError: Ray is not installed, cannot start, does not answer, or this machine has not what
            one unit asks for.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would send reports
    try:
        import ray
    except ImportError as error:
        raise RayError(f'this needs Ray ({error}): pip install "ray[tune]"') from None
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": _OBJECT_STORE * 2**20}
        if ray.is_initialized():
            raise RayError("Ray runs in this process already")
    else:
        options["address"] = address
        _check_address(address)
    # Ray starts its processes from here, not from a thread: they end with the thread they are from.
    timer = threading.Timer(_START_SECONDS, on_hang or _warn, [_hanging(address)])
    timer.daemon = True
    timer.start()
    try:
        ray.init(**options)
    except Exception as error:
        where = "start" if address is None else f"connect to {address}"
        raise RayError(f"Ray cannot {where}: {' '.join(str(error).split())}") from error
    finally:
        timer.cancel()
    if address is None:
        _check_resources(ray, unit, {"CPU": cpus, "GPU": gpus})
    return ray


def _check_address(address):
    """A cluster that is not there, found out in seconds instead of minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if address.startswith("ray://") or not (colon and host and port.isdigit()):
        raise RayError(
            f"address={address!r} must be HOST:PORT of a Ray cluster's head (port 6379 unless told "
            "otherwise), or auto on one of its machines"
        )
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RayError(f"no Ray cluster answers at {address}: {error}") from None


def _check_resources(ray, unit, wanted):
    # A unit that asks for more than there is would wait for ever.
    there = ray.cluster_resources()
    for kind, number in wanted.items():
        if number > there.get(kind, 0):
            ray.shutdown()
            key = f"{kind.lower()}s_per_{unit}"
            raise RayError(f"{key}={number:g}, and this machine has {there.get(kind, 0):g}")


def _hanging(address):
    what = "started" if address is None else f"answered at {address}"
    return (
        f"Ray has not {what} within {_START_SECONDS} s; its logs are in "
        "/tmp/ray/session_latest/logs"
    )


def _warn(message):
    logging.getLogger(__name__).warning(message)


def end_process(message):
    """End a command whose main thread can be reached no more: ``on_hang`` of :func:`connect`."""
    say_error(message)
    os._exit(1)
