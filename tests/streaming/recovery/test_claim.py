"""A claim keeps a second driver out; a claim whose driver is gone does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from embedstream.recovery.claim import HeldClaim
from embedstream.recovery.claim_file import LEASE_S, Claim, ClaimFile, ClaimLost
from embedstream_core.errors import SetupError
from memory_folder import MemoryFolder


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Outage(MemoryFolder):
    """A folder that cannot be written."""

    def replace(self, name: str, text: str) -> None:
        raise OSError("the store is away")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(clock: Clock) -> list[ClaimFile]:
    """Of checkpoint and table."""
    return [ClaimFile(MemoryFolder(location=name), clock) for name in ("checkpoint", "table")]


@pytest.fixture
def foreign(clock: Clock) -> Claim:
    """A claim from another machine."""
    return replace(own(), id="foreign", host="far", machine="another", renewed=clock.now)


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def own(pid: int | None = None) -> Claim:
    return Claim.of_processes([pid or os.getpid()], table="table", checkpoint="checkpoint")


def test_a_claim_is_held_in_both_folders_and_released(files: list[ClaimFile]) -> None:
    claim = own()
    with HeldClaim(files, claim) as held:
        assert [file.read() for file in files] == [claim, claim]
        held.verify()
    assert [file.folder.list_sizes() for file in files] == [{}, {}]


def test_a_second_driver_is_refused_by_name(files: list[ClaimFile]) -> None:
    message = (
        rf"another driver runs: host .*, pid {os.getpid()}, since 20.* UTC, with the checkpoint "
        r"'checkpoint' on the table 'table'; stop it first"
    )
    with HeldClaim(files, own()):
        with pytest.raises(SetupError, match=message), HeldClaim(files, own()):
            pass
        with pytest.raises(SetupError, match=message):
            files[1].read_ended()


def test_a_driver_that_is_refused_one_folder_gives_back_the_other(files: list[ClaimFile]) -> None:
    with HeldClaim(files[1:], own()):
        with pytest.raises(SetupError, match="another driver runs"), HeldClaim(files, own()):
            pass
        assert files[0].read() is None


def test_the_claim_of_a_killed_driver_is_taken_over(
    files: list[ClaimFile], other_process: subprocess.Popen[bytes]
) -> None:
    ended = own(other_process.pid)
    files[0].take(ended)
    with pytest.raises(SetupError, match="another driver runs"):
        files[0].read_ended()

    other_process.kill()
    other_process.wait()

    assert files[0].read_ended() == ended
    with HeldClaim(files, own()):
        pass


def test_a_process_that_reuses_a_pid_is_not_the_driver(files: list[ClaimFile]) -> None:
    claim = own()
    files[0].take(replace(claim, processes={os.getpid(): claim.processes[os.getpid()] - 60}))
    assert files[0].read_ended() is not None


def test_a_claim_of_another_machine_ends_when_it_is_not_renewed(
    files: list[ClaimFile], foreign: Claim, clock: Clock
) -> None:
    files[0].take(foreign)
    clock.now += 30
    with pytest.raises(SetupError, match=r"host far, .*its claim ends in 30 s"):
        files[0].read_ended()
    files[0].renew(foreign)
    clock.now += LEASE_S - 1
    with pytest.raises(SetupError, match="its claim ends in 1 s"):
        files[0].read_ended()

    clock.now += 1

    assert files[0].read_ended() is not None
    with HeldClaim(files, own()):
        pass


def test_a_driver_that_is_quicker_wins(files: list[ClaimFile], foreign: Claim) -> None:
    class Race(MemoryFolder):
        def create(self, name: str, text: str) -> bool:
            ClaimFile(MemoryFolder(location=self.location, files=self.files)).take(foreign)
            return MemoryFolder.create(self, name, text)

    file = replace(files[0], folder=Race(location="checkpoint"))
    with pytest.raises(SetupError, match="another driver runs: host far"):
        file.take(own())
    assert file.read() == foreign


def test_a_driver_that_meets_a_release_tries_again(files: list[ClaimFile]) -> None:
    class Release(MemoryFolder):
        def create(self, name: str, text: str) -> bool:
            return False

    file = replace(files[0], folder=Release(location="checkpoint"))
    with pytest.raises(SetupError, match=r"it removed checkpoint/claim\.json; try again"):
        file.take(own())


def test_a_claim_is_renewed_by_its_thread(files: list[ClaimFile], clock: Clock) -> None:
    with HeldClaim(files, own(), renew_every_s=0.001):
        clock.now += 1000
        deadline = time.monotonic() + 10
        while not all(one and one.renewed == clock.now for one in map(ClaimFile.read, files)):
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_a_driver_whose_claim_was_taken_over_stops_and_leaves_it(
    files: list[ClaimFile], foreign: Claim
) -> None:
    with HeldClaim(files, own()) as held:
        held.renew()
        held.verify()
        files[0].folder.delete("claim.json")
        files[0].take(foreign)
        held.renew()
        with pytest.raises(ClaimLost, match="stopped: another driver has taken over: host far"):
            held.verify()
    assert files[0].read() == foreign
    assert files[1].read() is None


def test_a_driver_whose_claim_was_removed_stops(files: list[ClaimFile]) -> None:
    with HeldClaim(files, own()) as held:
        files[1].folder.delete("claim.json")
        held.renew()
        with pytest.raises(ClaimLost, match=r"the claim table/claim\.json was removed"):
            held.verify()


def test_a_claim_is_lost_once_it_was_not_renewed_for_a_lease(clock: Clock) -> None:
    file = ClaimFile(Outage(location="checkpoint"), clock)
    with HeldClaim([file], own(), monotonic=clock) as held:
        clock.now += LEASE_S
        held.renew()
        held.verify()
        clock.now += 1
        held.renew()
        with pytest.raises(ClaimLost, match="was not renewed for 60 s: the store is away"):
            held.verify()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"processes": []}'])
def test_a_claim_that_cannot_be_read_is_refused(files: list[ClaimFile], text: str) -> None:
    files[0].folder.create("claim.json", text)
    with pytest.raises(SetupError, match=r"checkpoint/claim\.json, the claim of a driver, cannot"):
        files[0].take(own())
