"""Published weights by variant: where they lie, and how they come here.

weights.csv has one row for a variant at most: a classifier of ImageNet-1k at the variant's size, in names that the
system's rules read. Of several such files it is one that was seen in a list of its host; of these a safetensors file
before others, then the authors' before timm's. It is a collection of what public repositories say; nothing in it was
tried. Columns:

- kind: "direct" if the URL gives the file, "page" if somebody has to fetch it there.
- sha256: of the file, or the beginning of it; empty where none is published.
- task, top1, licence, source (whose file it is), note: as published, empty where nothing was.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .. import download


@dataclass(frozen=True)
class Weights:
    """A row of weights.csv without its variant; the columns are explained above."""

    kind: str
    url: str
    sha256: str
    task: str
    top1: str
    licence: str
    source: str
    note: str


@cache
def weights() -> dict[str, Weights]:
    """The published weights of every variant that has some, by its name."""
    with Path(__file__).with_name("weights.csv").open(encoding="utf-8", newline="") as file:
        return {row.pop("variant"): Weights(**row) for row in csv.DictReader(file)}


def find(name: str, relatives: Iterable[str] = ()) -> Weights:
    """The weights of a variant that can be downloaded.

    Args:
        name: the variant.
        relatives: variants of its system, which an error names if they have weights.

    Raises:
        ValueError: there is no such file; says what there is.
    """
    found = weights().get(name)
    if found is None:
        others = [other for other in relatives if other in weights() and weights()[other].kind == "direct"]
        raise ValueError(
            f"No published weights of {name} are known for pretrained=True; a file goes in by pretrained='FILE'. "
            + (
                f"Of its system these have some: {', '.join(others)}."
                if others
                else "Its system has none that a program can fetch."
            )
        )
    if found.kind == "page":
        raise ValueError(
            f"The weights of {name} cannot be fetched by a program. Download them in a browser from {found.url} "
            f"and give the file: pretrained='FILE'. {found.note}".strip()
        )
    return found


def read(name: str) -> dict:
    """What the published file of a variant holds. It is downloaded the first time (see `attlas.download`).

    Raises:
        ValueError: there is no file that could be downloaded; says what there is. Or it is no checkpoint.
        DownloadError: the download failed; says why, and what to do.
    """
    found = find(name)
    suffix = Path(found.url.partition("?")[0]).suffix
    label = f"{name} ({found.url})"
    try:
        return download.read(found.url, name=f"{name}{suffix}", sha256=found.sha256, label=label, option="pretrained")
    except download.DownloadError as error:
        raise download.DownloadError(f"{error} {found.note}".strip()) from None
