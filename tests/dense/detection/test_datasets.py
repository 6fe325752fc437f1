"""The built-in rooms as mmdet and mmseg read them."""

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.registry import METRICS as MMDET_METRICS
from mmseg.datasets import BaseSegDataset, LoadAnnotations

from attlas import furniture
from attlas.dense.room_files import annotations, room_folder
from attlas.dense.rooms import LABELS, Room
from attlas.registry import DATASETS

PIPELINE = [
    dict(type="attlas.ReadImage"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="mmdet.PackDetInputs", meta_keys=("img_id", "ori_shape")),
]


@pytest.fixture(scope="session")
def asked(furnished):
    """The same as arguments of FurnishedRooms."""
    return {"room_seed" if key == "seed" else key: value for key, value in furnished.items()}


@pytest.fixture(scope="module")
def views():
    rooms = [Room("test", 5, number) for number in range(3)]
    return [room.see(room.camera(), 96, 72) for room in rooms]


def test_furnished_rooms_serve_what_the_rooms_show(asked, views):
    dataset = DATASETS.build(dict(type="FurnishedRooms", **asked, pipeline=PIPELINE))
    assert dataset.metainfo["classes"] == furniture.CLASSES
    assert len(dataset) == 3
    for view, item in zip(views, (dataset[number] for number in range(3))):
        boxes, labels, numbers = view.boxes()
        truth = item["data_samples"].gt_instances
        np.testing.assert_array_equal(truth.bboxes.tensor.numpy(), boxes)
        np.testing.assert_array_equal(truth.labels.numpy(), labels)
        np.testing.assert_array_equal(truth.masks.masks, view.instances == numbers[:, None, None])
        assert item["inputs"].shape == (3, 72, 96)
        seen = item["inputs"].numpy()[::-1].transpose(1, 2, 0)  # from blue, green, red
        assert abs(seen.astype(float) - view.image).mean() < 4


def test_configs_of_mmdet_find_them(asked):
    def count(dataset):
        return sum(len(dataset.get_data_info(number)["instances"]) for number in range(3))

    dataset = MMDET_DATASETS.build(dict(type="attlas.FurnishedRooms", **asked))
    assert len(dataset) == 3
    only = MMDET_DATASETS.build(dict(type="attlas.FurnishedRooms", **asked, metainfo=dict(classes=("door", "window"))))
    assert 0 < count(only) < count(dataset)


def test_mmdet_reads_the_folder_as_coco(furnished, views):
    folder = room_folder(**furnished)
    dataset = CocoDataset(
        data_root=str(folder),
        ann_file=f"annotations/{annotations(folder, 'test').name}",
        data_prefix=dict(img="img_dir/test/"),
        metainfo=dict(classes=furniture.CLASSES),
        pipeline=[],
    )
    for view, item in zip(views, dataset):
        boxes, labels, _ = view.boxes()
        np.testing.assert_array_equal([entry["bbox"] for entry in item["instances"]], boxes)
        np.testing.assert_array_equal([entry["bbox_label"] for entry in item["instances"]], labels)


def test_mmseg_reads_the_folder(furnished, views):
    dataset = BaseSegDataset(
        data_root=str(room_folder(**furnished)),
        data_prefix=dict(img_path="img_dir/test", seg_map_path="ann_dir/test"),
        metainfo=dict(classes=LABELS),
        pipeline=[LoadAnnotations()],
    )
    assert len(dataset) == 3
    for view, item in zip(views, dataset):
        np.testing.assert_array_equal(item["gt_seg_map"], view.labels)


def test_the_metric_gives_a_perfect_detector_100(asked, views):
    metric = MMDET_METRICS.build(dict(type="attlas.FurnishedRoomsBoxes", **asked, metric=["bbox", "segm"]))
    metric.dataset_meta = dict(classes=furniture.CLASSES)
    for number, view in enumerate(views):
        boxes, labels, numbers = view.boxes()
        found = dict(
            bboxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(labels),
            scores=torch.ones(len(boxes)),
            masks=torch.from_numpy(view.instances == numbers[:, None, None]),
        )
        metric.process({}, [dict(img_id=number, ori_shape=(72, 96), pred_instances=found)])
    found = metric.evaluate(size=3)
    assert found["coco/bbox_mAP"] == found["coco/segm_mAP"] == 1
