"""Annotations in COCO's format: what is wrong in a file is said, with the entry, before the first step.

`CocoDetection` and `CocoBoxes` are mmdet's CocoDataset and CocoMetric on a `CocoFile`. They differ in this:

- Classes are found by name, in the order asked for, which mmdet takes from the file instead (its issue 9611). Without
  names they are all of the file's, by ascending id, as COCO's 80 are.
- What the evaluation would stumble over is set right: `id` of annotations (0 and repeated ones spoil the matching),
  missing `area` and `iscrowd`. What cannot be used is counted by reason and told once.
- A file of another form is an error that names the entry.
"""

import contextlib
import difflib
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmengine.logging import print_log

from ...data import SeededDraws
from ...files import check_out, near_files, printable, replacing
from ...images import read_image
from ...registry import DATASETS, METRICS
from .panoptic import things_and_stuff


class CocoFile(COCO):
    """The annotations of a file, checked, as pycocotools' COCO.

    Args:
        path: file in COCO's format (`instances_*.json`): `images`, `categories` and `annotations`.

    Attributes:
        left_out: number of annotations that are left out, by reason.

    Raises:
        FileNotFoundError: there is no such file; names the files near.
        ValueError: the file is not in that format; names the entry.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = str(path)
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # of each reason the first annotation
        self.dataset = _read(Path(path))
        sizes = {image["id"]: (image.get("width"), image.get("height")) for image in self.dataset["images"]}
        known = {category["id"] for category in self.dataset["categories"]}
        kept = []
        for number, entry in enumerate(self.dataset["annotations"]):
            if reason := self._unusable(f"{self.path}: annotations[{number}]", entry, sizes, known):
                self.left_out[reason] += 1
                self.first.setdefault(reason, f"annotations[{number}]")
            else:
                entry.setdefault("iscrowd", 0)
                entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
                kept.append(entry)
        self.dataset["annotations"] = kept
        ids = [entry.get("id") for entry in self.dataset["annotations"]]
        if len({*ids}) != len(ids) or not all(type(number) is int and number > 0 for number in ids):
            for number, entry in enumerate(self.dataset["annotations"], 1):
                entry["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    @staticmethod
    def _unusable(place: str, entry: Any, sizes: dict, known: set) -> str:
        """Why an annotation cannot be used, or "". Of its polygons only those that enclose something are kept."""
        if not isinstance(entry, dict):
            raise ValueError(f"{place} must be an object, not {printable(entry, 60)}")
        for key, values, of in (("image_id", sizes, "images"), ("category_id", known, "categories")):
            if key not in entry:
                raise ValueError(f"{place} has no {key}")
            if not isinstance(entry[key], (int, str)) or entry[key] not in values:
                raise ValueError(f"{place}.{key} is {printable(repr(entry[key]), 60)}, the id of none of the {of}")
        box = entry.get("bbox")
        if not box:
            return "without a box"
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)):
            raise ValueError(f"{place}.bbox must be [x, y, width, height], not {printable(box, 60)}")
        if not all(map(math.isfinite, box)):
            return "with a box that is not finite"
        x, y, width, height = box
        if width <= 0 or height <= 0:
            return "with a box without width or height"
        if width < 1 or height < 1:
            return "with a box smaller than a pixel"
        across, down = sizes[entry["image_id"]]
        if across and (x >= across or y >= down or x + width <= 0 or y + height <= 0):
            return "with a box outside of the image"
        if isinstance(parts := entry.get("segmentation"), list):
            entry["segmentation"] = [part for part in parts if isinstance(part, list) and len(part) >= 6]
            if parts and not entry["segmentation"]:
                return "with polygons of fewer than three corners"
        return ""

    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence = ()) -> list:
        """Ids of categories; of `cat_names` in the order of the names.

        Raises:
            ValueError: the file has no category of a name; lists the near ones.
        """
        if not len(cat_names):
            return super().get_cat_ids(cat_names, sup_names, cat_ids)
        by_name = {category["name"]: category["id"] for category in self.dataset["categories"]}
        if isinstance(cat_names, str):
            raise ValueError(f"classes must be a sequence of names, not {cat_names!r}; of one class: ({cat_names!r},)")
        if unknown := [name for name in cat_names if name not in by_name]:
            near = difflib.get_close_matches(str(unknown[0]), by_name, n=3, cutoff=0.5) or list(by_name)[:10]
            raise ValueError(
                f"{self.path} has no category {printable(unknown[0])!r}. Near names: {printable(', '.join(near))}."
            )
        return [by_name[name] for name in cat_names]

    def __str__(self) -> str:
        """What there is, and what is left out and why."""
        images, categories, objects = (len(self.dataset[key]) for key in ("images", "categories", "annotations"))
        told = f"{printable(self.path)}: {images:,} images, {objects:,} objects of {categories} classes"
        reasons = [f"{count:,} {reason} (first: {self.first[reason]})" for reason, count in self.left_out.most_common()]
        return f"{told}; left out: {', '.join(reasons)}" if reasons else told


def _read(path: Path) -> dict[str, list]:
    """The three lists of a file. Their entries are objects; ids and names are there and unique."""
    if not path.is_file():
        raise FileNotFoundError(f"The annotations {printable(path)} do not exist. {near_files(path)}")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is no JSON: {printable(error)}") from None
    if not isinstance(found, dict):
        what = "a list, as files of results are" if isinstance(found, list) else f"{type(found).__name__}"
        raise ValueError(f"{path} holds {what}; annotations are an object with images, categories and annotations")
    required = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ()}
    for key, fields in required.items():
        if not isinstance(entries := found.get(key), list):
            has = ", ".join(printable(name, 30) for name in list(found)[:8]) or "nothing"
            raise ValueError(f"{path} has no list of {key}; it has {has}")
        for number, entry in enumerate(entries if fields else ()):
            if not isinstance(entry, dict) or any(field not in entry for field in fields):
                raise ValueError(f"{path}: {key}[{number}] must be an object with {' and '.join(fields)}")
        for field in fields:
            seen: dict[Any, int] = {}
            for number, entry in enumerate(entries):
                value = entry[field]
                if not isinstance(value, (int, str) if field == "id" else str):
                    raise ValueError(f"{path}: {key}[{number}].{field} is {printable(value, 60)}")
                if value in seen:
                    raise ValueError(
                        f"{path}: {key}[{seen[value]}] and {key}[{number}] have the same {field}, "
                        f"{printable(value, 60)!r}: which of them is meant, nothing tells"
                    )
                seen[value] = number
    for number, image in enumerate(found["images"]):
        for field in ("width", "height"):
            if field in image and not (type(image[field]) is int and image[field] > 0):
                raise ValueError(f"{path}: images[{number}].{field} must be a number of pixels, not {image[field]!r}")
    return {key: found[key] for key in required}


@DATASETS.register_module()
class CocoDetection(SeededDraws, CocoDataset):
    """Images with boxes, and masks where the file has them. With `attlas.EpochSampler` every epoch draws every image
    afresh, the same with any number of workers and after a resumption.

    Args: those of mmdet's CocoDataset: ann_file, data_root, data_prefix=dict(img=...), pipeline, test_mode,
        filter_cfg, and metainfo=dict(classes=names), by default all of the file. Where these have stuff, too, whose
        pixels are in the files of data_prefix=dict(seg=...): thing_classes=names, which come first, and
        stuff_classes=names. Besides
        seed: seed of the draws.

    Raises:
        FileNotFoundError, ValueError: as of `CocoFile`; or no image is left to learn from, or things do not come first.
    """

    METAINFO: dict = {}
    COCOAPI = CocoFile

    def load_data_list(self) -> list[dict]:
        coco = CocoFile(self.ann_file)
        if "classes" not in self.metainfo:
            names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
            self._metainfo["classes"] = tuple(names[number] for number in sorted(names, key=_as_sorted))
        if not {"thing_classes", "stuff_classes"}.isdisjoint(self.metainfo):
            things_and_stuff(self.metainfo)
        self.cat_ids = coco.get_cat_ids(self.metainfo.get("thing_classes", self.metainfo["classes"]))
        self.cat2label = {number: label for label, number in enumerate(self.cat_ids)}
        self.cat_img_map = coco.cat_img_map
        found = []
        for image in coco.dataset["images"]:
            if not (image.get("width") and image.get("height")):
                path = Path(self.data_prefix.get("img", "")) / image["file_name"]
                image["height"], image["width"] = read_image(path).shape[:2]
            entries = dict(raw_ann_info=coco.img_ann_map[image["id"]], raw_img_info=image | {"img_id": image["id"]})
            found.append(self.parse_data_info(entries))
        print_log(str(coco), logger="current")
        return found

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if self.data_list and not kept:
            objects = sum(len(entry["instances"]) for entry in self.data_list)
            raise ValueError(
                f"{self.ann_file}: filter_cfg={self.filter_cfg} leaves none of its {len(self.data_list)} images, which "
                f"have {objects} objects of the classes {printable(', '.join(self.metainfo['classes']))}"
            )
        if len(kept) != len(self.data_list):
            empty = sum(not entry["instances"] for entry in self.data_list)
            print_log(
                f"{printable(self.ann_file)}: {len(kept):,} of {len(self.data_list):,} images are kept by filter_cfg="
                f"{self.filter_cfg}; {empty:,} have no object",
                logger="current",
            )
        return kept


def _as_sorted(number: int | str) -> tuple[bool, int | str]:
    return isinstance(number, str), number


@METRICS.register_module()
class CocoBoxes(CocoMetric):
    """COCO's average precision of boxes and masks: mmdet's CocoMetric on a `CocoFile`.

    Where nothing was detected in any image the figures are 0, with a warning, where mmdet gives none.

    Args: those of mmdet's CocoMetric; ann_file is needed. Besides
        out_file: a JSON for the predictions in COCO's format of results, a list of dict(image_id, category_id, bbox
            [x, y, width, height] in pixels, score), with `segmentation` (run lengths) where there are masks, and
            `mask_score` where a detector gives masks scores of their own. Ids are those of the annotation file.
        overwrite: replace an `out_file` of an earlier run. Otherwise it is a FileExistsError, raised at once.

    Raises:
        ValueError: a box or score that was predicted is not finite; names the image.
    """

    out_suffix = ".json"

    def __init__(self, ann_file: str, out_file: str | Path | None = None, overwrite: bool = False, **options):
        self.out_file = check_out(out_file, (self.out_suffix,), overwrite) if out_file else None
        super().__init__(**options)
        self._coco_api = CocoFile(ann_file)

    def process(self, data_batch, data_samples) -> None:
        start = len(self.results)
        super().process(data_batch, data_samples)
        for (_, result), sample in zip(self.results[start:], data_samples):
            if not all(np.isfinite(result[key]).all() for key in ("bboxes", "scores")):
                raise ValueError(f"a box or a score predicted for {sample.get('img_path')} is NaN or infinite")

    def compute_metrics(self, results: list) -> dict[str, float]:
        if self.out_file:
            with replacing(self.out_file) as temporary:
                temporary.write_text(json.dumps(self._as_coco(results)))
            print_log(f"predictions: {self.out_file}", logger="current")
        if any(len(result["labels"]) for _, result in results) or self.format_only:
            found = super().compute_metrics(results)
            return dict(sorted(found.items(), key=lambda item: item[0].endswith("_precision")))  # of all classes first
        print_log("Nothing was detected in any image: every AP is 0.", logger="current", level=30)
        names = self.metric_items or ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"]
        return {f"{metric}_{name}": 0.0 for metric in self.metrics for name in names if metric in ("bbox", "segm")}

    def _as_coco(self, results: list) -> list[dict]:
        """The predictions in COCO's format of results."""
        ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta["classes"])
        found = []
        for _, result in results:
            for number, (label, (left, top, right, bottom)) in enumerate(
                zip(result["labels"], result["bboxes"].tolist())
            ):
                entry = dict(
                    image_id=result["img_id"],
                    category_id=ids[label],
                    bbox=[left, top, right - left, bottom - top],
                    score=float(result["scores"][number]),
                )
                if "masks" in result:
                    runs = result["masks"][number]
                    text = runs["counts"]
                    counts = text.decode("ascii") if isinstance(text, bytes) else text
                    entry["segmentation"] = dict(size=[int(side) for side in runs["size"]], counts=counts)
                if "mask_scores" in result:
                    entry["mask_score"] = float(result["mask_scores"][number])
                found.append(entry)
        return found
