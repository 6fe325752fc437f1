"""What a look at a segmentor's training finds (see `attlas.doctor`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...browsing import draw_items
from ...doctor import Finding
from ...files import printable, save_figure
from .maps import IGNORED

LOOKED_AT = 24  # items that go through the pipeline
SHOWN = 9


def examine_data(dataset: Any, out: Path | None) -> Iterator[Finding]:
    """Findings about the labels behind the pipeline, of a data set of mmseg."""
    names = dataset.metainfo.get("classes") or ()
    yield Finding("data", f"{len(dataset):,} images")
    chosen = np.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).astype(int).tolist()
    counts, sizes = np.zeros(256, np.int64), set()
    for number in chosen:
        labels = dataset[number]["data_samples"].gt_sem_seg.data
        counts += np.bincount(labels.flatten().numpy(), minlength=256)[:256]
        sizes.add(tuple(labels.shape[-2:]))
    shares = 100 * counts / max(counts.sum(), 1)
    listed = ", ".join(f"{printable(name, 30)} {shares[label]:.2f} %" for label, name in enumerate(names[:30]))
    told = f"{len(names)}, of the pixels behind the pipeline: {listed}{', ...' if len(names) > 30 else ''}"
    yield Finding("classes", f"{told}; ignored {shares[IGNORED]:.2f} %")
    if absent := [printable(name, 30) for label, name in enumerate(names) if not counts[label]]:
        yield Finding("classes", f"without a pixel in {len(chosen)} items: {', '.join(absent[:10])}", warning=True)
    yield Finding("targets", f"maps behind the pipeline: {', '.join(f'{w} x {h}' for h, w in sorted(sizes)[:5])}")
    if out is not None:
        save_figure(draw_items(dataset, chosen[:SHOWN]), out)
        yield Finding("targets", f"drawn in {out}")


@torch.no_grad()
def examine_fit(model: Any, batch: dict) -> Iterator[Finding]:
    """Of the pixels of a batch that was learned by heart, how many have the right label."""
    model.eval()
    data = model.data_preprocessor(batch, True)  # as in training: images of several sizes are filled up
    whole = dict(img_shape=data["inputs"].shape[-2:])  # the truth is filled up, too
    logits = model.encode_decode(data["inputs"], [sample.metainfo | whole for sample in data["data_samples"]])
    one = logits.shape[1] == 1  # the share of class 1
    found = logits[:, 0].sigmoid() > model.decode_head.threshold if one else logits.argmax(1)
    truth = torch.stack([sample.gt_sem_seg.data[0] for sample in data["data_samples"]])
    labeled = truth != IGNORED
    right = float((found == truth)[labeled].float().mean())
    yield Finding("one batch", f"{100 * right:.1f} % of its labeled pixels get their class")
