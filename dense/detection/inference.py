"""How a detector is asked (see `attlas.inference`)."""

import copy
from collections import Counter

import torch
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.dataset import Compose, pseudo_collate
from torch import nn

from ...backbones.classification.inference import ImageClassification, class_number
from ...data import drawn
from ...drawing import draw_objects
from ...files import printable
from ...tasks import ModelError, Task
from ..masks import decoded, encoded
from ..transforms import ReadImage, seen_pixels
from . import doctor, export
from .panoptic import listed

SHOWN = 0.3  # score from which an object is drawn and counted


class Detection(Task):
    """Image files, and arrays uint8 (H, W, 3), red, green, blue, or grey (H, W). A result has the `objects`, a list of
    dict(label, name, score, box [x1, y1, x2, y2] in pixels of the image), with a `mask` (RLE of COCO) where the model
    gives one, the best first. Of panoptic segmentation they are the segments, the largest first, all with score 1."""

    suffixes = ImageClassification.suffixes
    top = 100
    exports = (".onnx", ".pt2")

    def read(self, path):
        return self._as_results(ReadImage().transform(dict(img_path=str(path))))

    def take(self, source):
        image = ImageClassification().take(source)["image"]
        size = image.shape[:2]
        return self._as_results(dict(img=image[..., ::-1].copy(), img_path=None, img_shape=size, ori_shape=size))

    @staticmethod
    def _as_results(results: dict) -> dict:
        return results | dict(img_id=0, height=results["ori_shape"][0], width=results["ori_shape"][1])

    def prepare(self, transforms):
        loading = (LoadImageFromFile, LoadAnnotations, ReadImage)
        return Compose([step for step in transforms.transforms if not isinstance(step, loading)])

    def form(self, item):
        return tuple(item["inputs"].shape)

    def result(self, prediction, source, classes, top):
        if "pred_panoptic_seg" in prediction:
            found = listed(prediction.pred_panoptic_seg.sem_seg.squeeze(0).cpu().numpy(), classes)[:top]
            return dict(objects=[entry | dict(mask=encoded(entry["mask"])) for entry in found])
        found = prediction.pred_instances
        if not all(torch.isfinite(found[key]).all() for key in ("scores", "bboxes")):
            raise ValueError("the network gives NaN or infinite numbers for it")
        best = found[found.scores.argsort(descending=True, stable=True)[:top]].cpu()
        if classes and len(best) and int(best.labels.max()) >= len(classes):
            raise ModelError(f"There are names of {len(classes)} classes, and an object is of {best.labels.max()}.")
        objects = [
            dict(label=label, name=classes[label] if classes else f"class {label}", score=score, box=box)
            for label, score, box in zip(best.labels.tolist(), best.scores.tolist(), best.bboxes.tolist())
        ]
        if "masks" in best:
            for entry, mask in zip(objects, best.masks):
                entry["mask"] = encoded(mask.numpy())
        return dict(objects=objects)

    def said(self, result):
        seen = Counter(printable(entry["name"]) for entry in result["objects"] if entry["score"] >= SHOWN)
        best = max((entry["score"] for entry in result["objects"]), default=0)
        counts = ", ".join(f"{count} {name}" for name, count in seen.most_common())
        return counts or f"no object with a score of {SHOWN:g}" + (f" (the best has {best:.2f})" if best else "")

    def examine(self, dataset, model, out):
        yield from doctor.examine_data(dataset, model, out)

    def examine_fit(self, model, batch):
        yield from doctor.examine_fit(model, batch)

    def question(self, model, source, target):
        """Targets are N, the class of the query with the N-th best score, from 0 (by default the best); N:CLASS,
        another class of it, by name or number; and N:left, N:top, N:right or N:bottom, a side of its box. Queries are
        ranked before duplicates are removed (see `explanation`). Of two-stage detectors they are the boxes that the
        first stage proposed."""
        from ...backbones.inspection.targets import Question
        from .explanation import SIDES, Answers, Proposed, box_side, class_logit

        data = drawn(model.transforms, copy.deepcopy(source), "the image", 0)
        batch = model.data_preprocessor(pseudo_collate([data]), False)["inputs"]
        network: nn.Module = Proposed(model) if hasattr(model, "roi_head") else Answers(model)
        inputs = (batch, network.propose(batch)) if isinstance(network, Proposed) else (batch,)
        with torch.no_grad():
            found = network(*inputs)
        classes = found.logits.shape[-1]
        classes = min(classes, len(model.classes) or classes)  # without that of the background
        best, labels = found.logits[0, :, :classes].max(-1)
        rank, _, what = ("0" if target is None else target).partition(":")
        if not rank.isdecimal() or int(rank) >= len(best):
            raise ValueError(f"target {printable(target)!r} must begin with the rank of a query, 0 to {len(best) - 1}")
        query = int(best.argsort(descending=True, stable=True)[int(rank)])
        label = int(labels[query]) if what in ("", *SIDES) else class_number(what, model.classes, classes)
        name = printable(model.classes[label]) if model.classes else f"class {label}"
        said = f"{what} side of {name}" if what in SIDES else name
        score = box_side(what, query) if what in SIDES else class_logit(label, query)
        box = None if found.boxes is None else tuple(found.boxes[0, query].tolist())
        return Question(network, inputs, score, f"{said}, query {query}", seen_pixels(model, batch[0]), box)

    def exportable(self, model, steps):
        return export.exportable(model, steps)

    def draw(self, source, result):
        objects = [entry for entry in result["objects"] if entry["score"] >= SHOWN]
        objects = [entry | dict(mask=decoded(entry["mask"])) if "mask" in entry else entry for entry in objects]
        return draw_objects(source["img"][..., ::-1], objects, printable(result["input"], 90))
