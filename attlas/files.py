"""Writing files so that a reader, or a kill, never meets a half-written one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

PICTURES = (".png", ".pdf", ".svg")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. When the block ends well, what was written there becomes `path` at once;
    when it raises, nothing is left behind and an older `path` stays as it was.

    The temporary name ends like `path`, because some writers go by the suffix or append one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def printable(text: object, most: int = 200) -> str:
    """What a file says, as text for a terminal: on one line, cut, and without the characters that a terminal obeys."""
    shown = str(text)
    shown = shown if len(shown) <= most else f"{shown[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
