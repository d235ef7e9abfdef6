"""The embedded Kafka broker for development: one KRaft node on this machine, from plain jars.

A broker lives in a folder: its data, `server.properties`, `broker.log` and the state file
`broker.json`. It runs in its own process session, so it outlives the process that started it and
a Ctrl-C in its terminal. It listens on the loopback address only and has no access control:
it is for development, never for production.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from embedstream.kafka.admin import is_answering
from embedstream.spark.jars import fetch_jars, find_jars_folder
from embedstream.spark.java import find_java
from embedstream_core.errors import SetupError

__all__ = ["MAX_MESSAGE_BYTES", "Broker", "find_running_broker", "start_broker", "stop_broker"]

MAX_MESSAGE_BYTES = 10 * 1024 * 1024
"""The largest record batch that the broker takes: Kafka's own 1 MiB is less than many photographs.
"""

_HOST = "127.0.0.1"
_STATE_FILE = "broker.json"
_LOG_FILE = "broker.log"
_PROPERTIES_FILE = "server.properties"
_SHOWN_LOG_LINES = 15
_POLL_S = 0.1
# A process's start is given by the system's clock, which may be corrected while it runs.
_CLOCK_DRIFT_S = 5.0

_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "message.max.bytes": str(MAX_MESSAGE_BYTES),
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # After a kill, the broker waits until its previous session expires; the default is 9 s.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "1000",
    # The default, 128 MiB, is a quarter of the heap.
    "log.cleaner.dedupe.buffer.size": str(4 * 1024 * 1024),
}


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that was started in `folder`; `started` is in seconds since 1970."""

    folder: Path
    port: int
    pid: int
    started: float

    @property
    def bootstrap_servers(self) -> str:
        """The address for Kafka clients: host:port."""
        return f"{_HOST}:{self.port}"

    @property
    def log_file(self) -> Path:
        """The file of the broker's warnings and errors."""
        return self.folder / _LOG_FILE


def start_broker(
    folder: Path,
    *,
    port: int = 0,
    properties: Mapping[str, str] | None = None,
    client_settings: Mapping[str, Any] | None = None,
    timeout_s: float = 60.0,
) -> Broker:
    """Start the broker of `folder` and return once it answers; return the running one if it runs.

    Port 0 takes the port of the last start where that is free, else any free one. `properties`
    override the defaults in `server.properties`. `client_settings` go to the kafka-python client
    that waits for the answer, for a broker whose `properties` require credentials.

    Raises:
        SetupError: the port is taken, the folder cannot be written, Java or the jars are missing,
            the broker ends at once, or it does not answer within `timeout_s`.
    """
    folder = folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            broker = find_running_broker(folder) or _launch(folder, port, properties or {})
            if port not in (0, broker.port):
                raise SetupError(
                    f"the broker of {folder} already runs on port {broker.port}, not {port}; "
                    "stop it first, or leave the port out"
                )
            deadline = time.monotonic() + timeout_s
            while not is_answering(broker.bootstrap_servers, client_settings=client_settings):
                if not _is_alive(broker):
                    raise SetupError(f"the Kafka broker ended at once; {_describe_log(folder)}")
                if time.monotonic() > deadline:
                    stop_broker(folder)
                    raise SetupError(
                        f"no answer from Kafka in {timeout_s:g} s; {_describe_log(folder)}"
                    )
                time.sleep(_POLL_S)
            return broker
    except OSError as error:
        raise SetupError(
            f"cannot use the broker folder {folder}: {error.strerror or error}; free some space "
            "or give a folder that can be written"
        ) from error


def stop_broker(folder: Path, *, timeout_s: float = 20.0) -> bool:
    """Stop the broker of `folder`, killing it after `timeout_s`; return whether one was running."""
    broker = find_running_broker(folder)
    if broker is None:
        return False
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(broker.pid)
        process.terminate()
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)
    return True


def find_running_broker(folder: Path) -> Broker | None:
    """Return the broker of `folder` if its process is alive; it may still be starting."""
    broker = _read_state(folder.resolve())
    return broker if broker is not None and _is_alive(broker) else None


def _read_state(folder: Path) -> Broker | None:
    """Return the broker that was started last, whether it runs or not."""
    try:
        return Broker(folder, **json.loads((folder / _STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _is_alive(broker: Broker) -> bool:
    # The system may have given the number to another process. The command line does not identify
    # the broker: it is empty until the process has loaded its program.
    try:
        process = psutil.Process(broker.pid)
        is_same = abs(process.create_time() - broker.started) < _CLOCK_DRIFT_S
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _find_free_port(wanted: int = 0) -> int:
    """Return the wanted port if it is free, else any free one."""
    with socket.socket() as probe:
        # As the broker does: a port that only lingers after a close is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted))
        except OSError:
            probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _launch(folder: Path, port: int, properties: Mapping[str, str]) -> Broker:
    """Start the broker's process, after formatting its storage on the first start."""
    last = _read_state(folder)
    chosen = _find_free_port(port or (last.port if last else 0))
    if port not in (0, chosen):
        raise SetupError(f"port {port} is in use; stop what listens there, or give another")
    server_properties = _write_properties(folder, chosen, properties)
    jars = fetch_jars(["broker"], find_jars_folder())
    java = [str(find_java()), "-Xmx512m", "-XX:+UseSerialGC", "-Dlog4j2.level=WARN", "-cp"]
    java.append(os.pathsep.join(map(str, jars)))
    with (folder / _LOG_FILE).open("ab") as log:
        run = partial(
            subprocess.Popen,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if not (folder / "data" / "meta.properties").exists():
            options = ["--cluster-id", uuid.uuid4().hex[:22], "--config", str(server_properties)]
            tool = [*java, "kafka.tools.StorageTool", "format", "--ignore-formatted", *options]
            if run(tool).wait():
                raise SetupError(f"Kafka cannot set up its folder; {_describe_log(folder)}")
        process = run([*java, "kafka.Kafka", str(server_properties)])
    # Otherwise Popen warns that it is left with a living child: this one is to outlive it.
    process.returncode = 0
    started = psutil.Process(process.pid).create_time()
    state = {"port": chosen, "pid": process.pid, "started": started}
    (folder / _STATE_FILE).write_text(json.dumps(state))
    return Broker(folder, chosen, process.pid, started)


def _write_properties(folder: Path, port: int, properties: Mapping[str, str]) -> Path:
    controller = f"{_HOST}:{_find_free_port()}"
    addresses = {
        "listeners": f"BROKER://{_HOST}:{port},CONTROLLER://{controller}",
        "controller.quorum.voters": f"1@{controller}",
        "log.dirs": str(folder / "data"),
    }
    settings = {**_PROPERTIES, **addresses, **properties}
    path = folder / _PROPERTIES_FILE
    # JSON's escapes are those of Java's properties files.
    lines = [f"{name}={json.dumps(value)[1:-1]}\n" for name, value in settings.items()]
    path.write_text("".join(lines), encoding="ascii")
    return path


def _describe_log(folder: Path) -> str:
    path = folder / _LOG_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    shown = [line for line in lines if line and not line.startswith("\tat ")][-_SHOWN_LOG_LINES:]
    return "\n".join([f"{path} ends with:", *shown])
