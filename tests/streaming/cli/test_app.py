"""The command line: its help is quick, and an error is a sentence with exit code 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from embedstream.cli.app import app, main
from embedstream.config.sections import EncoderConfig
from embedstream.kafka.dev_broker import MAX_MESSAGE_BYTES, find_running_broker, stop_broker
from outcome_tables import row, write_table
from pictures import real_pictures
from streams import Topic

OPTIONS = {
    "run": {
        "--set",
        "--available-now",
        "--allow-model-change",
        "--adopt",
        "--accept-loss",
        "--listen",
    },
    "page": {"--set", "--listen"},
    "check": {"--set"},
    "doctor": {"--set"},
    "swap": {"--set"},
    "upgrade": {"--set", "--table", "--table-name"},
    "forget": {
        "--table",
        "--table-name",
        "--set",
        "--id",
        "--older-than",
        "--vacuum",
        "--retain-hours",
        "--dry-run",
    },
    "index": {"--set", "--table", "--table-name", "--continuous", "--rebuild"},
    "publish": {"--set", "--continuous", "--again"},
    "replay": {
        "--set",
        "--offsets",
        "--since",
        "--until",
        "--failures",
        "--code",
        "--chunk-rows",
    },
    "batch": {
        "--from",
        "--table",
        "--table-name",
        "--encoder",
        "--weights",
        "--set",
        "--chunk-rows",
    },
    "backfill": {
        "--encoder",
        "--weights",
        "--sha256",
        "--set",
        "--since",
        "--until",
        "--chunk-rows",
    },
    "produce": {
        "--topic",
        "--bootstrap-servers",
        "--as-reference",
        "--partitions",
        "--client",
        "--folder",
    },
    "search": {
        "--table",
        "--config",
        "--text",
        "--like",
        "-k",
        "--where",
        "--format",
        "--exact",
        "--out",
        "--model-id",
        "--weights",
        "--bootstrap-servers",
    },
    "encoders": set(),
    "jars": {"--class-archive", "--folder", "--set"},
    "broker start": {"--folder", "--port"},
    "broker stop": {"--folder"},
}

HEAVY = {"torch", "torchvision", "pyspark", "pandas", "numpy", "pyarrow", "deltalake", "kafka"}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    code: object
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def embedstream(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process; any error but the end of a command fails the test."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["embedstream", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Ended(end.value.code, said.out, said.err)

    return run


def process(*arguments: object, **environment: str) -> Ended:
    """Run the command as a user does."""
    result = subprocess.run(
        [sys.executable, "-m", "embedstream", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ended(result.returncode, result.stdout, result.stderr)


def configuration(folder: Path, **kafka: object) -> Path:
    tree = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1", "subscribe": "images", **kafka},
        "table": {"path": str(folder / "table")},
        "checkpoint": str(folder / "checkpoint"),
    }
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def one_line(text: str) -> str:
    """Without the frames and the line breaks of a usage error."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def commands(group: typer.Typer) -> set[str]:
    own = {one.name or one.callback.__name__ for one in group.registered_commands if one.callback}
    inner = {
        f"{one.name} {name}"
        for one in group.registered_groups
        if one.typer_instance
        for name in commands(one.typer_instance)
    }
    return own | inner


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "coffee.png"
    path.write_bytes(real_pictures()["coffee.png"])
    return path


def test_the_commands_are_those_that_are_tested() -> None:
    assert commands(app) == OPTIONS.keys()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--offsets", "images:0:9-3", "'--offsets': it takes TOPIC:PARTITION:FIRST-LAST"),
        ("--offsets", "images", "'--offsets': it takes TOPIC:PARTITION:FIRST-LAST"),
        ("--since", "yesterday", "'--since': it takes a time"),
        ("--until", "12:00", "'--until': it takes a time"),
        ("--code", "image_broken", "'image_broken' is not one of 'message_malformed', "),
        ("--code", "deleted", "'deleted' is no failure"),
    ],
)
def test_a_selection_that_cannot_be_read_is_an_error(
    embedstream: Command, tmp_path: Path, option: str, value: str, said: str
) -> None:
    ended = embedstream("replay", configuration(tmp_path), option, value)

    assert ended.code == 2
    assert said in one_line(ended.err)


@pytest.mark.parametrize("command", OPTIONS)
def test_help_lists_every_option(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    listed = re.findall(r"^[│* ]+(-[\w-]+)", re.sub(r"\x1b\[[0-9;]*m", "", result.output), re.M)
    assert set(listed) == OPTIONS[command] | {"--help"}


def test_the_version_is_the_installed_one(embedstream: Command) -> None:
    ended = embedstream("--version")
    assert ended == Ended(0, f"embedstream {version('embedstream')}\n", "")


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    listed = set(re.findall(r"^[│ ]+([a-z]+)\b", result.output, re.M))
    assert listed >= {"run", "check", "doctor", "produce", "search", "jars", "broker"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import json, sys\n"
        "from embedstream.cli.app import main\n"
        "for arguments in sys.argv[1:]:\n"
        "    sys.argv = ['embedstream', *arguments.split()]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, arguments\n"
        "    print(json.dumps([arguments, *sys.modules]), file=sys.stderr)"
    )
    every = ["--help", *(f"{command} --help" for command in OPTIONS)]
    result = subprocess.run(
        [sys.executable, "-c", code, *every], capture_output=True, text=True, check=True
    )
    assert result.stdout.count("Usage: ") == len(every)
    reports = [json.loads(line) for line in result.stderr.splitlines()]
    assert [arguments for arguments, *_ in reports] == every
    for arguments, *loaded in reports:
        assert "embedstream.cli.app" in loaded
        assert not HEAVY.intersection(loaded), arguments


@pytest.mark.parametrize("command", ["run", "check", "doctor"])
def test_a_wrong_configuration_is_a_sentence_and_exit_code_2(tmp_path: Path, command: str) -> None:
    path = configuration(tmp_path, subscirbe="cats")
    ended = process(command, path)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith(f"embedstream: the configuration {path} is wrong:\n")
    assert "kafka.subscirbe: unknown key; did you mean 'subscribe'?" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["run", "check", "doctor"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kafka.min_partitions=few", "kafka.min_partitions: should be a valid integer"),
        ("kafka.subscribe", "--set takes key=value"),
        ("spark.options.x=1", "spark: 'x' is not a setting of Spark"),
    ],
)
def test_a_wrong_override_is_a_sentence(
    tmp_path: Path, embedstream: Command, command: str, override: str, message: str
) -> None:
    ended = embedstream(command, configuration(tmp_path), "--set", override)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("embedstream: ")
    assert message in ended.err


def test_overrides_may_be_repeated_and_are_read_in_order(
    tmp_path: Path, embedstream: Command
) -> None:
    overrides = ["--set", "kafka.subscribe=a", "--set", "kafka.min_partitions=0"]
    ended = embedstream("check", configuration(tmp_path), *overrides, "--set", "checkpoint=")
    assert "kafka.min_partitions: should be greater than 0, not '0'" in ended.err
    assert "checkpoint: " in ended.err


def test_the_environment_is_read(tmp_path: Path) -> None:
    ended = process("check", configuration(tmp_path), EMBEDSTREAM_KAFKA__SUBSCRIB="cats")
    assert ended.code == 2
    assert "EMBEDSTREAM_KAFKA__SUBSCRIB names no key of the configuration" in ended.err


def test_a_missing_configuration_is_an_error(tmp_path: Path, embedstream: Command) -> None:
    ended = embedstream("run", tmp_path / "absent.yaml")
    assert (ended.code, ended.err) == (
        2,
        f"embedstream: the configuration {tmp_path / 'absent.yaml'} cannot be read: "
        "No such file or directory\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "Missing argument 'config'"),
        ("produce x.png", "Missing option '--topic'"),
        (
            "search x.png --table t -k 0",
            "Invalid value for '-k': ",
        ),
        (
            "broker start --port 70000",
            "Invalid value for '--port': ",
        ),
        ("broker strat", "No such command 'strat'"),
        ("forget", "give either CONFIG, or --table or --table-name"),
        ("forget --table t --older-than 3w", "'--older-than': it takes a time"),
        ("forget --table t --retain-hours 0", "--retain-hours needs --vacuum"),
    ],
)
def test_wrong_usage_is_an_error(embedstream: Command, arguments: str, message: str) -> None:
    ended = embedstream(*arguments.split())
    assert ended.code == 2
    assert message.lower() in one_line(ended.err).lower()


def test_an_unknown_jar_set_is_an_error(tmp_path: Path, embedstream: Command) -> None:
    ended = embedstream("jars", "--set", "flink", "--folder", tmp_path)
    assert (ended.code, ended.err) == (
        2,
        "embedstream: unknown jar set 'flink'; known: broker, s3, spark\n",
    )


def test_a_missing_query_file_is_an_error(tmp_path: Path, embedstream: Command) -> None:
    absent = tmp_path / "absent.png"
    ended = embedstream("search", absent, "--table", tmp_path)
    assert (ended.code, ended.err) == (
        2,
        f"embedstream: the query '{absent}' cannot be read: No such file or directory\n",
    )


def test_no_table_to_search_is_an_error(tmp_path: Path, image: Path, embedstream: Command) -> None:
    table = tmp_path / "absent"
    ended = embedstream("search", image, "--table", table)
    assert (ended.code, ended.err) == (
        2,
        f"embedstream: there is no Delta table at '{table}'; has the stream run?\n",
    )
    assert not table.exists()


def test_an_unknown_model_id_is_an_error(tmp_path: Path, image: Path, embedstream: Command) -> None:
    table = write_table(tmp_path, [row("cat", [1, 0])])
    ended = embedstream("search", image, "--table", table, "--model-id", "resnet50")
    assert ended.code == 2
    assert "resnet50" in ended.err


def test_a_missing_embedded_broker_is_an_error_with_a_remedy(
    tmp_path: Path, image: Path, embedstream: Command
) -> None:
    folder = tmp_path / "broker"
    ended = embedstream("produce", image, "--topic", "images", "--folder", folder)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"embedstream: no broker runs in {folder}; start it with 'embedstream broker start', or "
        "give --bootstrap-servers\n"
    )


def test_an_address_without_a_broker_is_an_error(image: Path, embedstream: Command) -> None:
    ended = embedstream("produce", image, "--topic", "cats", "--bootstrap-servers", "127.0.0.1:1")
    assert ended.code == 2
    assert "nothing listens at 127.0.0.1:1" in ended.err
    assert "embedstream broker start" in ended.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("security_protocol", "--client takes NAME=VALUE, as security_protocol=SSL; not "),
        ("ssl_password=hunter2", "'ssl_password' holds a secret in plain text; give it as env:"),
        (
            "ssl_password=env:NOT_SET",
            "ssl_password: the environment variable NOT_SET is not set\n",
        ),
        (
            "ssl_cafile=[a, b]",
            "ssl_cafile: its value must be a text, a number, true or false, not a ",
        ),
        ("ssl_password=[hunter2", "the value of ssl_password is not YAML: "),
        ("ssl_password=12345", "'ssl_password' holds a secret in plain text; give it as env:"),
    ],
)
def test_a_wrong_client_setting_is_an_error(
    image: Path, embedstream: Command, setting: str, message: str
) -> None:
    servers = ["--bootstrap-servers", "127.0.0.1:1"]
    ended = embedstream("produce", image, "--topic", "cats", *servers, "--client", setting)
    assert ended.code == 2
    assert ended.err.startswith(f"embedstream: {message}")
    assert "hunter2" not in ended.err


def test_stopping_without_a_broker_is_not_an_error(tmp_path: Path, embedstream: Command) -> None:
    ended = embedstream("broker", "stop", "--folder", tmp_path)
    assert ended == Ended(0, f"no broker runs in {tmp_path}\n", "")


@pytest.fixture
def broker_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose broker is stopped after the test, whatever the test did."""
    path = tmp_path / "broker"
    yield path
    stop_broker(path)


@pytest.mark.kafka
@pytest.mark.long
def test_a_broker_is_started_used_and_stopped(broker_folder: Path, image: Path) -> None:
    at = ["--folder", broker_folder]

    started = process("broker", "start", *at)
    running = find_running_broker(broker_folder)
    assert running is not None
    assert started == Ended(0, f"{running.bootstrap_servers}\n", "")
    assert process("broker", "start", *at) == started

    sent = process("produce", image, "--topic", "cats", "--partitions", "1", *at)
    assert (sent.code, sent.out) == (0, "1 of 1 messages are in topic 'cats'\n")
    assert Topic("cats", running.bootstrap_servers).end_offsets() == {0: 1}

    assert process("broker", "stop", *at) == Ended(0, "stopped\n", "")
    assert find_running_broker(broker_folder) is None
    assert process("broker", "stop", *at).out == f"no broker runs in {broker_folder}\n"


@pytest.mark.kafka
@pytest.mark.parametrize("form", [[], ["--as-reference"]], ids=["bytes", "reference"])
def test_a_folder_is_sent(topic: Topic, image: Path, embedstream: Command, form: list[str]) -> None:
    (image.parent / "chelsea.png").write_bytes(real_pictures()["chelsea.png"])
    at = ["--topic", topic.name, "--bootstrap-servers", topic.bootstrap_servers]

    ended = embedstream("produce", image.parent, *at, *form)

    assert (ended.code, ended.out) == (0, f"2 of 2 messages are in topic '{topic.name}'\n")
    assert sum(topic.end_offsets().values()) == 2


@pytest.mark.kafka
def test_a_refused_image_is_reported_and_exits_1(
    topic: Topic, image: Path, embedstream: Command
) -> None:
    large = image.parent / "large.png"
    large.write_bytes(bytes(MAX_MESSAGE_BYTES))
    at = ["--topic", topic.name, "--bootstrap-servers", topic.bootstrap_servers]

    ended = embedstream("produce", image.parent, *at)

    assert (ended.code, ended.out) == (1, f"1 of 2 messages are in topic '{topic.name}'\n")
    assert f"not sent: {large}: larger than the broker allows in one message" in ended.err
    assert sum(topic.end_offsets().values()) == 1


@pytest.mark.kafka
@pytest.mark.parametrize(
    "unreadable",
    [lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")],
    ids=["folder", "broken link"],
)
def test_images_that_are_not_files_are_skipped(
    topic: Topic, image: Path, embedstream: Command, unreadable: Callable[[Path], None]
) -> None:
    unreadable(image.parent / "album.png")
    at = ["--topic", topic.name, "--bootstrap-servers", topic.bootstrap_servers]
    ended = embedstream("produce", image.parent, *at)
    assert f" messages are in topic '{topic.name}'\n" in ended.out
    assert sum(topic.end_offsets().values()) == 1


@pytest.mark.kafka
def test_a_missing_topic_is_an_error(topic: Topic, image: Path, embedstream: Command) -> None:
    at = ["--topic", "absent", "--bootstrap-servers", topic.bootstrap_servers]
    ended = embedstream("produce", image, *at)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("embedstream: no topic 'absent' at 127.0.0.1:")


@pytest.mark.kafka
def test_a_file_that_vanished_is_reported_and_the_others_are_sent(
    topic: Topic, image: Path, embedstream: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = image.parent / "gone.png"
    monkeypatch.setattr("embedstream.cli.topics.find_files", lambda paths: [gone, *paths])
    at = ["--topic", topic.name, "--bootstrap-servers", topic.bootstrap_servers]

    ended = embedstream("produce", image, *at)

    assert (ended.code, ended.out) == (1, f"1 of 2 messages are in topic '{topic.name}'\n")
    assert f"not sent: {gone}: cannot be read: No such file or directory\n" in ended.err
    assert sum(topic.end_offsets().values()) == 1


@pytest.mark.kafka
@pytest.mark.parametrize("form", [[], ["--as-reference"]], ids=["bytes", "reference"])
def test_a_file_whose_name_is_not_text_is_reported(
    topic: Topic, image: Path, form: list[str]
) -> None:
    (image.parent / os.fsdecode(b"\xff.png")).write_bytes(b"")
    at = ["--topic", topic.name, "--bootstrap-servers", topic.bootstrap_servers]
    ended = process("produce", image.parent, *at, *form)
    assert (ended.code, ended.out) == (1, f"1 of 2 messages are in topic '{topic.name}'\n")
    assert "\\udcff.png: its key, a path or an id, is not UTF-8 text" in ended.err


def test_client_settings_are_read_as_yaml(
    image: Path, embedstream: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PASSWORD", "123")
    taken: dict[str, object] = {}

    def send(messages: object, *, client_settings: dict[str, object], **_: object) -> list[object]:
        taken.update(client_settings)
        return []

    monkeypatch.setattr("embedstream.cli.topics.produce", send)
    given = {
        "ssl_check_hostname": "false",
        "request_timeout_ms": "20000",
        "security_protocol": "SSL",
        "client_id": "'7'",
        "ssl_password": "env:TEST_PASSWORD",
    }
    settings = [word for name, text in given.items() for word in ("--client", f"{name}={text}")]

    ended = embedstream("produce", image, "--topic", "x", "--bootstrap-servers", "x", *settings)

    assert ended.code == 0
    assert taken == {
        "ssl_check_hostname": False,
        "request_timeout_ms": 20000,
        "security_protocol": "SSL",
        "client_id": "7",
        "ssl_password": "123",
    }


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("no_such=env:HOME", "client settings that cannot be given: no_such; known: allow_auto_"),
        ("acks=0", "client settings that cannot be given: acks; known: "),
        ("compression_type=nosuch", "no producer starts with these client settings: Not"),
    ],
)
def test_a_client_setting_that_kafka_refuses_is_an_error(
    topic: Topic, image: Path, setting: str, message: str
) -> None:
    at = ["--topic", topic.name, "--bootstrap-servers", topic.bootstrap_servers]
    # In a process of its own: kafka-python leaks the sockets of a producer that it refuses.
    ended = process("produce", image, *at, "--client", setting)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"embedstream: {message}")
    assert os.environ["HOME"] not in ended.err


@pytest.mark.kafka
@pytest.mark.parametrize(
    "setting",
    [
        "client_id=tests",
        "request_timeout_ms=20000",
        "compression_type=gzip",
        "ssl_check_hostname=false",
    ],
)
def test_a_client_setting_is_used(
    topic: Topic, image: Path, embedstream: Command, setting: str
) -> None:
    at = ["--topic", topic.name, "--bootstrap-servers", topic.bootstrap_servers]
    ended = embedstream("produce", image, *at, "--client", setting)
    assert ended.code == 0


@pytest.mark.parametrize(
    ("arguments", "weights", "sha256"),
    [
        ([], "default", None),
        (["--set", "encoder.weights=random"], "random", None),
        (["--weights", "mine.pt", "--sha256", "c0ffee00"], "mine.pt", "c0ffee00"),
        (["--weights", "mine.pt", "--set", "encoder.weights=random"], "mine.pt", None),
    ],
)
def test_backfill_takes_weights_from_its_options_and_overrides_not_from_the_file(
    tmp_path: Path,
    embedstream: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    weights: str,
    sha256: str | None,
) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(
        "{kafka: {bootstrap_servers: x, subscribe: y}, table: {path: t}, checkpoint: c,"
        " encoder: {name: resnet50, weights: old.pt, sha256: deadbeef}}"
    )
    run: list[EncoderConfig] = []
    monkeypatch.setattr(
        "embedstream.cli.bulk.run_replay", lambda config, **_: run.append(config.encoder)
    )

    embedstream("backfill", path, "--encoder", "resnet18", *arguments)

    (encoder,) = run
    assert (encoder.name, encoder.weights, encoder.sha256) == ("resnet18", weights, sha256)


def test_backfill_takes_its_encoder_in_place_of_several(
    tmp_path: Path, embedstream: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(
        "{kafka: {bootstrap_servers: x, subscribe: y}, table: {path: t}, checkpoint: c,"
        " encoders: [{name: resnet50}, {name: resnet34}]}"
    )
    run: list[str] = []
    monkeypatch.setattr(
        "embedstream.cli.bulk.run_replay",
        lambda config, **_: run.extend(one.name for one in config.all_encoders),
    )

    embedstream("backfill", path, "--encoder", "resnet18")

    assert run == ["resnet18"]


def test_a_swap_of_a_wrong_configuration_is_refused_before_spark_starts(
    tmp_path: Path, embedstream: Command
) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("{encoders: [{nam: resnet50}], encoder: {name: resnet18}}")
    result = embedstream("swap", path)
    assert result.code == 2
    assert "encoders.0.nam: unknown key; did you mean 'name'?" in result.err
