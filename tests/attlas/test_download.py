"""Downloads from a server on this machine: whole, broken off, changed, and what is no file."""

import hashlib
import random
import threading

import pytest
import torch
from web import served

from attlas import download

FILE = random.Random(0).randbytes(1 << 20)
SHA256 = hashlib.sha256(FILE).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")
    with served() as server:
        server.files["/a/net.pth"] = FILE
        yield server


def left(path):
    """What lies in the folder of downloads beside the file."""
    return {other.name.removeprefix(path.name) for other in path.parent.iterdir()} - {""}


def test_a_file_is_downloaded_once_and_held_to_its_hash(server):
    url = server.url("/a/net.pth")
    path = download.fetch(url)
    assert path.read_bytes() == FILE
    assert path.parent.name == "checkpoints"
    assert path.name.startswith("net-")
    assert path.suffix == ".pth"
    assert left(path) == {".sha256"}
    assert path.with_name(f"{path.name}.sha256").read_text() == f"{SHA256}  {path.name}\n"
    assert download.fetch(url) == path
    assert len(server.asked) == 1
    path.write_bytes(FILE[:-1] + b"x")
    with pytest.raises(download.DownloadError, match=rf"lies at .*{SHA256[:16]}.* first download.*Remove .*net-"):
        download.fetch(url)


def test_addresses_that_end_alike_are_two_files(server):
    server.files["/b/net.pth"] = b"other"
    first, second = (download.fetch(server.url(f"/{folder}/net.pth")) for folder in "ab")
    assert first.read_bytes() == FILE
    assert second.read_bytes() == b"other"


def test_a_file_that_changed_at_its_address(server):
    path = download.fetch(server.url("/a/net.pth"))
    path.unlink()
    server.files["/a/net.pth"] = b"new"
    with pytest.raises(download.DownloadError, match=r"came with the SHA-256 .* first download.*remove .*\.sha256"):
        download.fetch(server.url("/a/net.pth"))
    assert not path.exists()


@pytest.mark.parametrize("wanted", [SHA256, SHA256[:8]])
def test_a_published_hash(server, wanted):
    assert download.fetch(server.url("/a/net.pth"), sha256=wanted).read_bytes() == FILE
    server.files["/b/net.pth"] = FILE[:-1]
    with pytest.raises(download.DownloadError, match=rf"{wanted[:16]}\.\.\. is the one published"):
        download.fetch(server.url("/b/net.pth"), sha256=wanted)
    assert not download.place(server.url("/b/net.pth")).exists()


def test_a_broken_connection_goes_on_by_itself(server):
    server.cut = [300_000, 200_000]
    assert download.fetch(server.url("/a/net.pth")).read_bytes() == FILE
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=500000-"]


def test_an_interrupted_download_goes_on_at_the_next_call(server):
    url = server.url("/a/net.pth")
    server.cut = [1000, 1000, 1000]
    with pytest.raises(download.DownloadError, match=r"net\.pth stopped after 0\.0 MiB \(the conn.*goes on from there"):
        download.fetch(url)
    path = download.place(url)
    assert left(path) == {".unfinished", ".unfinished.version"}
    assert download.fetch(url).read_bytes() == FILE
    assert server.asked[-1][1] == "bytes=3000-"
    assert left(path) == {".sha256"}


def test_another_version_is_downloaded_from_the_start(server):
    url = server.url("/a/net.pth")
    server.cut = [1000] * download.TRIES
    with pytest.raises(download.DownloadError):
        download.fetch(url)
    server.files["/a/net.pth"] = b"new"
    assert download.fetch(url).read_bytes() == b"new"


def test_what_is_no_file(server):
    server.files["/page.pth"] = b"\n<!DOCTYPE html><html>Sign in</html>"
    server.files["/empty.pth"] = b""
    server.redirects["/file.pth"] = "file:///etc/hostname"
    server.redirects["/plain.pth"] = "http://example.org/net.pth"
    server.redirects["/good.pth"] = server.url("/a/net.pth")
    for path, message in (
        ("/page.pth", r"gives a page \(HTML\).*load_from='FILE'"),
        ("/none.pth", r"the server says 404 \(Not Found\)"),
        ("/empty.pth", "closed early"),
        ("/file.pth", "the server says 302.*not allowed"),
        ("/plain.pth", "leads to http://example.org/net.pth, which is not https"),
    ):
        with pytest.raises(download.DownloadError, match=message):
            download.fetch(server.url(path))
        assert not download.place(server.url(path)).exists()
    assert download.fetch(server.url("/good.pth")).read_bytes() == FILE


@pytest.mark.parametrize(
    "url", ["http://example.org/net.pth", "file:///etc/hostname", "ftp://localhost/a", "https://["]
)
def test_addresses_that_are_refused(url):
    with pytest.raises(download.DownloadError, match="must begin with https://"):
        download.fetch(url)


def test_nobody_answers(server):
    url = server.url("/a/net.pth")
    server.shutdown()
    server.server_close()
    with pytest.raises(download.DownloadError, match="Connection refused"):
        download.fetch(url)


def test_one_of_several_downloads(server):
    """The others wait, and take what it brought."""
    url, found = server.url("/a/net.pth"), []
    threads = [threading.Thread(target=lambda: found.append(download.fetch(url).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [FILE] * 4
    assert len(server.asked) == 1


def test_a_file_that_is_no_checkpoint_says_where_it_came_from(server):
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint(.|\n)*It came from http.*remove .*net-"):
        download.read(server.url("/a/net.pth"))
