"""docs/operations.md, and somebody who follows it in the folder of `stream.yaml`."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from embedstream.bulk.replay import Replay
from embedstream.bulk.selection import Selection
from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.config.load import load_config
from embedstream.config.sections import LogConfig, StreamConfig
from embedstream.recovery.doctor import diagnose
from embedstream.recovery.resume import Consent
from embedstream.stream.preflight import check_start
from embedstream_core.errors import Code
from oracle import check_outcomes
from small import send_pictures
from streams import Topic
from streams_by_start import start

__all__ = ["ALERTS", "PAGE", "Operator", "find_block", "list_commands", "quotes"]

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")

ALERTS = re.findall(r"^\| \[(Embedstream\w+)\]\(#([\w-]+)\) \| (\w+)", PAGE, re.MULTILINE)
"""The name, the anchor and the severity of each alert."""


def find_block(mark: str) -> str:
    """The commands after a comment that names them."""
    (found,) = re.findall(rf"<!-- {mark} -->\n *```bash\n(.*?)^ *```$", PAGE, re.M | re.S)
    return "\n".join(line.strip() for line in found.splitlines())


def list_commands(entry: str) -> list[str]:
    """The blocks of commands in an entry of the runbook."""
    return _list_blocks(entry, "bash")


def quotes(entry: str, output: str) -> bool:
    """Whether a line of the output is one that an entry of the runbook quotes."""
    quoted = [line for block in _list_blocks(entry, "text") for line in block.splitlines()]
    patterns = [".*".join(map(re.escape, line.split("…"))) for line in quoted]
    assert patterns
    return any(re.fullmatch(one, line) for one in patterns for line in output.splitlines())


def _list_blocks(entry: str, language: str) -> list[str]:
    (text,) = re.findall(rf"^### {re.escape(entry)}\n(.*?)(?=^### |\Z)", PAGE, re.M | re.S)
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.M | re.S)
    return ["\n".join(line.strip() for line in block.splitlines()) for block in blocks]


@dataclass(frozen=True)
class Operator:
    """Runs the page's commands; those of embedstream in the test's session, to save its start."""

    spark: SparkSession
    topic: Topic
    folder: Path
    capture: pytest.CaptureFixture[str]

    @property
    def config(self) -> StreamConfig:
        return load_config(self.folder / "stream.yaml", ["encoder.precision=float32"])

    @property
    def table(self) -> Path:
        return self.folder / "data" / "table"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "data" / "checkpoint"

    def work(self, messages: int) -> None:
        """Send pictures, and let the stream read them."""
        send_pictures(self.topic, messages)
        self.run("embedstream run stream.yaml")

    def run(self, commands: str) -> str:
        """What the commands print."""
        self.capture.readouterr()
        for part in re.split(r"^(embedstream .*)$", commands, flags=re.MULTILINE):
            if part.startswith("embedstream "):
                _, name, file, *options = shlex.split(part)
                assert file == "stream.yaml"
                with show_log(LogConfig()):
                    self._run_embedstream(name, options)
            else:
                subprocess.run(["bash", "-euc", part], cwd=self.folder, check=True)
        return self.capture.readouterr().out

    def check(self) -> None:
        """Each message has its row."""
        check_outcomes(self.table, self.topic.positions())

    def _run_embedstream(self, name: str, options: list[str]) -> None:
        # A driver that starts has seen nothing yet of the log.
        jvm = self.spark.sparkContext._jvm
        assert jvm is not None
        jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
        config = self.config
        match name, options:
            case "doctor", []:
                for finding in diagnose(self.spark, config):
                    console.print_finding(finding)
            case "check", []:
                check_start(self.spark, config, console.print_finding)
            case "run", ([] | ["--adopt"] | ["--accept-loss"]):
                adopt, loss = "--adopt" in options, "--accept-loss" in options
                start(self.spark, config, adopt=adopt, accept_loss=loss)
            case "replay", ["--code", code]:
                self._replay(Code(code))
            case (("index" | "publish"), []):
                command = [sys.executable, "-m", "embedstream", name, "stream.yaml"]
                done = subprocess.run(
                    command, cwd=self.folder, check=True, capture_output=True, text=True
                )
                console.print_text(done.stdout)
            case _:
                raise AssertionError(f"the page runs {name} {options}")

    def _replay(self, code: Code) -> None:
        checked = check_start(self.spark, self.config, print, Consent(), purpose="replay")
        assert checked is not None
        replay = Replay(
            self.spark,
            self.config,
            checked.models,
            checked.topics,
            kind="replay",
            selection=Selection(codes=(code,)),
        )
        for chunk in replay.plan().chunks:
            replay.run(chunk)
        replay.finish()
