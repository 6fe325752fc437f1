"""Files from the web: each is fetched once, an interrupted download goes on where it stopped, and a file is held to its
SHA-256 from then on.

They lie where torch.hub keeps its own, in `$TORCH_HOME/hub/checkpoints`. Beside FILE stands FILE.sha256, which
`sha256sum -c` reads. FILE.unfinished is the part that has come so far, and FILE.unfinished.version what the server
calls the version that it is of: a download goes on only with the same one. Of several processes one downloads, while
the others wait.
"""

import hashlib
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

import torch
from mmengine.logging import print_log

from . import checkpoint
from .files import NoRoom, no_room, printable, replacing

TRIES = 3  # of one download, each of which goes on where the one before stopped
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18


class DownloadError(OSError):
    """A file could not be had from the web. Its text is for the user."""


def read(
    source: str | Path,
    map_location: Any = "cpu",
    name: str | None = None,
    sha256: str = "",
    label: str | None = None,
    option: str = "load_from",
) -> dict:
    """What a checkpoint holds, in a file or at a URL, as `attlas.checkpoint.read` gives it.

    Args:
        source: path of a file, or a URL.
        map_location: as of `attlas.checkpoint.read`.
        name, sha256, label, option: as of `fetch`.

    Raises:
        DownloadError: as of `fetch`.
        ValueError: the file is no checkpoint, or would have to be unpickled; says where it came from.
        FileNotFoundError, IsADirectoryError: as of `attlas.checkpoint.read`.
    """
    url = str(source)
    if not url.startswith(("https://", "http://")):
        return checkpoint.read(source, map_location)
    path = fetch(url, name, sha256, label, option)
    try:
        return checkpoint.read(path, map_location)
    except ValueError as error:
        raise ValueError(
            f"{error}\nIt came from {label or printable(url)}. To have it downloaded again, remove {path}."
        ) from None


def fetch(
    url: str, name: str | None = None, sha256: str = "", label: str | None = None, option: str = "load_from"
) -> Path:
    """The file at a URL, downloaded unless it is there already.

    Args:
        url: an https address; http for this machine itself. No redirection leads elsewhere.
        name: name of the file, that of the address by default. Digits of the address follow it: two addresses that end
            alike, as in model.safetensors, are two files.
        sha256: what the file must have, or how that begins; "" for what it had when it was first downloaded.
        label: what messages call the file; the address by default.
        option: argument that takes a path in place of the address, for messages.

    Raises:
        DownloadError: the address is refused or out of reach, there is a page (HTML) or nothing, the download stopped,
            or the file is another one than it was; says what to do.
        NoRoom: the disk is full.
    """
    label = label or printable(url)
    instead = f"give the path of the file: {option}='FILE'."
    if not _trusted(url):
        raise DownloadError(
            f"{label} must begin with https://, since nothing tells who answers to another address. To use it all the "
            f"same, download it yourself and {instead}"
        )
    path = place(url, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and _download(url, path, sha256, label, instead):
            return path
        _hold(path, _sha256(path), sha256, f"{label} lies at {path}", f"Remove {path} to have it downloaded again.")
    except OSError as error:
        if reason := no_room(error):
            raise NoRoom(f"{path} could not be written: {reason}. The next try goes on from what is there.") from error
        raise
    return path


def place(url: str, name: str | None = None) -> Path:
    """Where `fetch` keeps the file of a URL."""
    name = name or unquote(urlsplit(url).path).rpartition("/")[2]
    name = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "download"
    stem, dot, suffix = name.rpartition(".")
    digits = hashlib.sha256(url.encode()).hexdigest()[:8]
    return Path(torch.hub.get_dir()) / "checkpoints" / (f"{stem}-{digits}.{suffix}" if dot else f"{name}-{digits}")


def _trusted(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and local))


# --- hashes ----------------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hold(path: Path, found: str, wanted: str, what: str, remedy: str) -> None:
    """Compare the hash of a file with the published one and the recorded one; where none is recorded, record it."""
    record = _beside(path, "sha256")
    recorded = record.read_text().partition(" ")[0].strip() if record.exists() else ""
    for known, origin in ((wanted, "published"), (recorded, "of its first download")):
        if not found.startswith(known):
            raise DownloadError(
                f"{what} with the SHA-256 {found[:16]}..., and {known[:16]}... is the one {origin}: it was changed or "
                f"damaged. {remedy}"
            )
    if not recorded:
        with replacing(record) as temporary:
            temporary.write_text(f"{found}  {path.name}\n")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


# --- transfer --------------------------------------------------------------------------------------------------------


def _download(url: str, path: Path, sha256: str, label: str, instead: str) -> bool:
    """Download to `path`, or find that another process has done so meanwhile, which gives False."""
    part, version = _beside(path, "unfinished"), _beside(path, "unfinished.version")
    with _locked(part) as file:
        if path.exists():
            part.unlink()
            return False
        print_log(f"Downloading {label} to {path}", logger="current")
        for left in reversed(range(TRIES)):
            try:
                _transfer(url, file, version, label)
                break
            except HTTPError as error:
                if error.code == 416:  # what is here is no beginning of what is there
                    file.truncate(0)
                if error.code != 416 or not left:
                    raise DownloadError(
                        f"{label} cannot be downloaded: the server says {error.code} ({printable(error.reason)}). If "
                        f"you have it from elsewhere, {instead}"
                    ) from None
            except _Page:
                file.truncate(0)
                raise DownloadError(
                    f"{label} gives a page (HTML), not the file. Open the address in a browser, save the file, and "
                    f"{instead}"
                ) from None
            except (OSError, HTTPException) as error:
                if isinstance(error, DownloadError) or no_room(error):
                    raise
                if not left:
                    reason = printable(getattr(error, "reason", None) or error or type(error).__name__)
                    have = file.seek(0, os.SEEK_END) / 2**20
                    raise DownloadError(
                        f"{label} stopped after {have:.1f} MiB ({reason}). Try again, and the download goes on from "
                        f"there; or {instead}"
                    ) from None
        file.flush()
        os.fsync(file.fileno())
        try:
            remedy = f"If the new one is to be used, remove {_beside(path, 'sha256')}."
            _hold(path, _sha256(part), sha256, f"{label} came", remedy)
        except DownloadError:
            file.truncate(0)
            raise
        os.replace(part, path)
        version.unlink(missing_ok=True)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The file, open for appending, while no other process has it so. It waits for those that have."""
    import fcntl  # here, because Windows has none

    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:  # the process before renamed it
                same = False
            if same:
                yield file
                return


class _Page(Exception):
    """The server gave a page for people."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not _trusted(newurl):
            raise DownloadError(f"{printable(req.full_url)} leads to {printable(newurl)}, which is not https.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer(url: str, file: IO[bytes], version: Path, label: str) -> None:
    """Append to a file what it lacks, if the server still has the version that its beginning is of; else all of it."""
    have = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": "attlas", "Accept-Encoding": "identity"})
    if have and version.exists() and (known := version.read_text()):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)
    with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not goes_on:
            file.truncate(have := 0)
            if answer.status != 200:
                raise ConnectionError(f"the server answered {answer.status}")
            tag = answer.headers.get("ETag", "")
            version.write_text(answer.headers.get("Last-Modified", "") if tag.startswith("W/") else tag)
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with _progress(label, have, total) as advance:
            while block := answer.read(BLOCK):
                if not have and block.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
                    raise _Page
                file.write(block)
                have += len(block)
                advance(len(block))
    if have == 0 or (total is not None and have != total):
        raise ConnectionError("the connection was closed early")


@contextmanager
def _progress(label: str, have: int, total: int | None) -> Iterator[Callable[[int], Any]]:
    """What is to be told of every number of bytes: a progress bar on a terminal, nothing elsewhere."""
    if not sys.__stdout__ or not sys.__stdout__.isatty():
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("download"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task(label, total=total, completed=have)
        yield lambda count: bar.advance(task, count)
