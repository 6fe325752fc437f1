"""Detection: maps to boxes and masks, on mmdet's classes. `docs/design.md` says how these are extended."""

from ..transforms import ReadImage
from .bvr import BVRATSSHead, BVRFCOSHead, BVRRetinaHead, BVRRoIHead, BVRShared2FCBBoxHead, KeypointHead
from .coco import CocoBoxes, CocoDetection, CocoFile
from .datasets import FurnishedRooms, FurnishedRoomsBoxes, FurnishedRoomsPanoptic
from .mixer_encoder import MixerDeformableDETR, MixerDINO
from .panoptic import PanopticQuality, ReadPanoptic
from .position_relation import PositionRelation, RelationDABDETR, RelationDeformableDETR, RelationDINO
from .relation_detr import DetachedVarifocalLoss, DetectionSwin, RelationDETR, RelationDETRHead
from .ssd import PredictingSSDHead

__all__ = [
    "BVRATSSHead",
    "BVRFCOSHead",
    "BVRRetinaHead",
    "BVRRoIHead",
    "BVRShared2FCBBoxHead",
    "CocoBoxes",
    "CocoDetection",
    "CocoFile",
    "DetachedVarifocalLoss",
    "DetectionSwin",
    "FurnishedRooms",
    "FurnishedRoomsBoxes",
    "FurnishedRoomsPanoptic",
    "KeypointHead",
    "MixerDINO",
    "MixerDeformableDETR",
    "PanopticQuality",
    "PositionRelation",
    "PredictingSSDHead",
    "ReadImage",
    "ReadPanoptic",
    "RelationDABDETR",
    "RelationDETR",
    "RelationDETRHead",
    "RelationDINO",
    "RelationDeformableDETR",
]
