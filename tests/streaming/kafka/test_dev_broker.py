"""The embedded broker: it answers once it is started, and leaves nothing when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from drivers import wait_until
from embedstream.kafka.admin import create_topic, read_end_offsets
from embedstream.kafka.dev_broker import (
    MAX_MESSAGE_BYTES,
    Broker,
    find_running_broker,
    start_broker,
    stop_broker,
)
from embedstream_core.errors import SetupError
from streams import Topic, image

pytestmark = pytest.mark.kafka

LARGE_MESSAGE = os.urandom(MAX_MESSAGE_BYTES // 2)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose broker is stopped after the test, whatever the test did."""
    path = tmp_path / "broker"
    yield path
    stop_broker(path)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose broker each test starts if it does not run, and may stop or kill.

    A start takes seconds, so what one test leaves running, the next one takes.
    """
    path = tmp_path_factory.mktemp("own") / "möwe 1\\2 鳥"
    yield path
    stop_broker(path)


@pytest.fixture
def kept(own_folder: Path) -> Topic:
    """A topic in the broker of `own_folder` that holds one message."""
    servers = start_broker(own_folder).bootstrap_servers
    topic = Topic.create(servers, partitions=1, prefix="kept")
    topic.send([image("cat", b"value")])
    return topic


def produce(broker: Broker, topic: str, value: bytes) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, max_request_size=MAX_MESSAGE_BYTES
    )
    with closing(producer):
        producer.send(topic, value).get(30)


def consume(broker: Broker, topic: str) -> bytes:
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic, bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest"
    )
    with closing(consumer):
        value = next(consumer).value
    assert isinstance(value, bytes)
    return value


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def listening_addresses(broker: Broker) -> set[str]:
    connections = psutil.Process(broker.pid).net_connections("inet")
    listening = [one for one in connections if one.status == psutil.CONN_LISTEN]
    return {one.laddr.ip.removeprefix("::ffff:") for one in listening}


def test_a_sent_message_is_read(broker: Broker) -> None:
    create_topic(broker.bootstrap_servers, "large", partitions=1)
    produce(broker, "large", LARGE_MESSAGE)
    assert consume(broker, "large") == LARGE_MESSAGE


def test_a_topic_is_created_once(broker: Broker) -> None:
    create_topic(broker.bootstrap_servers, "once", partitions=2)
    produce(broker, "once", b"kept")
    create_topic(broker.bootstrap_servers, "once", partitions=3)
    offsets = read_end_offsets(broker.bootstrap_servers, "once")
    assert sorted(offsets) == [0, 1]
    assert sum(offsets.values()) == 1


def test_an_unknown_topic_is_named_and_not_created(broker: Broker) -> None:
    for _ in range(2):
        with pytest.raises(SetupError, match="no topic 'absent'"):
            read_end_offsets(broker.bootstrap_servers, "absent")


def test_a_bad_topic_name_is_a_setup_error(broker: Broker) -> None:
    with pytest.raises(SetupError, match="did not complete the request"):
        create_topic(broker.bootstrap_servers, "no spaces, please", partitions=1)


def test_it_listens_on_the_loopback_address_only(broker: Broker) -> None:
    assert listening_addresses(broker) == {"127.0.0.1"}


def test_it_is_in_its_own_process_session(broker: Broker) -> None:
    assert os.getsid(broker.pid) == broker.pid != os.getsid(0)


def test_a_second_start_returns_the_running_one(broker: Broker) -> None:
    assert start_broker(broker.folder) == broker
    assert start_broker(broker.folder, port=broker.port) == broker
    with pytest.raises(SetupError, match=f"already runs on port {broker.port}, not 1"):
        start_broker(broker.folder, port=1)


@pytest.mark.long
def test_it_outlives_the_process_that_started_it(own_folder: Path) -> None:
    stop_broker(own_folder)
    code = (
        "from pathlib import Path; from embedstream.kafka.dev_broker import start_broker; "
        f"print(start_broker(Path({str(own_folder)!r})).pid)"
    )
    pid = int(subprocess.check_output([sys.executable, "-c", code], timeout=120))
    running = find_running_broker(own_folder)
    assert running is not None
    assert running.pid == pid


def test_any_folder_name_works(own_folder: Path) -> None:
    broker = start_broker(own_folder)
    assert (own_folder / "data" / "meta.properties").exists()
    assert "ERROR" not in broker.log_file.read_text()


def test_stop_leaves_no_process_and_restart_keeps_port_and_data(
    own_folder: Path, kept: Topic
) -> None:
    first = start_broker(own_folder)
    assert stop_broker(own_folder)
    assert is_gone(first.pid)
    assert find_running_broker(own_folder) is None
    assert not stop_broker(own_folder)

    second = start_broker(own_folder)
    assert second.port == first.port
    assert second.pid != first.pid
    assert consume(second, kept.name) == b"value"


@pytest.mark.long
def test_it_starts_again_after_a_kill(own_folder: Path, kept: Topic) -> None:
    first = start_broker(own_folder)
    os.kill(first.pid, signal.SIGKILL)
    psutil.Process(first.pid).wait(30)
    assert find_running_broker(own_folder) is None

    second = start_broker(own_folder)
    assert second.port == first.port
    assert consume(second, kept.name) == b"value"


def test_a_port_in_use_is_an_error(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"port {port} is in use; stop what listens"):
            start_broker(folder, port=port)
    assert find_running_broker(folder) is None


def test_another_process_with_the_same_pid_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    state = f'{{"port": 9092, "pid": {os.getpid()}, "started": 0.0}}'
    (folder / "broker.json").write_text(state)
    assert find_running_broker(folder) is None
    assert not stop_broker(folder)


def test_a_process_is_the_broker_before_it_has_loaded_its_program(folder: Path) -> None:
    """Linux shows an empty command line until then."""
    folder.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        started = psutil.Process(process.pid).create_time()
        state = {"port": 9092, "pid": process.pid, "started": started}
        (folder / "broker.json").write_text(json.dumps(state))
        assert find_running_broker(folder) == Broker(folder, 9092, process.pid, started)
        process.kill()
        wait_until(lambda: find_running_broker(folder) is None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("log.segment.bytes", "many", "cannot set up its folder.*log.segment.bytes: Not a number"),
        (
            "metric.reporters",
            "absent.Class",
            r"ended at once.*broker\.log ends with.*absent\.Class",
        ),
    ],
)
def test_a_failed_start_is_explained(folder: Path, name: str, value: str, message: str) -> None:
    with pytest.raises(SetupError, match=f"(?s){message}"):
        start_broker(folder, properties={name: value})
    assert find_running_broker(folder) is None


def test_a_broker_that_does_not_answer_is_stopped(folder: Path) -> None:
    with pytest.raises(SetupError, match=r"no answer from Kafka in 0\.1 s"):
        start_broker(folder, timeout_s=0.1)
    assert find_running_broker(folder) is None


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot use the broker folder"):
        start_broker(tmp_path / "file" / "broker")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:1,[::1]:1", "no port"])
def test_an_address_without_a_broker_is_an_error(address: str) -> None:
    with pytest.raises(SetupError, match="nothing listens at") as error:
        create_topic(address, "any", partitions=1)
    assert address in str(error.value)


def test_one_good_address_of_several_is_enough(broker: Broker) -> None:
    servers = f"127.0.0.1:1, {broker.bootstrap_servers}"
    create_topic(servers, "reached", partitions=1)
    assert read_end_offsets(servers, "reached") == {0: 0}


def test_importing_loads_no_kafka_client() -> None:
    code = (
        "import embedstream.kafka.dev_broker, sys; "
        "print('kafka' in sys.modules, 'jgo' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code]).split() == [b"False", b"False"]
