"""Writing files so that a reader, or a kill, never meets a half-written one."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

PICTURES = (".png", ".pdf", ".svg")


def cache_folder() -> Path:
    """Where Attlas keeps what it can make again: $ATTLAS_CACHE, or ~/.cache/attlas."""
    return Path(os.environ.get("ATTLAS_CACHE") or "~/.cache/attlas").expanduser()


class NoRoom(OSError):
    """A file could not be written because the disk is full or a limit was reached. Its text is for the user."""


def no_room(error: Exception) -> str | None:
    """What an error says of a full disk, a quota or a limit on the size of files; None for any other error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
    # the writers of safetensors and PyTorch raise errors of their own, the latter's without the system's reason
    if re.search(r"PytorchStreamWriter failed|unexpected pos \d+", str(error)):
        return "the disk took no more"
    found = re.search(r"No space left on device|Disk quota exceeded|File too large", str(error))
    return found and found[0]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. When the block ends well, what was written there becomes `path` at once;
    when it raises, nothing is left behind and an older `path` stays as it was. A loss of power, too, leaves the one or
    the other: the contents are on the disk before the name is, and the name before this returns.

    The temporary name ends like `path`, because some writers go by the suffix or append one. After a kill `sweep`
    removes it.

    Raises:
        NoRoom: the disk is full; names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.unfinished{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except Exception as error:
        named = getattr(error, "filename", None)
        if not (reason := no_room(error)) or (named and Path(named).name != temporary.name):
            raise
        raise NoRoom(f"{path} could not be written: {reason}. What was there before is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk, where the file system can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # of a folder that may be changed, but not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def sweep(folder: str | Path) -> list[Path]:
    """Remove what `replacing` left in a folder when its process was killed, and give what was removed.

    The files of processes that run stay. Those under the number of this process count as left over: call it where
    nothing is being written (in a container every training may be process 7).
    """
    found = []
    for path in Path(folder).glob(".*.unfinished*"):
        name = re.fullmatch(r"\..+\.(\d{1,9})\.unfinished(\.[^.]*)?", path.name)
        if name and path.is_file() and not _runs(int(name[1])):
            path.unlink(missing_ok=True)
            found.append(path)
    return found


def _runs(process: int) -> bool:
    """Whether another process has this number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True


def check_out(out: str | Path, suffixes: tuple[str, ...], overwrite: bool = False) -> Path:
    """The path of a file that a tool may write (its --out and --overwrite).

    Raises:
        ValueError: the name ends in none of `suffixes`.
        FileExistsError: the file exists, and `overwrite` is not set.
    """
    path = Path(out).expanduser()
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. To replace it: --overwrite.")
    return path


def save_figure(figure: Any, path: Path) -> None:
    """Write a Matplotlib figure."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", pad_inches=0.08)


def near_files(path: Path, count: int = 5) -> str:
    """Name the files that somebody who typed `path`, which does not exist, may have meant (for an error message)."""
    from difflib import get_close_matches

    folder = path.absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    places = folder.rglob(f"*{path.suffix}") if folder != Path(folder.anchor) else iter(())
    found = [str(place) for place in islice(places, 5000)]  # a home folder holds more than anybody waits for
    near = get_close_matches(str(path.absolute()), found, n=count, cutoff=0.6)
    if not near:
        return f"The nearest folder that exists is {printable(folder)}."
    here = Path.cwd()
    shown = (Path(name).relative_to(here) if Path(name).is_relative_to(here) else name for name in near)
    return f"Near it: {', '.join(map(printable, shown))}."


def near_folders(path: Path, count: int = 5) -> str:
    """Name the folders that somebody who typed `path`, of a folder that does not exist, may have meant (for an error
    message)."""
    from difflib import get_close_matches

    wanted = path.absolute()
    while not wanted.parent.is_dir():
        wanted = wanted.parent
    with os.scandir(wanted.parent) as entries:
        here = {entry.name.lower(): entry.name for entry in islice(entries, 5000) if entry.is_dir()}
    near = get_close_matches(wanted.name.lower(), here, n=count, cutoff=0.6)
    if not near:
        return f"The nearest folder that exists is {printable(wanted.parent)}."
    return f"Near it: {', '.join(printable(wanted.parent / here[name]) for name in near)}."


def console() -> Any:
    """A console of rich for tables. It is as wide as the terminal; in a file or a pipe, of which nobody knows a width,
    200 columns, so that no word is cut."""
    from rich.console import Console  # not for kernels alone

    return Console(width=None if sys.stdout.isatty() else 200)


def printable(text: object, most: int = 200) -> str:
    """What a file says, as text for a terminal: on one line, cut, and without the characters that a terminal obeys."""
    shown = str(text)
    shown = shown if len(shown) <= most else f"{shown[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
