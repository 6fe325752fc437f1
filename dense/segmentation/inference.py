"""How a segmentor is asked (see `attlas.inference`)."""

import copy
from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.dataset import Compose, pseudo_collate

from ...backbones.classification.inference import ImageClassification, class_number
from ...data import drawn
from ...drawing import draw_regions, palette
from ...files import printable, replacing
from ...images import encode_map
from ...tasks import ModelError, Task
from ..masks import decoded, encoded
from ..transforms import ReadImage, seen_pixels
from . import doctor
from .export import ExportedSegmentor
from .maps import IGNORED, ReadMap

TITLE = 80  # letters of a line above a picture, which is half of a figure


class Segmentation(Task):
    """Image files, and arrays uint8 (H, W, 3), red, green, blue, or grey (H, W). A result has the `classes` that are in
    the image, a list of dict(label, name, share of its pixels, mask (RLE of COCO)), the largest first. `label_map`
    makes a map of them. Whole images or windows, as `test_cfg` of the model says."""

    suffixes = ImageClassification.suffixes
    top = 255
    exports = (".onnx", ".pt2")

    def read(self, path):
        return self._as_results(ReadImage().transform(dict(img_path=str(path))))

    def take(self, source):
        image = ImageClassification().take(source)["image"]
        size = image.shape[:2]
        return self._as_results(dict(img=image[..., ::-1].copy(), img_path=None, img_shape=size, ori_shape=size))

    @staticmethod
    def _as_results(results: dict) -> dict:
        return results | dict(seg_fields=[], reduce_zero_label=False)

    def prepare(self, transforms):
        loading = (LoadImageFromFile, LoadAnnotations, ReadImage, ReadMap)
        return Compose([step for step in transforms.transforms if not isinstance(step, loading)])

    def form(self, item):
        return tuple(item["inputs"].shape)

    def result(self, prediction, source, classes, top):
        if not torch.isfinite(prediction.seg_logits.data).all():
            raise ValueError("the network gives NaN or infinite numbers for it")
        labels = prediction.pred_sem_seg.data[0].long().cpu().numpy()  # of one channel it is a float
        kinds, counts = np.unique(labels, return_counts=True)
        if classes and kinds[-1] >= len(classes):
            raise ModelError(f"There are names of {len(classes)} classes, and a pixel is of {kinds[-1]}.")
        order = counts.argsort(kind="stable")[::-1][:top]
        return dict(
            classes=[
                dict(
                    label=int(kinds[i]),
                    name=classes[kinds[i]] if classes else f"class {kinds[i]}",
                    share=counts[i] / labels.size,
                    mask=encoded(labels == kinds[i]),
                )
                for i in order
            ]
        )

    def said(self, result):
        return ", ".join(f"{printable(c['name'])} {100 * c['share']:.1f} %" for c in result["classes"])

    def examine(self, dataset, model, out):
        yield from doctor.examine_data(dataset, out)

    def examine_fit(self, model, batch):
        yield from doctor.examine_fit(model, batch)

    def question(self, model, source, target):
        """Targets are CLASS, its mean logit over the pixels that have this label, and CLASS@ROW,COLUMN, its logit at a
        pixel of what the network sees; classes by name or number. By default the label of the most pixels."""
        from ...backbones.inspection.targets import Question
        from .explanation import Logits, pixel_logit, region_logit

        data = drawn(model.transforms, copy.deepcopy(source), "the image", 0)
        batch = model.data_preprocessor(pseudo_collate([data]), False)["inputs"]
        network = Logits(model)
        with torch.no_grad():
            logits = network(batch)
        labels, count = logits.argmax(1), logits.shape[1]
        what, at, place = ("" if target is None else target).partition("@")
        number = int(labels.flatten().mode().values) if not what else class_number(what, model.classes, count)
        name = printable(model.classes[number]) if model.classes else f"class {number}"
        picture = seen_pixels(model, batch[0])
        if at:
            row, comma, column = place.partition(",")
            if not (comma and row.strip().isdecimal() and column.strip().isdecimal()):
                raise ValueError(f"target {printable(target)!r} must be CLASS or CLASS@ROW,COLUMN")
            y, x = int(row), int(column)
            said, box = f"{name} at {y}, {x}", (x - 1.0, y - 1.0, x + 2.0, y + 2.0)
            return Question(network, (batch,), pixel_logit(number, y, x), said, picture, box)
        if not bool((labels == number).any()):
            raise ValueError(f"no pixel has the label {name}; ask about one pixel, {name}@ROW,COLUMN")
        return Question(network, (batch,), region_logit(number, labels == number), f"{name} where it is", picture)

    def exportable(self, model, steps):
        return ExportedSegmentor(model, steps)

    def draw(self, source, result):
        from matplotlib.figure import Figure  # here, because only pictures need it

        image, labels, found = source["img"][..., ::-1], label_map(result), result["classes"]
        names = [""] * (1 + max(entry["label"] for entry in found))
        for entry in found:
            names[entry["label"]] = entry["name"]
        figure = Figure(figsize=(13, 6.5 * image.shape[0] / image.shape[1] + 0.3), layout="constrained", dpi=110)
        left, right = figure.subplots(1, 2)
        draw_regions(image, labels, names, fill(printable(result["input"]), TITLE), left)
        right.imshow(_colors()[labels], interpolation="nearest")
        right.set_axis_off()
        said = fill(self.said(result), TITLE, max_lines=3, placeholder=" ...")
        right.set_title(said, fontsize=9, color="0.4", parse_math=False)
        return figure

    def save(self, source, result, stem):
        file = stem.with_name(f"{stem.name}_labels.png")
        with replacing(file) as temporary:
            temporary.write_bytes(encode_map(label_map(result), _colors()))
        return dict(labels=file.name)


def label_map(result: Mapping[str, Any]) -> np.ndarray:
    """The labels, uint8 (H, W), of a result; 255 where no class is listed."""
    masks = [decoded(entry["mask"]) for entry in result["classes"]]
    labels = np.full(masks[0].shape, IGNORED, np.uint8)
    for entry, mask in zip(result["classes"], masks):
        labels[mask] = entry["label"]
    return labels


def _colors() -> np.ndarray:
    """Colors of all labels; what is not listed is black."""
    colors = palette(IGNORED + 1)
    colors[IGNORED] = 0
    return colors
