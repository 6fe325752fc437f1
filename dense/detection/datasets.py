"""The built-in images with boxes and masks to learn from."""

from collections.abc import Sequence

from ... import furniture
from ...registry import DATASETS, METRICS
from ..room_files import LABELS, STRUCTURE, annotations, room_folder
from .coco import CocoBoxes, CocoDetection


@DATASETS.register_module()
class FurnishedRooms(CocoDetection):
    """The built-in images for detectors: rooms furnished with the models of Furniture14, with boxes and masks of 14
    classes. The first use makes them, in some minutes; later ones read the files as any of COCO's format.

    Args:
        split, count, size, cache, workers: as of `attlas.dense.room_files.room_folder`.
        room_seed: chooses another series of rooms (>= 0).
        options: those of `CocoDetection` but for its files: pipeline, seed, test_mode, filter_cfg, metainfo, ...
    """

    METAINFO = dict(classes=furniture.CLASSES)

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
        images = dict(img=str(folder / "img_dir" / split), seg=str(folder / "ann_dir" / split))
        super().__init__(ann_file=str(annotations(folder, split)), data_prefix=images, **options)


@DATASETS.register_module()
class FurnishedRoomsPanoptic(FurnishedRooms):
    """`FurnishedRooms` for panoptic segmentation: floor, wall and ceiling are classes of stuff, behind the 14 of
    things. LoadAnnotations(with_bbox=True, with_mask=True, with_seg=True) reads them.

    Args: as of `FurnishedRooms`.
    """

    METAINFO = dict(classes=LABELS, thing_classes=furniture.CLASSES, stuff_classes=STRUCTURE)


@METRICS.register_module()
class FurnishedRoomsBoxes(CocoBoxes):
    """COCO's average precision of boxes and masks on furnished rooms.

    Args:
        split, count, size, room_seed, cache, workers: those of the `FurnishedRooms` that are evaluated on.
        options: those of `CocoBoxes` but for ann_file: metric, classwise, ...
    """

    def __init__(
        self,
        split: str = "test",
        count: int = 600,
        size: Sequence[int] = (320, 240),
        room_seed: int = 0,
        cache=None,
        workers=None,
        **options,
    ):
        folder = room_folder(split, count, size, room_seed, cache, workers)
        super().__init__(str(annotations(folder, split)), **options)
