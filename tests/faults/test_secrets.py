"""Secrets in the configuration, the environment, references and headers stay where they are."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image
from pyspark.sql import SparkSession

from drivers import processes_of
from embedstream.config.sections import StreamConfig
from fetch_places import Site, open_site
from oracle import Row, check_outcomes
from small import write_config
from streams import Topic, image, json_message, refusal

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

CANARY = "c4n4ry"
"""Every secret begins with this; the rest says where it was."""

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-environment",
    "VENDOR_LICENCE": f"{CANARY}-executor",
    "STORE_KEY": f"{CANARY}-store",
    "SASL_PASSWORD": f"{CANARY}-sasl",
    "REGISTRY_PASSWORD": f"{CANARY}-registry",
}

JAAS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    'username="embedstream" password="${env:SASL_PASSWORD}";'
)

PAGES = ["environment/", "jobs/", "stages/", "SQL/", "SQL/execution/?id=0", "StreamingQuery/"]


@dataclass(frozen=True)
class Traces:
    """All that a stream printed, served and stored while it ran, and who may read its files.

    `addresses` are those at which its processes could be connected to.
    """

    texts: Mapping[str, str]
    rows: Mapping[str, Row]
    modes: Mapping[str, int]
    addresses: Set[str]


@pytest.mark.long
def test_the_error_for_a_refused_password_does_not_contain_it(
    spark: SparkSession, configure: Callable[..., StreamConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SASL_PASSWORD", ENVIRONMENT["SASL_PASSWORD"])
    options = {
        "kafka.security.protocol": "SASL_PLAINTEXT",
        "kafka.sasl.mechanism": "PLAIN",
        "kafka.sasl.jaas.config": JAAS,
    }
    config = configure(kafka={"options": options})

    assert CANARY not in refusal(spark, config, "topics")
    assert CANARY not in repr(config)


@pytest.mark.long
def test_no_secret_is_printed_or_stored_anywhere(topic: Topic, tmp_path: Path) -> None:
    with open_site() as site:
        send_secrets(topic, site)
        traces = collect_traces(topic, site, tmp_path)

    assert {name for name, text in traces.texts.items() if CANARY in text} == set()
    assert [row for row in traces.rows.values() if CANARY in str(row)] == []
    # What is looked at is what there is to see.
    environment = dict(json.loads(traces.texts["api environment"])["sparkProperties"])
    assert environment["spark.executorEnv.VENDOR_LICENCE"] == "*********(redacted)"
    assert environment["spark.master"] == "local[2,4]"
    assert " INFO " in traces.texts["spark.log"]
    assert "6 embeddings" in traces.texts["output"]
    codes = {name: row["error"] and row["error"]["code"] for name, row in traces.rows.items()}
    assert codes == {
        "user": "reference_denied",
        "denied": "reference_denied",
        "missing": "reference_not_found",
        "broken": "reference_unreadable",
        "redirect": "reference_denied",
        "malformed": "message_malformed",
        **dict.fromkeys(["signed", "header", "field", "again", "plain", "encoded"]),
    }
    assert traces.rows["signed"]["uri"] == f"{site.url}/signed?id=1&X-Amz-Signature=[redacted]"
    assert dict(traces.rows["header"]["attributes"]) == {
        "authorization": "[redacted]",
        "shop": "42",
    }

    # Nobody else may look into what is written, the table excepted.
    folders = dict.fromkeys(["checkpoint", "table/_embedstream", "scratch"], 0o700)
    assert traces.modes == {**folders, "model": 0o600, "known": 0o600}
    # Nor may anybody elsewhere connect.
    assert {address.removeprefix("::ffff:") for address in traces.addresses} == {"127.0.0.1"}


def send_secrets(topic: Topic, site: Site) -> None:
    """References of each outcome and headers, with a secret in each."""
    host = f"127.0.0.1:{site.port}"
    answer = picture()
    for name in ("signed", "again"):
        site.pages[f"/{name}"] = lambda visit: visit.answer(
            200, answer, Set_Cookie=f"{CANARY}-answer"
        )
    site.pages["/broken"] = lambda visit: visit.answer(503, f"{CANARY}-page".encode())
    site.pages["/redirect"] = lambda visit: visit.answer(
        302, Location=f"http://{CANARY}-user:{CANARY}-password@{host}/"
    )
    site.pages["/subjects"] = lambda visit: visit.answer(200, b"[]")
    site.pages["/schemas/ids/7"] = lambda visit: visit.answer(200, rb'{"schema": "\"bytes\""}')
    references = {
        "user": f"http://{CANARY}-user:{CANARY}-password@{host}/signed",
        "denied": f"http://elsewhere.test/?X-Amz-Signature={CANARY}-denied",
        "missing": f"{site.url}/missing?sig={CANARY}-missing",
        "broken": f"{site.url}/broken?sig={CANARY}-broken",
        "redirect": f"{site.url}/redirect?token={CANARY}-redirect",
        "signed": f"{site.url}/signed?id=1&X-Amz-Signature={CANARY}-signed",
        "again": f"{site.url}/again#access_token={CANARY}-fragment",
    }
    headers = {"authorization": f"Bearer {CANARY}-header", "shop": "42"}
    topic.send(
        [
            *(json_message(name, uri=uri) for name, uri in references.items()),
            json_message("field", uri=f"{site.url}/signed", api_key=f"{CANARY}-field"),
            image("header", answer, **headers),
            image("plain", answer),
            image("encoded", b"\0\0\0\0\7" + answer),
            image("malformed", f'{{"uri": "{CANARY}-malformed'.encode(), **headers),
        ]
    )


def picture() -> bytes:
    data = io.BytesIO()
    Image.effect_noise((40, 40), 50).convert("RGB").save(data, "PNG")
    return data.getvalue()


def collect_traces(topic: Topic, site: Site, folder: Path) -> Traces:
    """Run the stream, and look at it in every way."""
    temporary = folder / "tmp"
    temporary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ui = server.getsockname()[1]
    config = secret_config(topic, site, folder, ui)
    with running(config, temporary) as driver:
        wait_for_commit(folder, driver)
        pages = {page: read(f"http://127.0.0.1:{ui}/{page}") for page in PAGES}
        (application,) = json.loads(read(f"http://127.0.0.1:{ui}/api/v1/applications"))
        for name in ("environment", "sql?details=true"):
            url = f"http://127.0.0.1:{ui}/api/v1/applications/{application['id']}/{name}"
            pages[f"api {name}"] = read(url)
        (scratch,) = temporary.glob("embedstream-*")
        modes = {
            "checkpoint": mode(folder / "checkpoint"),
            "table/_embedstream": mode(folder / "table/_embedstream"),
            "scratch": mode(scratch),
            "model": mode(next(scratch.rglob("*.safetensors"))),
            "known": mode(next(scratch.rglob("*.sqlite3"))),
        }
        assert list(scratch.glob("blockmgr-*"))
        processes = processes_of(driver)
        commands = "\n".join(map(command_line, processes))
        addresses = {address for process in processes for address in listened(process)}
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=120)
        assert driver.returncode == 0, output
    assert list(temporary.iterdir()) == []
    found = check_outcomes(folder / "table", topic.positions()).values()
    return Traces(
        texts={
            **pages,
            "output": output,
            "command lines": commands,
            "spark.log": (folder / "spark.log").read_text(),
            **{str(path): path.read_bytes().decode("latin-1") for path in files(folder)},
        },
        rows={row["key"].decode(): row for row in found},
        modes=modes,
        addresses=addresses,
    )


def listened(process: psutil.Process) -> set[str]:
    connections = process.net_connections("inet")
    return {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}


def secret_config(topic: Topic, site: Site, folder: Path, ui: int) -> Path:
    """A stream with a secret in each section that takes one."""
    path = write_config(topic, folder)
    tree = yaml.safe_load(path.read_text())
    tree["kafka"]["max_offsets_per_trigger"] = 100
    tree["kafka"]["options"] = {
        "kafka.sasl.jaas.config": JAAS,
        "kafka.ssl.truststore.password": "env:SASL_PASSWORD",
    }
    credentials = {"username": "stream", "password": "env:REGISTRY_PASSWORD"}
    tree["message"] = {"registry": {"url": site.url, **credentials}}
    tree["references"] = {
        "schemes": ["http"],
        "hosts": [f"127.0.0.1:{site.port}"],
        "networks": ["127.0.0.0/8"],
        "attempts": 1,
        "max_redirects": 1,
    }
    tree["pipeline"] = {"dedupe": "on"}
    tree["spark"]["options"] = {
        "spark.ui.enabled": "true",
        "spark.ui.port": ui,
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={log_at_info(folder)}",
        "spark.logConf": "true",
        "spark.executorEnv.VENDOR_LICENCE": "env:VENDOR_LICENCE",
        "spark.hadoop.fs.azure.account.key.images": "env:STORE_KEY",
        "spark.hadoop.fs.vendor.licence": "env:VENDOR_LICENCE",
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def log_at_info(folder: Path) -> Path:
    """A configuration of the log: where Python drives Spark, only loggers with a level of their own
    log more than warnings."""
    path = folder / "log4j2.properties"
    path.write_text(
        """
        appender.console.type = Console
        appender.console.name = console
        appender.console.target = SYSTEM_ERR
        appender.console.layout.type = PatternLayout
        appender.console.layout.pattern = %d %p %c{1}: %m%n%ex
        logger.apache.name = org.apache
        logger.apache.level = info
        logger.delta.name = io.delta
        logger.delta.level = info
        rootLogger.level = info
        rootLogger.appenderRef.console.ref = console
        """
    )
    return path


@contextmanager
def running(config: Path, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    driver = subprocess.Popen(
        [sys.executable, "-m", "embedstream", "run", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **ENVIRONMENT, "TMPDIR": str(temporary)},
    )
    try:
        yield driver
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()


def wait_for_commit(folder: Path, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not (folder / "checkpoint/commits/0").exists():
        assert time.monotonic() < deadline, "the stream does not get on"
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as response:
        text: str = response.read().decode()
    return text


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def files(folder: Path) -> list[Path]:
    """Of the checkpoint and the table."""
    return [
        path
        for name in ("checkpoint", "table")
        for path in (folder / name).rglob("*")
        if path.is_file()
    ]
