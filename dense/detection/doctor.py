"""What a look at a detector's training finds (see `attlas.doctor`)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import nn

from ...browsing import draw_items
from ...doctor import Finding
from ...files import printable, save_figure

LOOKED_AT = 24  # items that go through the pipeline
SHOWN = 9
MOVES = (  # transforms that cannot be undone
    "RandomCrop", "MinIoURandomCrop", "RandomAffine", "Mosaic", "MixUp", "CachedMosaic", "CachedMixUp", "CopyPaste",
)  # fmt: skip


def examine_data(dataset: Any, model: nn.Module, out: Path | None) -> Iterator[Finding]:
    """Findings about classes, boxes, queries and the pipeline, of a data set of mmdet."""
    classes = dataset.metainfo.get("classes", ())
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    objects = [[entry for entry in info["instances"] if not entry.get("ignore_flag")] for info in infos]
    counts = Counter(entry["bbox_label"] for own in objects for entry in own)
    total, most = sum(counts.values()), max(map(len, objects), default=0)
    crowds = sum(len(info["instances"]) for info in infos) - total
    yield Finding("data", f"{len(infos):,} images, {total:,} objects, {crowds:,} ignored regions (crowds)")
    listed = ", ".join(f"{printable(name, 30)} {counts[label]:,}" for label, name in enumerate(classes[:30]))
    yield Finding("classes", f"{len(classes)}: {listed}{', ...' if len(classes) > 30 else ''}")
    if absent := [printable(name, 30) for label, name in enumerate(classes) if not counts[label]]:
        yield Finding("classes", f"without an object: {', '.join(absent[:10])}", warning=True)
    empty = sum(not own for own in objects)
    yield Finding("objects", f"{total / max(len(infos), 1):.1f} an image, {most} at most; {empty:,} images have none")
    if not total:
        yield Finding("objects", "there is nothing to learn from", warning=True)
        return
    if queries := getattr(model, "num_queries", None):
        yield Finding("queries", f"{queries}, for {most} objects at most", warning=queries < most)
        if len(infos) < 10_000 and not getattr(model, "init_cfg", None):
            yield Finding(
                "queries",
                f"a DETR from scratch hardly learns from {len(infos):,} images: begin with a detector's weights "
                "(load_from)",
            )
    yield from _targets(dataset, infos, out)


def _targets(dataset: Any, infos: list[dict], out: Path | None) -> Iterator[Finding]:
    """Items behind the pipeline: the sizes that the network sees, and whether boxes lie where the file has them."""
    chosen = np.linspace(0, len(infos) - 1, min(LOOKED_AT, len(infos))).astype(int).tolist()
    moves = sorted({type(step).__name__ for step in dataset.pipeline.transforms} & {*MOVES})
    sides, worst = [], 1.0
    for number in chosen:
        item = dataset[number]
        sample, info = item["data_samples"], infos[number]
        boxes = torch.as_tensor(getattr(sample.gt_instances.bboxes, "tensor", sample.gt_instances.bboxes)).float()
        sides += (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt().tolist()
        wanted = torch.tensor([e["bbox"] for e in info["instances"] if not e.get("ignore_flag")]).float().reshape(-1, 4)
        if not moves and len(boxes) and len(wanted):
            overlaps = bbox_overlaps(_undone(boxes, sample.metainfo), wanted).max(1).values
            worst = min(worst, float(overlaps.min()))
    small, middle, large = np.percentile(sides or [0], (5, 50, 95))
    yield Finding(
        "boxes", f"sides as the network sees them: {small:.0f} to {large:.0f} pixels, the median {middle:.0f}"
    )
    if small < 4:
        yield Finding("boxes", "one in twenty has a side below 4 pixels: larger images would show it", warning=True)
    if moves:
        yield Finding("targets", f"not compared with the file, as the pipeline moves them ({', '.join(moves)})")
    else:
        told = f"boxes behind the pipeline overlap those of the file by {worst:.2f} or more, of {len(chosen)} images"
        yield Finding("targets", told, warning=worst < 0.8)
    if out is not None:
        save_figure(draw_items(dataset, chosen[:SHOWN]), out)
        yield Finding("targets", f"drawn in {out}")


def _undone(boxes: torch.Tensor, meta: dict) -> torch.Tensor:
    """Boxes of an item in pixels of its file: flips and scales are undone."""
    boxes, (height, width) = boxes.clone(), meta["img_shape"][:2]
    if meta.get("flip"):
        if meta.get("flip_direction") in ("horizontal", "diagonal"):
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        if meta.get("flip_direction") in ("vertical", "diagonal"):
            boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    scale = meta.get("scale_factor", (1.0, 1.0))
    return boxes / torch.tensor([*scale[:2], *scale[:2]]).float()


@torch.no_grad()
def examine_fit(model: Any, batch: dict) -> Iterator[Finding]:
    """Of the objects of a batch that was learned by heart, how many are found."""
    model.eval()
    data = model.data_preprocessor(batch, False)
    found, total = 0, 0
    for sample in model.predict(data["inputs"], data["data_samples"], rescale=False):
        truth, best = sample.gt_instances, sample.pred_instances
        boxes = torch.as_tensor(getattr(truth.bboxes, "tensor", truth.bboxes)).float()
        overlaps = bbox_overlaps(boxes, best.bboxes.float()) * (truth.labels[:, None] == best.labels)
        found, total = found + int((overlaps > 0.5).any(1).sum()), total + len(boxes)
    yield Finding(
        "one batch", f"{found} of its {total} objects are found, by boxes of their class that overlap by half"
    )
