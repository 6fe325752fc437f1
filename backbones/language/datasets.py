"""Text as a data set of bytes: windows of files, by default of those that ship with Python."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...data import Items, existing_root, held_out, one_of, positive
from ...files import near_files, printable
from ...registry import DATASETS

SUFFIXES = (".md", ".py", ".rst", ".txt")


@DATASETS.register_module()
class TextFiles(Items):
    """Windows of `length + 1` bytes of text files: each byte but the first is one to predict.

    The files of a split are joined in the order of their names, a zero byte behind each. Training items begin
    anywhere, drawn anew in every epoch; test items stand side by side, so that every byte is predicted once (those at
    the end that fill no window are left out).

    Args:
        root: folder, whose files with one of the endings are read, those of folders in it too; or one file, whose first
            part is for training and the rest for the test. None for the modules at the top of Python's own standard
            library: 168 files of 4.7 MB in Python 3.11.
        split: "train" or "test".
        length: number of bytes to predict in a window.
        suffixes: endings of the files that are taken from a folder, in lower case, or one ending.
        test_share: share of the files (of a single file: of its bytes) that is held out for the test. The names of
            files decide which.
        transforms, seed: as of `Items`; an item is dict(tokens=int64 (length + 1,), index=number).

    Attributes:
        text: the bytes of the split, uint8 (M,).

    Raises:
        FileNotFoundError, ValueError: names the argument; there is no such file, or a text shorter than a window.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        length: int = 256,
        suffixes: str | Sequence[str] = SUFFIXES,
        test_share: float = 0.1,
        transforms: Sequence = (),
        seed: int = 0,
    ):
        one_of("TextFiles: split", split, ("train", "test"))
        self.length = positive("TextFiles: length", length)
        suffixes = (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
        self.text = np.frombuffer(_text(root, split, suffixes, test_share), dtype=np.uint8)
        windows = (len(self.text) - 1) // length
        if windows < 1:
            raise ValueError(
                f"TextFiles: length={length} must be below the {len(self.text)} bytes of the {split} text of "
                f"{_shown(root)}"
            )
        super().__init__(split, windows, (), transforms, seed)

    def window(self, start: int) -> dict:
        """The item that begins at a byte."""
        tokens = torch.from_numpy(self.text[start : start + self.length + 1].astype(np.int64))
        return dict(tokens=tokens, index=start // self.length)

    def get(self, item: int) -> dict:
        return self.window(item * self.length)

    def draw(self, epoch: int, item: int) -> dict:
        if self.split == "test":
            return super().draw(epoch, item)
        draw = np.random.default_rng((self.seed, epoch, item))
        return self.transform(self.window(int(draw.integers(len(self.text) - self.length))))


def _shown(root: str | Path | None) -> str:
    return "Python's standard library" if root is None else printable(root)


def _text(root: str | Path | None, split: str, suffixes: tuple[str, ...], test_share: float) -> bytes:
    if not isinstance(test_share, (int, float)) or not 0 < test_share < 1:
        raise ValueError(
            f"TextFiles: test_share={test_share!r} must lie between 0 and 1, so that both splits have text"
        )
    if root is not None and Path(root).expanduser().is_file():
        text = Path(root).expanduser().read_bytes()
        first = round(len(text) * (1 - test_share))
        return text[:first] if split == "train" else text[first:]
    if root is None:
        folder, pattern = Path(sysconfig.get_path("stdlib")), "*.py"
    else:
        if not Path(root).expanduser().exists():
            raise FileNotFoundError(f"TextFiles: root {printable(root)} does not exist. {near_files(Path(root))}")
        folder, pattern = existing_root("TextFiles", root, f"files that end in {' '.join(suffixes)}."), "**/*"
    paths = [
        path for path in folder.glob(pattern) if path.is_file() and path.suffix.lower() in (*suffixes, pattern[1:])
    ]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    if len(files) < 2:
        raise ValueError(
            f"TextFiles: root {_shown(root)} must hold at least two files that end in {' '.join(suffixes)}, one for "
            f"each split, got {len(files)}; a single file may be given itself"
        )
    chosen = held_out(sorted(files), test_share)
    return b"".join(files[name].read_bytes() + b"\0" for name in sorted(files) if (name in chosen) == (split == "test"))
