"""The embedded Kafka broker for development: one KRaft node on this machine, from plain jars.

A broker lives in a folder: its data, `server.properties`, `broker.log` and the state file
`broker.json`. It runs in a session of its own, so it outlives the process that started it and
a Ctrl-C in its terminal. It listens on the loopback address only and has no access control:
it is for development, never for production.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from embedstream.spark.jars import default_jars_folder, fetch_jars
from embedstream.spark.java import find_java
from embedstream_core.errors import SetupError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Broker",
    "create_topic",
    "running_broker",
    "start_broker",
    "stop_broker",
    "topic_end_offsets",
]

MAX_MESSAGE_BYTES = 10 * 1024 * 1024
"""What the broker takes in one record batch: Kafka's own 1 MiB is less than many photographs."""

_HOST = "127.0.0.1"
_LOG_LINES_TOLD = 15
_POLL_S = 0.1
# A start time is told on the system's clock, which may be set right while the broker runs.
_CLOCK_DRIFT_S = 5.0
_CONNECT_TIMEOUT_S = 5.0
_CLIENT_TIMEOUT_MS = 10_000

# They are given elsewhere, or a promise hangs on them.
_OWN_SETTINGS = {"acks", "bootstrap_servers"}

_WAY_OUT = "check the address, or start a broker with `embedstream broker start`"
_CLIENT_WAY_OUT = (
    "check the address and the client settings, such as security_protocol, ssl_cafile, "
    "sasl_mechanism and sasl_plain_password"
)

_LOGGING = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c{1} %m%n
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
"""

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
    # After a kill the broker waits this long for its former self; the default is 9 s.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "1000",
    # Its default, 128 MiB, is a quarter of the heap.
    "log.cleaner.dedupe.buffer.size": str(4 * 1024 * 1024),
}


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that was started in `folder`.

    `started_at` is the process's start time, in seconds since the epoch: together with `pid` it
    names one process, even after the system has used the number again.
    """

    folder: Path
    port: int
    pid: int
    started_at: float

    @property
    def bootstrap_servers(self) -> str:
        """What Kafka clients connect to: host:port."""
        return f"{_HOST}:{self.port}"

    @property
    def log_file(self) -> Path:
        """Where the broker writes its warnings and errors."""
        return _log_file(self.folder)


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
    are set over the defaults in `server.properties`. `client_settings` go to the kafka-python
    client that waits for the answer, for a broker whose `properties` ask for credentials.

    Raises SetupError when the port is taken, the folder cannot be written, Java or the jars are
    missing, the broker ends at once, or it does not answer within `timeout_s`.
    """
    folder = folder.absolute()
    try:
        with _locked(folder):
            running = running_broker(folder)
            broker = (
                _same_port(running, port)
                if running is not None
                else _launch(folder, _choose_port(folder, port), properties or {})
            )
            _wait_until_answering(broker, client_settings or {}, timeout_s)
            return broker
    except OSError as error:
        raise SetupError(
            f"cannot use the broker folder {folder}: {error.strerror or error}; free some space "
            "or give a folder that can be written"
        ) from error


def stop_broker(folder: Path, *, timeout_s: float = 20.0) -> bool:
    """Stop the broker of `folder`, killing it after `timeout_s`; False when none was running."""
    broker = running_broker(folder)
    if broker is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(broker.pid)
        process.terminate()
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)
    return True


def running_broker(folder: Path) -> Broker | None:
    """The broker of `folder`, if its process is alive; it may still be starting."""
    broker = _last_broker(folder.absolute())
    return broker if broker is not None and _alive(broker) else None


def create_topic(
    bootstrap_servers: str,
    topic: str,
    *,
    partitions: int,
    client_settings: Mapping[str, Any] | None = None,
) -> None:
    """Create `topic`; an existing one stays as it is. Replication is the broker's default.

    Raises SetupError when no broker answers, or it refuses the topic.
    """
    from kafka.admin import NewTopic
    from kafka.errors import TopicAlreadyExistsError

    with (
        _admin(bootstrap_servers, client_settings or {}) as admin,
        contextlib.suppress(TopicAlreadyExistsError),
    ):
        admin.create_topics([NewTopic(topic, partitions, -1)], wait_for_metadata=True)


def topic_end_offsets(
    bootstrap_servers: str, topic: str, *, client_settings: Mapping[str, Any] | None = None
) -> dict[int, int]:
    """The offset that the next message of each partition gets: {partition: offset}.

    Raises SetupError when no broker answers or the topic does not exist.
    """
    from kafka import OffsetSpec, TopicPartition

    with _admin(bootstrap_servers, client_settings or {}) as admin:
        if topic not in admin.list_topics():
            raise SetupError(f"no topic {topic!r} at {bootstrap_servers}; create it first")
        (described,) = admin.describe_topics([topic])
        wanted = {
            TopicPartition(topic, partition["partition_index"]): OffsetSpec.LATEST
            for partition in described["partitions"]
        }
        found = admin.list_partition_offsets(wanted)
    return {partition.partition: int(found[partition].offset) for partition in sorted(found)}


@contextlib.contextmanager
def _admin(bootstrap_servers: str, settings: Mapping[str, Any]) -> Iterator[Any]:
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError

    servers = [server for server in bootstrap_servers.split(",") if _accepts(server)]
    if not servers:
        raise SetupError(f"nothing listens at {bootstrap_servers}; {_WAY_OUT}")
    timeouts = {"bootstrap_timeout_ms": _CLIENT_TIMEOUT_MS, "request_timeout_ms": 30_000}
    chosen = {**timeouts, **_admin_settings(settings)}
    try:
        admin = KafkaAdminClient(bootstrap_servers=servers, **chosen)
        with contextlib.closing(admin):
            yield admin
    except KafkaError as error:
        raise SetupError(
            f"Kafka at {bootstrap_servers} does not answer as asked: {error}; {_CLIENT_WAY_OUT}"
        ) from error


def _admin_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those of producers only, which the admin client would refuse."""
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient

    known = KafkaProducer.DEFAULT_CONFIG.keys() - _OWN_SETTINGS
    if unknown := sorted(settings.keys() - known):
        raise SetupError(
            f"no client setting that can be given: {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known))}"
        )
    return {name: settings[name] for name in settings.keys() & KafkaAdminClient.DEFAULT_CONFIG}


def _log_file(folder: Path) -> Path:
    return folder / "broker.log"


def _state_file(folder: Path) -> Path:
    return folder / "broker.json"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _last_broker(folder: Path) -> Broker | None:
    try:
        state = json.loads(_state_file(folder).read_text(encoding="utf-8"))
        return Broker(folder, state["port"], state["pid"], state["started_at"])
    except (OSError, ValueError, KeyError):
        return None


def _alive(broker: Broker) -> bool:
    try:
        process = psutil.Process(broker.pid)
        drift_s = abs(process.create_time() - broker.started_at)
        return drift_s < _CLOCK_DRIFT_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _same_port(running: Broker, port: int) -> Broker:
    if port not in (0, running.port):
        raise SetupError(
            f"the broker of {running.folder} already runs on port {running.port}, not {port}; "
            "stop it first, or leave the port out"
        )
    return running


def _choose_port(folder: Path, port: int) -> int:
    if port:
        if not _is_free(port):
            raise SetupError(f"port {port} is in use; stop what listens there, or give another")
        return port
    last = _last_broker(folder)
    return last.port if last is not None and _is_free(last.port) else _free_port()


def _is_free(port: int) -> bool:
    try:
        _bound_port(port)
    except OSError:
        return False
    return True


def _free_port() -> int:
    return _bound_port(0)


def _bound_port(port: int) -> int:
    with socket.socket() as probe:
        # As the broker does: a port that only lingers after a close is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((_HOST, port))
        return int(probe.getsockname()[1])


def _launch(folder: Path, port: int, properties: Mapping[str, str]) -> Broker:
    server_properties = _write_properties(folder, port, properties)
    command = _java_command(folder)
    if not (folder / "data" / "meta.properties").exists():
        _format_storage(command, server_properties)
    pid = _spawn([*command, "kafka.Kafka", str(server_properties)], _log_file(folder))
    broker = Broker(folder, port, pid, psutil.Process(pid).create_time())
    _write_state(broker)
    return broker


def _write_properties(folder: Path, port: int, properties: Mapping[str, str]) -> Path:
    controller = f"{_HOST}:{_free_port()}"
    places = {
        "listeners": f"BROKER://{_HOST}:{port},CONTROLLER://{controller}",
        "controller.quorum.voters": f"1@{controller}",
        "log.dirs": str(folder / "data"),
    }
    path = folder / "server.properties"
    # JSON's escapes are those of Java's properties files.
    lines = [
        f"{name}={json.dumps(value)[1:-1]}\n"
        for name, value in {**_PROPERTIES, **places, **properties}.items()
    ]
    path.write_text("".join(lines), encoding="ascii")
    return path


def _write_state(broker: Broker) -> None:
    state = {**asdict(broker), "folder": str(broker.folder)}
    _state_file(broker.folder).write_text(json.dumps(state), encoding="utf-8")


def _java_command(folder: Path) -> list[str]:
    logging = folder / "log4j2.properties"
    logging.write_text(_LOGGING, encoding="ascii")
    jars = fetch_jars(["broker"], default_jars_folder())
    return [
        str(find_java()),
        "-Xmx512m",
        "-XX:+UseSerialGC",
        f"-Dlog4j2.configurationFile={logging}",
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
    ]


def _format_storage(command: list[str], server_properties: Path) -> None:
    cluster_id = uuid.uuid4().hex[:22]
    arguments = ["format", "--ignore-formatted", "--cluster-id", cluster_id, "--config"]
    result = subprocess.run(  # noqa: S603
        [*command, "kafka.tools.StorageTool", *arguments, str(server_properties)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SetupError(f"Kafka cannot set up its folder:\n{_last_lines(result.stdout)}")


def _spawn(command: list[str], log_file: Path) -> int:
    # Not subprocess.Popen, which warns when it is left with a living child: this one is to live.
    to_log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_file), to_log, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _wait_until_answering(broker: Broker, settings: Mapping[str, Any], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _answers(broker, settings):
        if not _alive(broker):
            raise SetupError(f"the Kafka broker ended at once; {_log_end(broker)}")
        if time.monotonic() > deadline:
            stop_broker(broker.folder)
            raise SetupError(f"no answer from Kafka in {timeout_s:g} s; {_log_end(broker)}")
        time.sleep(_POLL_S)


def _accepts(server: str) -> bool:
    """Whether a connection is taken; kafka-python is slow to say no, and leaks the socket."""
    host, _, port = server.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=_CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def _answers(broker: Broker, settings: Mapping[str, Any]) -> bool:
    try:
        with _admin(broker.bootstrap_servers, settings) as admin:
            return bool(admin.describe_cluster()["brokers"])
    except SetupError:
        return False


def _log_end(broker: Broker) -> str:
    log = broker.log_file.read_text(encoding="utf-8", errors="replace")
    return f"{broker.log_file} ends with:\n{_last_lines(log)}"


def _last_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line and not line.startswith("\tat ")]
    return "\n".join(lines[-_LOG_LINES_TOLD:])
