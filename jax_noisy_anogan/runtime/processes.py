"""Several processes of one run: started, tied together, agreeing, and lost."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.errors import UserError

# A process that is silent for so long counts as dead. Compiling and reading do not stop the beat.
HEARTBEAT_SECONDS = 60
# Processes that are done wait for the first one, which still draws and writes.
SHUTDOWN_SECONDS = 24 * 3600


class LostProcessError(UserError, RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


def start_processes(
    *,
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    detect: bool = False,
    on_lost: Callable[[LostProcessError], None] | None = None,
) -> None:
    """Join the other processes of a run; before any other use of JAX.

    Without arguments, `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` of the
    environment are used, and where they are not set either, the process stays alone.

    Args:
      coordinator: HOST:PORT of the first process.
      detect: find out everything from SLURM, a TPU pod, Kubernetes or Open MPI.
      on_lost: called in a thread when another process has died; has to end this one, whose next
        exchange would never return.

    Raises:
      ConfigError: an argument is missing or wrong, or the others cannot be reached.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    process_count = _from_environment(process_count, "JAX_NUM_PROCESSES")
    process_index = _from_environment(process_index, "JAX_PROCESS_ID")
    given = (coordinator, process_count, process_index)
    if not detect:
        if given == (None, None, None):
            return
        if coordinator is None or process_count is None or process_index is None:
            raise ConfigError(
                "--coordinator, --process_count and --process_index belong together: give all "
                "three, or --distributed to detect them"
            )
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise ConfigError(f"--coordinator={coordinator}: expected HOST:PORT")
        if not 0 <= process_index < process_count:
            raise ConfigError(
                f"--process_index={process_index}: expected 0 to {process_count - 1}, below "
                "--process_count"
            )
    try:
        jax.distributed.initialize(
            *given,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    # JAX's own errors and gRPC's are of many kinds.
    except Exception as error:
        raise ConfigError(
            f"the processes of the run cannot be joined ({_first_line(error)}): start as many as "
            "--process_count says, all with the same --coordinator"
        ) from error
    if on_lost is not None and jax.process_count() > 1:
        host = coordinator.rpartition(":")[0] if coordinator else socket.gethostname()
        _tie_together(host.strip("[]"), on_lost)


def _tie_together(host: str, on_lost: Callable[[LostProcessError], None]) -> None:
    """Hold a connection to the first process, which the system closes when either end dies.

    Collectives of CPUs (gloo) do not notice a dead peer, and JAX itself aborts without a message of
    ours after `HEARTBEAT_SECONDS`; that remains for lost hosts and where no connection is possible.
    """
    first, others = jax.process_index() == 0, jax.process_count() - 1
    listener, told = None, b""
    if first:
        listener = socket.create_server(("", 0), backlog=others)
        listener.settimeout(HEARTBEAT_SECONDS)
        # The token keeps strangers' connections, which may end at any time, out.
        told = f"{secrets.token_hex(8)} {listener.getsockname()[1]} {host}".encode()
    line = np.zeros(512, np.int32)
    line[: len(told)] = list(told)
    told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(line)).tolist()).rstrip(b"\0")
    token, port, host = told.decode().split(" ")
    held: list[socket.socket] = []
    try:
        if listener is None:
            held.append(socket.create_connection((host, int(port)), timeout=HEARTBEAT_SECONDS))
            held[0].sendall(token.encode())
        while listener is not None and len(held) < others:
            connection, _ = listener.accept()
            connection.settimeout(HEARTBEAT_SECONDS)
            if connection.recv(len(token), socket.MSG_WAITALL) == token.encode():
                held.append(connection)
    except OSError:
        pass  # the heartbeat remains

    def wait_for_end(connection: socket.socket) -> None:
        try:
            orderly = connection.recv(1) == b"."
        except OSError:
            orderly = False
        if not orderly:
            on_lost(lost_process(ConnectionError("its connection is closed")))

    def say_goodbye() -> None:
        for connection in held:
            try:
                connection.sendall(b".")
            except OSError:
                continue

    for connection in held:
        connection.settimeout(None)
        threading.Thread(target=wait_for_end, args=(connection,), daemon=True).start()
    atexit.register(say_goodbye)


def _from_environment(value: int | None, name: str) -> int | None:
    text = os.environ.get(name)
    if value is not None or text is None:
        return value
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text} in the environment: expected a whole number") from error


def any_process(flag: bool) -> bool:
    """Whether `flag` holds in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    try:
        return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))
    except jax.errors.JaxRuntimeError as error:
        raise lost_process(error) from error


def on_first_process(action: Callable[[], object]) -> None:
    """Run `action` in the first process while the others wait for its end.

    Raises:
      LostProcessError: in every other process, if `action` raised in the first one, where its own
        error goes on.
    """
    error = None
    if jax.process_index() == 0:
        try:
            action()
        except Exception as raised:
            error = raised
    failed = any_process(error is not None)
    if error is not None:
        raise error
    if failed:
        raise LostProcessError("stopped, because the first process did: its message says why")


def lost_process(error: Exception) -> LostProcessError:
    """What a failed exchange between processes means."""
    return LostProcessError(
        f"another process of this run has ended or cannot be reached ({_first_line(error)}): stop "
        "the others and start all again with the same command, which goes on where it stopped"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
