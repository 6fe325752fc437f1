"""What several readers share: lines, tables, natural numbers, polygons as triangles."""

import re
from collections.abc import Sequence

import numpy as np

Arrays = dict[str, np.ndarray]


def natural(word: bytes | str, what: str) -> int:
    """A number of things, as a header writes it; no header is right that needs more than 18 digits."""
    if not re.fullmatch(r"[0-9]{1,18}", word if isinstance(word, str) else word.decode("latin-1")):
        raise ValueError(f"{what} is {word!r}; a natural number was expected")
    return int(word)


def lines_of(content: bytes, comments: bool = False) -> list[bytes]:
    """The lines that hold something, without the space around them, and without comments (# to the line's end)."""
    lines = content.splitlines()
    if comments and b"#" in content:
        lines = [line.partition(b"#")[0] for line in lines]
    return [line for line in map(bytes.strip, lines) if line]


def table_of(lines: Sequence[bytes] | Sequence[str], what: str, delimiter: str | None = None) -> np.ndarray:
    """Lines of numbers, as many in each, as float64 (L, columns)."""
    if not lines:
        return np.empty((0, 0))
    try:
        return np.loadtxt(lines, np.float64, comments=None, delimiter=delimiter, ndmin=2, encoding="latin-1")
    except ValueError as error:
        raise ValueError(f"the {what} are no table of numbers: {str(error).partition(';')[0]}") from error


def integers(table: np.ndarray, what: str) -> np.ndarray:
    if not (np.abs(table) < 2**53).all() or (table != np.rint(table)).any():  # NaN and infinity too
        raise ValueError(f"the {what} are no integers")
    return table.astype(np.int64)


def three_columns(table: np.ndarray, what: str) -> np.ndarray:
    """The first three columns; of no lines, none."""
    if len(table) and table.shape[1] < 3:
        raise ValueError(f"the {what} have {table.shape[1]} numbers; x y z were expected")
    return table[:, :3].reshape(-1, 3)


def fans(sizes: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Triangles (F, 3) of polygons: how many corners each has, and the corners of all, one after the other."""
    if len(sizes) and sizes.min() < 3:
        raise ValueError(f"a face has {sizes.min()} corners; 3 are the fewest")
    triangles = sizes - 2
    first = np.repeat(np.cumsum(sizes) - sizes, triangles)
    step = np.arange(len(first)) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    return np.stack([corners[first], corners[first + step + 1], corners[first + step + 2]], axis=1)


def check_rest(content: bytes, start: int) -> None:
    """What follows the data may be line ends and the zeros that fill a block; no more."""
    if rest := content[start:].strip(b"\0\t\n\r "):
        raise ValueError(f"{len(rest)} bytes are left after what the header declares")
