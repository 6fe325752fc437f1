"""What the commands of several groups share."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Commands = Any  # what argparse's `add_subparsers` gives
Draw = Callable[[argparse.Namespace], Any]  # gives a figure, or None after a window was closed


def command(
    commands: Commands,
    name: str,
    draw: Draw,
    help: str,
    config: str | None = None,
    checkpoint: str | None = None,
    window: bool = False,
) -> argparse.ArgumentParser:
    """The parser of a command.

    Args:
        config, checkpoint: None for a command without, "" for one that needs it, "?" for one that may do without.
    """
    sub = commands.add_parser(name, help=help)
    if config is not None:
        sub.add_argument("config", type=Path, nargs=config or None)
        if checkpoint is not None:
            sub.add_argument("checkpoint", type=Path, nargs=checkpoint or None)
        source = sub.add_mutually_exclusive_group(required=True)
        source.add_argument("--item", type=int, help="number of a shape of the test data")
        source.add_argument("--file", type=Path, help="a mesh or a cloud")
        eye(sub)
    target = sub.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="the picture to write")
    if window:
        target.add_argument("--window", action="store_true")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    sub.set_defaults(draw=draw)
    return sub


def eye(sub: argparse.ArgumentParser) -> None:
    """The options by which a shape is looked at."""
    sub.add_argument("--up", choices=("y", "z"), default="y", help="the axis that points up in the shape (y)")
    sub.add_argument("--azimuth", type=float, default=30, metavar="DEGREES", help="of the eye, of a shape (30)")
    sub.add_argument("--elevation", type=float, default=20, metavar="DEGREES", help="of the eye, of a shape (20)")


def detector(commands: Commands, name: str, draw: Draw, help: str, several: bool = False) -> argparse.ArgumentParser:
    """The parser of a command that asks a network of a config and a checkpoint."""
    sub = command(commands, name, draw, help)
    sub.add_argument("config", type=Path)
    sub.add_argument("checkpoint", type=Path, nargs="+" if several else None)
    return sub


def against(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--against", type=opponent, nargs="+", default=[], metavar="NAME=CONFIG:CHECKPOINT", help="other networks"
    )


def named(text: str) -> tuple[str, Path]:
    """A path, and the name before the first equals sign; "" where there is none, or where it is inside the path."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or os.sep in name:
        return "", Path(text)
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text}: [NAME=]CHECKPOINT was expected.")
    return name, Path(path)


def opponent(text: str) -> tuple[str, Path, Path]:
    name, equals, paths = text.partition("=")
    config, colon, checkpoint = paths.rpartition(":")
    if not (name and equals and config and colon and checkpoint):
        raise argparse.ArgumentTypeError(f"{text}: NAME=CONFIG:CHECKPOINT was expected.")
    return name, Path(config), Path(checkpoint)


def check_names(first: str, args: argparse.Namespace) -> None:
    """ValueError where two networks of a picture have one name."""
    names = [first, *(name for name, _, _ in args.against)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--name and --against name {names.count(name)} networks {name!r}; name each otherwise")
