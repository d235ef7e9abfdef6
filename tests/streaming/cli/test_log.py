"""The log of a command: lines for people, or nothing but JSON; both only while the command runs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import SecretStr

from embedstream.cli import console
from embedstream.cli.app import main
from embedstream.cli.log import show_log
from embedstream.config.load import load_config
from embedstream.config.sections.monitoring import LogConfig
from embedstream.logs.events import Event, log_event
from embedstream.recovery.doctor import Finding
from embedstream.stream.reports import MicroBatchReport, Totals
from embedstream_core.errors import SetupError
from logged import read_json_lines
from tables_in_motion import MovingTable

CANARY = "c4n4ry"
OWN = logging.getLogger("embedstream.stream.maintenance")
FOREIGN = logging.getLogger("urllib3.pool")

REPORT = MicroBatchReport(
    batch_id=3,
    messages=7,
    tombstones=1,
    embeddings=4,
    failures=Counter(image_empty=2),
    duration_s=0.5,
    lag=120,
    margin=42,
    cache_hits=1,
    stage_seconds={"fetch": 0.25},
)
BATCH = (
    "batch 3         6 rows      4 embeddings    2 failures    12.0 rows/s  1 null values  "
    "120 behind  retention margin: 42 messages"
)


def work() -> None:
    """What a command prints and logs."""
    totals = Totals()
    totals.add(REPORT)
    with console.show_status("starting Spark") as status:
        status.stop()
        console.print_finding(Finding("topics", passed=True, detail="[bold]2[/] partitions"))
        console.print_finding(Finding("table", passed=False, detail="is another's"))
        console.print_text("a line")
        log_event(OWN, Event.START, "running; Ctrl-C stops", version="1")
        console.print_micro_batch(REPORT)
        OWN.info("for operators")
        OWN.debug("for developers")
        FOREIGN.info("chatter")
        FOREIGN.warning("retrying")
        warnings.warn("old", FutureWarning, stacklevel=1)
        try:
            raise OSError(f"http://me:{CANARY}@x.test/ is away")
        except OSError:
            OWN.warning("compacting failed", exc_info=True)
        console.print_totals(totals, table="t", model_loads=2)


@pytest.fixture
def quiet_warnings() -> None:
    warnings.simplefilter("default")


@pytest.mark.usefixtures("quiet_warnings")
def test_people_see_lines_and_the_rest_on_the_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_log(LogConfig()):
        work()
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "ok   topics      [bold]2[/] partitions",
        "FAIL table       is another's",
        "a line",
        "running; Ctrl-C stops",
        BATCH,
        "6 rows in 1 micro-batch, 12.0 rows/s: 4 embeddings, 2 failures (2 image_empty)",
        "each worker loads a model once; together they loaded 2 times",
        "table: t",
    ]
    assert [line.partition(" ")[2] for line in err.splitlines() if line.startswith("20")] == [
        "INFO embedstream.stream.maintenance: for operators",
        "WARNING urllib3.pool: retrying",
        err.partition(" py.warnings")[0].splitlines()[-1].partition(" ")[2]
        + " "
        + next(line for line in err.splitlines() if "py.warnings" in line).partition("WARNING ")[2],
        "WARNING embedstream.stream.maintenance: compacting failed",
    ]
    assert "OSError: http://[redacted]@x.test/ is away" in err
    assert CANARY not in out + err


@pytest.mark.usefixtures("quiet_warnings")
def test_programs_get_an_object_for_each_record_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_log(LogConfig(format="json")):
        work()
    out, err = capsys.readouterr()
    assert err == ""
    assert CANARY not in out
    lines = read_json_lines(out)
    assert [line.get("event") or line["logger"] for line in lines] == [
        "finding",
        "finding",
        "line",
        "start",
        "micro_batch",
        "embedstream.stream.maintenance",
        "urllib3.pool",
        "py.warnings",
        "embedstream.stream.maintenance",
        "stop",
    ]
    assert [one["level"] for one in lines[:2]] == ["info", "error"]
    assert lines[0]["fields"] == {
        "subject": "topics",
        "detail": "[bold]2[/] partitions",
        "passed": True,
    }
    counts = {"rows": 6, "embeddings": 4, "failures": {"image_empty": 2}, "deleted": 0}
    assert lines[4]["message"] == BATCH
    assert lines[4]["fields"] == {
        **counts,
        "batch_id": 3,
        "messages": 7,
        "null_values": 1,
        "cache_hits": 1,
        "duration_s": 0.5,
        "stage_seconds": {"fetch": 0.25},
        "lag": 120,
        "margin": 42,
    }
    assert lines[8]["exception"].endswith("OSError: http://[redacted]@x.test/ is away")
    assert lines[-1]["fields"] == {
        **counts,
        "micro_batches": 1,
        "null_values": 1,
        "busy_s": 0.5,
        "model_loads": 2,
        "table": "t",
    }


@pytest.mark.usefixtures("quiet_warnings")
@pytest.mark.parametrize(
    ("level", "printed"),
    [("debug", 11), ("info", 10), ("warning", 4), ("error", 1)],
)
def test_the_level_is_obeyed(capsys: pytest.CaptureFixture[str], level: str, printed: int) -> None:
    with show_log(LogConfig.model_validate({"format": "json", "level": level})):
        work()
    assert len(read_json_lines(capsys.readouterr().out)) == printed


def test_afterwards_the_loggers_are_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in (None, "embedstream", "embedstream_core")]
    before = [(one.level, [*one.handlers], one.propagate) for one in loggers]
    with show_log(LogConfig(format="json", level="debug")):
        pass
    assert [(one.level, [*one.handlers], one.propagate) for one in loggers] == before
    assert logging.getLogger("embedstream").isEnabledFor(logging.WARNING)
    console.print_text("printed as it is")
    assert capsys.readouterr() == ("printed as it is\n", "")


def test_the_functions_for_programs_set_nothing_up() -> None:
    """Importing them, the streaming doors and the pipeline included."""
    code = (
        "import logging; import embedstream.api.dataframe, embedstream.api.images, "
        "embedstream.search.nearest, embedstream.stream.job, embedstream_core.pipeline.pipeline; "
        "names = [None, 'embedstream', 'embedstream_core']; "
        "print([(one.handlers, one.level) for one in map(logging.getLogger, names)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[([], 30), ([], 0), ([], 0)]"


def test_a_configuration_is_logged_without_its_secrets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SASL_PASSWORD", CANARY)
    path = tmp_path / "stream.yaml"
    path.write_text(
        "kafka: {bootstrap_servers: localhost:9092, subscribe: images, options: {"
        "kafka.ssl.truststore.password: 'env:SASL_PASSWORD', kafka.sasl.jaas.config: "
        '\'x required username="a" password="${env:SASL_PASSWORD}";\'}}\n'
        f"table: {{path: {tmp_path}/table}}\ncheckpoint: {tmp_path}/checkpoint\n"
    )
    config = load_config(path)
    shown = {
        name: one.get_secret_value() if isinstance(one, SecretStr) else one
        for name, one in config.kafka.options.items()
    }
    assert CANARY in str(shown)
    for form in ("text", "json"):
        with show_log(LogConfig.model_validate({"format": form})):
            OWN.info("runs with %s", config)
            OWN.info("runs with %s", shown)
            log_event(OWN, Event.LINE, f"options {shown}", options=shown, config=config)
    out, err = capsys.readouterr()
    assert CANARY not in out + err
    assert out.count("[redacted]") >= 4


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[object, Path]]:
    """Run `embedstream doctor` with something that raises an error."""
    path = tmp_path / "stream.yaml"
    path.write_text(
        "kafka: {bootstrap_servers: 'localhost:1', subscribe: images}\n"
        f"table: {{path: {tmp_path}/table}}\ncheckpoint: {tmp_path}/checkpoint\n"
    )

    def run(error: Exception, *arguments: str) -> object:
        def open_nothing(*_: object) -> object:
            raise error

        monkeypatch.setattr("embedstream.cli.actions.stream.diagnose", open_nothing)
        monkeypatch.setattr(
            "embedstream.cli.actions.stream.open_session_on_table",
            lambda config: nullcontext((None, config)),
        )
        monkeypatch.setattr(sys, "argv", ["embedstream", "doctor", str(path), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code

    return run  # type: ignore[return-value]


def test_what_ends_a_command_is_an_event_or_a_sentence(
    fail: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = SetupError(f"cannot reach http://me:{CANARY}@x.test/")
    assert fail(refused, "--set=log.format=json") == 2
    out, err = capsys.readouterr()
    (line,) = read_json_lines(out)
    assert (line["event"], line["level"], err) == ("failure", "error", "")
    assert line["message"] == "cannot reach http://[redacted]@x.test/"
    assert "exception" not in line

    again = SetupError(f"cannot reach http://me:{CANARY}@x.test/")
    assert fail(again) == 2
    assert capsys.readouterr() == ("", "embedstream: cannot reach http://[redacted]@x.test/\n")


def test_an_unexpected_error_has_its_traceback_in_both_formats(
    fail: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(KeyError(f"password={CANARY}"), "--set=log.format=json") == 1
    out, err = capsys.readouterr()
    (line,) = read_json_lines(out)
    assert (line["event"], line["fields"], err) == ("failure", {"kind": "KeyError"}, "")
    assert line["exception"].startswith("Traceback (most recent call last):")

    assert fail(KeyError(f"password={CANARY}")) == 1
    out_, err = capsys.readouterr()
    assert out_ == ""
    assert err.startswith("Traceback (most recent call last):")
    assert CANARY not in out + err


def test_an_index_logs_json_lines_only(tmp_path: Path) -> None:
    table = MovingTable.create(tmp_path / "table", rows=4)
    command = [sys.executable, "-m", "embedstream", "index", f"--table={table.path}"]
    done = subprocess.run(
        [*command, "--set=log.format=json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FORCE_COLOR": "1"},
    )
    assert [one["event"] for one in read_json_lines(done.stdout)] == ["line"] * 4
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
