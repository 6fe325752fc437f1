"""Detection: maps to boxes and masks, on mmdet's classes. `docs/design.md` says how these are extended."""

from .coco import CocoBoxes, CocoDetection, CocoFile
from .datasets import FurnishedRooms, FurnishedRoomsBoxes
from .transforms import ReadImage

__all__ = ["CocoBoxes", "CocoDetection", "CocoFile", "FurnishedRooms", "FurnishedRoomsBoxes", "ReadImage"]
