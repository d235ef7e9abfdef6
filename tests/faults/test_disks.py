"""A disk that is full or no longer writable stops the stream with a sentence; nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from drivers import started, wait_until
from oracle import check_outcomes, read_rows
from small import send_pictures, write_config
from streams import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

MESSAGES = 48

RUN = [sys.executable, "-m", "embedstream", "run"]

GOES_ON = "the stream resumes where it stopped, with no row lost or duplicated"


@dataclass(frozen=True)
class Disk:
    """A small disk, mounted where only what it runs sees it."""

    folder: Path
    holder: subprocess.Popen[str]

    @property
    def seen(self) -> Path:
        """The folder as the test sees it."""
        return Path(f"/proc/{self.holder.pid}/root{self.folder}")

    def mount(self, options: str) -> bool:
        mounting = ["mount", "-o", f"remount,{options}", str(self.folder)]
        return subprocess.run([*self._enter(), *mounting], check=False).returncode == 0

    def running(
        self, config: Path, *arguments: str
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        # Entering the namespace leads to its root folder.
        return started(
            [*self._enter(), "env", f"--chdir={config.parent}", *RUN, str(config), *arguments]
        )

    def run(self, config: Path, *arguments: str) -> tuple[int, str]:
        """Do what the topic holds; return the exit code and the output."""
        with self.running(config, "--available-now", *arguments) as process:
            output, _ = process.communicate(timeout=200)
            return process.returncode, output

    def _enter(self) -> list[str]:
        target = f"--target={self.holder.pid}"
        return ["nsenter", target, "--user", "--mount", "--preserve-credentials"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if shutil.which("unshare") is None:
        pytest.skip("no disk can be mounted here: util-linux is not installed")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = f"mount -t tmpfs -o size=64m none {folder} && echo mounted && exec sleep 600"
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounting],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"no disk can be mounted here: {holder.stderr.read().strip()}")
        yield Disk(folder, holder)
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.long
@pytest.mark.parametrize(
    ("on_disk", "size", "begun"),
    [
        (["table.path", "checkpoint"], "200k", True),
        (["table.path"], "130k", True),
        (["checkpoint"], "72k", True),
        (["table.path", "checkpoint"], "16k", False),
    ],
    ids=["both", "table", "checkpoint", "from the start"],
)
def test_a_full_disk_stops_the_stream_until_there_is_room(
    disk: Disk, topic: Topic, tmp_path: Path, on_disk: Sequence[str], size: str, begun: bool
) -> None:
    send_pictures(topic, MESSAGES)
    config = write_config(topic, tmp_path)
    paths = {key: disk.folder / key for key in on_disk}
    settings = [part for key, path in paths.items() for part in ("--set", f"{key}={path}")]
    disk.mount(f"size={size}")

    stopped, output = disk.run(config, *settings)

    assert stopped == 2, output
    assert any(f"the disk of {key} '{path}' is full" in output for key, path in paths.items())
    assert GOES_ON in output
    assert "Traceback" not in output
    assert ("\nbatch 0 " in output) == begun

    disk.mount("size=64m")
    done, output = disk.run(config, *settings)

    assert done == 0, output
    check_outcomes(table_of(disk, tmp_path, "table.path" in on_disk), topic.positions())


@pytest.mark.long
@pytest.mark.parametrize("key", ["checkpoint", "table.path"])
def test_a_folder_that_is_no_longer_writable_stops_the_stream(
    disk: Disk, topic: Topic, tmp_path: Path, key: str
) -> None:
    send_pictures(topic, MESSAGES)
    config = write_config(topic, tmp_path)
    path = disk.folder / key
    setting = ("--set", f"{key}={path}")
    begun = disk.seen / key / ("commits/0" if key == "checkpoint" else f"_delta_log/{3:020}.json")
    with disk.running(config, *setting) as process:
        wait_until(begun.exists, driver=process)
        # Not while a file is being written.
        wait_until(lambda: disk.mount("ro"), driver=process)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert f"{key} '{path}' can no longer be written: make '{path}' writable" in output
    assert GOES_ON in output
    assert "Traceback" not in output
    assert len(read_rows(table_of(disk, tmp_path, key == "table.path"))) < MESSAGES

    refused, output = disk.run(config, *setting)
    assert refused == 2, output
    assert f"FAIL {key.removesuffix('.path')}" in output
    assert f"{key} '{path}' cannot be written" in output

    disk.mount("rw")
    done, output = disk.run(config, *setting)
    assert done == 0, output
    check_outcomes(table_of(disk, tmp_path, key == "table.path"), topic.positions())


def table_of(disk: Disk, folder: Path, on_disk: bool) -> Path:
    """The table; where it lies on the disk, a copy, for its reader resolves paths by itself."""
    if not on_disk:
        return folder / "table"
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(disk.seen / "table.path", copy)
