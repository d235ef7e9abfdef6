"""Ways out of the allowed folder, and paths that are not regular files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from embedstream_core.errors import Code, ItemError
from embedstream_core.fetch import file
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.fetch.limits import Deadline
from embedstream_core.settings import FetchPolicy
from fetch_places import FilePlace, code_of


def content_of(uri: str, policy: FetchPolicy) -> bytes:
    with open_fetcher(policy) as fetcher:
        return fetcher.fetch(uri)


@pytest.mark.parametrize(
    "way", ["../outside", "%2e%2e/outside", "..%2foutside", "x/../../outside", "%2E%2E%2Foutside"]
)
def test_dots_do_not_leave_the_folder(file_place: FilePlace, way: str) -> None:
    file_place.outside()
    uri = f"file://{file_place.folder}/{way}"
    assert code_of(uri, file_place.policy) is Code.REFERENCE_DENIED


def test_a_folder_whose_name_only_begins_alike_is_denied(file_place: FilePlace) -> None:
    (file_place.root / "allowed-not").write_bytes(b"secret")
    uri = f"file://{file_place.folder}-not"
    assert code_of(uri, file_place.policy) is Code.REFERENCE_DENIED


@pytest.mark.parametrize("target", ["outside", "missing"])
def test_a_link_out_is_denied_whether_its_target_exists_or_not(
    file_place: FilePlace, target: str
) -> None:
    file_place.outside()
    (file_place.folder / "link").symlink_to(file_place.root / target)
    uri = f"file://{file_place.folder}/link"
    assert code_of(uri, file_place.policy) is Code.REFERENCE_DENIED


def test_a_link_inside_is_followed(file_place: FilePlace) -> None:
    file_place.put("picture", b"bytes")
    (file_place.folder / "link").symlink_to("picture")
    assert content_of(f"file://{file_place.folder}/link", file_place.policy) == b"bytes"


@pytest.mark.parametrize("given", ["allowed", "alias"])
def test_the_error_of_a_link_out_names_the_folder_to_allow(
    file_place: FilePlace, given: str
) -> None:
    """The cache of Hugging Face's hub has such links: snapshots/abc/a.png -> ../../blobs/1."""
    blobs = file_place.root / "blobs"
    blobs.mkdir()
    (blobs / "1").write_bytes(b"bytes")
    (file_place.folder / "a.png").symlink_to("../blobs/1")
    (file_place.folder / "step").symlink_to("../blobs")
    (file_place.root / "alias").symlink_to("allowed")
    policy = replace(file_place.policy, folders=(file_place.root / given,))
    for name in ("a.png", "step/1"):
        uri = f"file://{file_place.root / given}/{name}"
        with pytest.raises(ItemError) as caught:
            content_of(uri, policy)
        assert caught.value.code is Code.REFERENCE_DENIED
        said = caught.value.message
        assert f"link, or behind one, that leads out of the allowed folder to '{blobs}/1'" in said
        assert f"allow '{blobs}' as well" in said
        both = replace(policy, folders=(*policy.folders, blobs))
        assert content_of(uri, both) == b"bytes"


def test_a_file_outside_without_a_link_is_not_called_a_link(file_place: FilePlace) -> None:
    file_place.outside()
    for uri in (f"file://{file_place.root}/outside", f"file://{file_place.folder}/../outside"):
        with pytest.raises(ItemError, match="the file is not in an allowed folder") as caught:
            content_of(uri, file_place.policy)
        assert "link" not in caught.value.message


def test_one_file_can_be_allowed(file_place: FilePlace) -> None:
    one, other = file_place.put("one.jpg", b"one"), file_place.put("other.jpg", b"other")
    longer = file_place.put("one.jpg.bak", b"longer")
    policy = replace(file_place.policy, folders=(file_place.folder / "one.jpg",))
    assert content_of(one, policy) == b"one"
    for uri in (other, longer, f"file://{file_place.folder}"):
        assert code_of(uri, policy) is Code.REFERENCE_DENIED


def test_one_allowed_file_may_be_a_link_and_no_link_may_take_its_place(
    file_place: FilePlace,
) -> None:
    file_place.outside()
    uri = file_place.put("one.jpg", b"one")
    (file_place.root / "alias.jpg").symlink_to("allowed/one.jpg")
    policy = replace(file_place.policy, folders=(file_place.root / "alias.jpg",))
    with open_fetcher(policy) as fetcher:
        assert fetcher.fetch(f"file://{file_place.root}/alias.jpg") == b"one"
        assert fetcher.fetch(uri) == b"one"
        (file_place.folder / "one.jpg").unlink()
        (file_place.folder / "one.jpg").symlink_to("../outside")
        with pytest.raises(ItemError) as caught:
            fetcher.fetch(uri)
    assert caught.value.code is Code.REFERENCE_DENIED


@pytest.mark.parametrize(
    "uri",
    [
        "file://[2024]/a.png",
        "file://[",
        "file://]",
        "file://[::1]/a.png",
        "file:///[",
        "file://\u2100/a.png",
        "file:a.png",
        "file:",
        "file:////",
        "file:///" + "a/" * 8_000,
        "file:///" + "a" * 300,
        "file:///%ff%00",
    ],
)
def test_malformed_references_are_failures(file_place: FilePlace, uri: str) -> None:
    assert code_of(uri, file_place.policy) is Code.REFERENCE_DENIED
    assert code_of(uri, replace(file_place.policy, folders=(Path("/"),))) in (
        Code.REFERENCE_DENIED,
        Code.REFERENCE_NOT_FOUND,
        Code.REFERENCE_UNREADABLE,
    )


@pytest.mark.parametrize("name", ["[2024]", "a[1].png", "]["])
def test_brackets_in_a_path_are_names(file_place: FilePlace, name: str) -> None:
    assert content_of(file_place.put(name, b"bytes"), file_place.policy) == b"bytes"


def test_a_link_as_allowed_folder_is_followed(file_place: FilePlace) -> None:
    file_place.put("picture", b"bytes")
    alias = file_place.root / "alias"
    alias.symlink_to(file_place.folder)
    policy = replace(file_place.policy, folders=(alias,))
    assert content_of(f"file://{alias}/picture", policy) == b"bytes"


def test_links_in_a_circle(file_place: FilePlace) -> None:
    (file_place.folder / "a").symlink_to("b")
    (file_place.folder / "b").symlink_to("a")
    assert code_of(f"file://{file_place.folder}/a", file_place.policy) is Code.REFERENCE_DENIED


@pytest.mark.parametrize("swapped", ["step", "step/picture"])
def test_a_link_put_there_after_the_check_is_refused(
    file_place: FilePlace, swapped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file_place.root / "picture").write_bytes(b"secret")
    (file_place.folder / "step").mkdir()
    uri = file_place.put("step/picture", b"bytes")
    source = file.FileSource(file_place.policy)
    resolve = os.path.realpath

    def resolve_then_swap(path: str) -> str:
        resolved = resolve(path)
        victim = file_place.folder / swapped
        victim.rename(file_place.root / "moved")
        target = file_place.root if swapped == "step" else file_place.root / "picture"
        victim.symlink_to(target)
        return resolved

    monkeypatch.setattr(os.path, "realpath", resolve_then_swap)
    with pytest.raises(ItemError) as caught:
        source.fetch(uri, Deadline(5))
    assert caught.value.code in (Code.REFERENCE_DENIED, Code.REFERENCE_NOT_FOUND)


def test_a_pipe_does_not_block(file_place: FilePlace) -> None:
    os.mkfifo(file_place.folder / "pipe")
    uri = f"file://{file_place.folder}/pipe"
    assert code_of(uri, file_place.policy) is Code.REFERENCE_UNREADABLE


@pytest.mark.parametrize("name", ["zero", "null"])
def test_devices_are_refused(name: str) -> None:
    policy = FetchPolicy(folders=(Path("/dev"),))
    assert code_of(f"file:///dev/{name}", policy) is Code.REFERENCE_UNREADABLE


@pytest.mark.parametrize("way", ["", "/", "/step"])
def test_folders_are_refused(file_place: FilePlace, way: str) -> None:
    (file_place.folder / "step").mkdir()
    uri = f"file://{file_place.folder}{way}"
    assert code_of(uri, file_place.policy) is Code.REFERENCE_UNREADABLE


def test_a_file_below_a_file_is_not_found(file_place: FilePlace) -> None:
    uri = file_place.put("picture", b"bytes") + "/more"
    assert code_of(uri, file_place.policy) is Code.REFERENCE_NOT_FOUND


def test_a_file_that_claims_no_size_is_still_limited() -> None:
    policy = FetchPolicy(folders=(Path("/proc/self"),), max_bytes=10)
    uri = f"file://{Path('/proc/self').resolve()}/status"
    assert code_of(uri, policy) is Code.REFERENCE_TOO_LARGE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(file_place: FilePlace) -> None:
    uri = file_place.put("picture", b"bytes")
    (file_place.folder / "picture").chmod(0)
    assert code_of(uri, file_place.policy) is Code.REFERENCE_UNREADABLE


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
def test_localhost_is_this_host(file_place: FilePlace, host: str) -> None:
    uri = file_place.put("picture", b"bytes").replace("file://", f"file://{host}")
    assert content_of(uri, file_place.policy) == b"bytes"


@pytest.mark.parametrize("start", ["file://server", "file://127.0.0.1"])
def test_other_hosts_are_denied(file_place: FilePlace, start: str) -> None:
    uri = file_place.put("picture", b"bytes").replace("file://", start)
    assert code_of(uri, file_place.policy) is Code.REFERENCE_DENIED


@pytest.mark.parametrize("end", ["?x", "#x", "%00"])
def test_ambiguous_names_are_denied(file_place: FilePlace, end: str) -> None:
    uri = file_place.put("picture", b"bytes") + end
    with (
        open_fetcher(file_place.policy) as fetcher,
        pytest.raises(ItemError, match=r"in a file reference|must not contain %00") as caught,
    ):
        fetcher.fetch(uri)
    assert caught.value.code is Code.REFERENCE_DENIED


@pytest.mark.parametrize(
    ("name", "written"),
    [(b"a b", "a%20b"), (b"a#b?", "a%23b%3F"), (b"\xff", "%FF"), ("ü".encode(), "ü")],
)
def test_any_name_can_be_written(file_place: FilePlace, name: bytes, written: str) -> None:
    (file_place.folder / os.fsdecode(name)).write_bytes(b"bytes")
    assert content_of(f"file://{file_place.folder}/{written}", file_place.policy) == b"bytes"


def test_no_descriptor_is_left_open(file_place: FilePlace) -> None:
    uris = [file_place.put("picture", b"bytes"), file_place.missing()]
    with open_fetcher(file_place.policy) as fetcher:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for uri in uris * 5:
            try:
                fetcher.fetch(uri)
            except ItemError:
                continue
        assert len(list(Path("/proc/self/fd").iterdir())) == before
