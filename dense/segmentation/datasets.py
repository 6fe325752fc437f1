"""Images with maps of labels: a data set of two folders, and those that are published so, or made here."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.logging import print_log
from mmseg.datasets import ADE20KDataset, BaseSegDataset, CityscapesDataset

from ...data import SeededDraws
from ...drawing import palette
from ...files import near_files, near_folders, printable
from ...registry import DATASETS
from ..room_files import LABELS, room_folder
from .maps import UNKNOWN, Meaning, Survey


@DATASETS.register_module()
class SegmentationMaps(SeededDraws, BaseSegDataset):
    """Images in one folder and their maps of labels, PNG of the same names, in another: mmseg's BaseSegDataset. A
    sample of the maps is read at once: a table of their numbers goes into the log, and what means nothing is an error.
    With `attlas.EndlessSampler` every epoch draws every image afresh, the same with any number of workers.

    Args: those of mmseg's BaseSegDataset: data_root, data_prefix=dict(img_path=..., seg_map_path=...), img_suffix,
        seg_map_suffix, ann_file (names, one a line), pipeline, test_mode, and metainfo=dict(classes=names,
        palette=colors). Besides
        values: the class of each number in the maps by its name, or None for pixels to ignore, such as {0: "wall", 255:
            "crack"}; by default number i is class i and 255 is ignored.
        reduce_zero_label: whether 0 is ignored and number i is class i - 1 instead (False).
        seed: seed of the draws.

    Raises:
        FileNotFoundError: there is no folder, no image, or no map of an image.
        ValueError: no classes are named, or the maps of the sample do not fit to them (names the file); or `values`
            that are not the default's, and a pipeline with mmseg's LoadAnnotations, which does not know them.
    """

    def __init__(self, *args, values: Mapping[int, str | None] | None = None, **options):
        self.given = values
        super().__init__(*args, **options)

    def load_data_list(self) -> list[dict]:
        classes = self._metainfo.get("classes")
        if not classes:
            raise ValueError(f"{type(self).__name__} has no names of classes: give metainfo=dict(classes=(...)).")
        published = self.METAINFO.get("classes")
        self.meaning = Meaning(published or classes, self.given, self.reduce_zero_label)
        if self.given is not None:
            self._check_reading()
        if published:
            self.meaning = self.meaning.restricted(classes)
        self._metainfo["classes"] = tuple(classes)
        if self.ann_file and not Path(self.ann_file).is_file():
            raise FileNotFoundError(
                f"{type(self).__name__}: the list of names {printable(self.ann_file)} does not exist. "
                f"{near_files(Path(self.ann_file))}"
            )
        images = Path(self.data_prefix.get("img_path") or "")
        if not self.ann_file and not images.is_dir():
            raise FileNotFoundError(
                f"{type(self).__name__}: there is no folder of images {printable(images)}. {near_folders(images)}"
            )
        found = super().load_data_list()
        if not found:
            endings = Counter(path.suffix or "none" for path in images.rglob("*") if path.is_file())
            there = ", ".join(f"{count} {printable(ending)}" for ending, count in endings.most_common(5))
            raise FileNotFoundError(
                f"{type(self).__name__}: {printable(images)} holds no file that ends in {self.img_suffix!r}; its files "
                f"end in {there or 'nothing, as there are none'}"
            )
        if self.data_prefix.get("seg_map_path"):
            self._look(found)
        return found

    def _check_reading(self) -> None:
        """mmseg's transform takes a number as the label, which is right where `values` say no more."""
        known = np.flatnonzero(self.meaning.table != UNKNOWN)
        plain = (self.meaning.table[known] == known).all()
        if not plain and any(isinstance(step, LoadAnnotations) for step in self.pipeline.transforms):
            raise ValueError(f"{type(self).__name__}: LoadAnnotations knows nothing of `values`: take attlas.ReadMap.")

    def _look(self, found: Sequence[Mapping]) -> None:
        """Hold the maps to their images and classes, by a sample."""
        pairs = [(entry["img_path"], entry["seg_map_path"]) for entry in found]
        if missing := [pair for pair in pairs if not os.path.isfile(pair[1])]:
            raise FileNotFoundError(
                f"{type(self).__name__}: {len(missing)} of {len(pairs)} images have no map. First: of "
                f"{printable(missing[0][0])} it would be {printable(missing[0][1])}"
            )
        survey = Survey(pairs, self.meaning, self._metainfo["palette"])
        name = f"{type(self).__name__} {printable(self.data_prefix['seg_map_path'])}"
        _tell(f"{name}: {len(found):,} images. The numbers in {len(survey.files)} of their maps:\n{survey}")
        survey.check()
        for text in survey.warnings():
            _tell(f"{name}: {text}.", logging.WARNING)

    def _update_palette(self) -> list:
        if not self._metainfo.get("palette"):
            return palette(len(self._metainfo.get("classes") or ())).tolist()
        return super()._update_palette()

    def get_data_info(self, index: int) -> dict:
        return super().get_data_info(index) | dict(meaning=self.meaning)


@cache  # a config counts its classes with the data set that the training builds again
def _tell(text: str, level: int = logging.INFO) -> None:
    print_log(text, logger="current", level=level)


@DATASETS.register_module()
class ADE20KMaps(SegmentationMaps):
    """ADE20K's scene parsing (ADEChallengeData2016): 150 classes, which its maps count from 1.

    Args: those of `SegmentationMaps` but for reduce_zero_label.
    """

    METAINFO = ADE20KDataset.METAINFO

    def __init__(self, **options):
        super().__init__(reduce_zero_label=True, **options)


# Of Cityscapes, the ids of the 19 classes that are evaluated, in their order.
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@DATASETS.register_module()
class CityscapesMaps(SegmentationMaps):
    """Cityscapes as it is published: of the ids in `gtFine/*_labelIds.png`, 19 are classes and the others are ignored.
    (No files of training ids have to be made.)

    Args: those of `SegmentationMaps` but for suffixes and values.
    """

    METAINFO = CityscapesDataset.METAINFO

    def __init__(self, **options):
        values = dict.fromkeys((*range(34), 255)) | dict(zip(CITYSCAPES, self.METAINFO["classes"]))
        suffixes = dict(img_suffix="_leftImg8bit.png", seg_map_suffix="_gtFine_labelIds.png")
        super().__init__(values=values, **suffixes, **options)


@DATASETS.register_module()
class FurnishedRoomsMaps(SegmentationMaps):
    """The built-in images for segmentation: furnished rooms with maps of 17 classes, the 14 of Furniture14 and floor,
    wall and ceiling. The first use makes them, in some minutes; later ones read the files.

    Args:
        split, count, size, cache, workers: as of `attlas.dense.room_files.room_folder`.
        room_seed: chooses another series of rooms (>= 0).
        options: those of `SegmentationMaps` but for its files: pipeline, seed, test_mode, ...
    """

    METAINFO = dict(classes=LABELS, palette=palette(len(LABELS)).tolist())

    def __init__(
        self,
        split: str = "train",
        count: int = 600,
        size: Sequence[int] = (320, 240),
        room_seed: int = 0,
        cache=None,
        workers=None,
        **options,
    ):
        folder = room_folder(split, count, size, room_seed, cache, workers)
        places = dict(img_path=str(folder / "img_dir" / split), seg_map_path=str(folder / "ann_dir" / split))
        super().__init__(data_prefix=places, **options)
