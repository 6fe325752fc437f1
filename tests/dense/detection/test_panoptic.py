"""Panoptic segmentation: COCO's labels as published, panoptic quality by its definition, and a training on rooms."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.dense.detection.panoptic import (
    INSTANCE_OFFSET,
    PanopticQuality,
    compare,
    found_segments,
    listed,
    true_segments,
)
from attlas.engine import Runner
from attlas.inference import Inferencer
from attlas.registry import DATASETS

CONFIGS = Path(__file__).parents[3] / "configs/panoptic_fpn"
CLASSES = ("cup", "plate", "table", "wall")  # two things, two of stuff
META = dict(classes=CLASSES, thing_classes=CLASSES[:2], stuff_classes=CLASSES[2:])


# --- the metric ------------------------------------------------------------------------------------------------------


def reference(truth, found, crowds):
    """By the definition, segment by segment: of dicts name -> (class, mask). `crowds` are names in `truth`."""
    claimed = np.zeros(next(iter(found.values()))[1].shape, bool)
    for _, mask in truth.values():
        claimed |= mask
    void = ~claimed
    totals = np.zeros((4, len(CLASSES)))
    matched = set()
    for name, (kind, mask) in truth.items():
        for other, (other_kind, other_mask) in found.items():
            both = (mask & other_mask).sum()
            iou = both / ((mask | other_mask) & ~(other_mask & void)).sum() if mask.any() else 0
            if kind == other_kind and iou > 0.5 and name not in crowds:
                totals[0, kind] += iou
                totals[1, kind] += 1
                matched |= {("truth", name), ("found", other)}
    for other, (kind, mask) in found.items():
        free = (mask & void).sum() + sum(
            (mask & area).sum() for name, (of, area) in truth.items() if name in crowds and of == kind
        )
        if ("found", other) not in matched and free / mask.sum() <= 0.5:
            totals[2, kind] += 1
    for name, (kind, mask) in truth.items():
        if ("truth", name) not in matched and name not in crowds and mask.any():
            totals[3, kind] += 1
    return totals


@pytest.mark.parametrize("seed", range(30))
def test_it_is_the_definition(seed):
    """Rectangles, some of the truth shifted in the prediction; with void, crowds, and objects that are hidden."""
    random = np.random.default_rng(seed)
    labels, predicted = np.full((20, 24), 255), np.full((20, 24), len(CLASSES))
    masks, kinds = [], []
    for number in range(1, 10):
        kind, top, left = random.integers(4), random.integers(16), random.integers(18)
        height, width = random.integers(2, 14, 2)
        part = np.s_[top : top + height, left : left + width]
        shifted = np.s_[top + random.integers(3) : top + height, left : left + width]
        labels[part] = kind
        for mask in masks:
            mask[part] = False
        if kind < 2 and random.random() < 0.7:
            masks.append(np.zeros(labels.shape, bool))
            masks[-1][part] = True
            kinds.append(kind)
        if random.random() < 0.8:
            predicted[shifted] = kind + (kind < 2) * number * INSTANCE_OFFSET
    inside = np.any(masks, axis=0) if masks else np.zeros(labels.shape, bool)
    truth = {f"all {kind}": (kind, (labels == kind) & ~(inside & (kind < 2))) for kind in range(4)}
    truth |= {number: (kind, mask) for number, (kind, mask) in enumerate(zip(kinds, masks))}
    found = {value: (value % INSTANCE_OFFSET, predicted == value) for value in np.unique(predicted) if value != 4}
    got = compare(true_segments(labels, masks, np.array(kinds, int), 2), found_segments(predicted, 4), 4)
    np.testing.assert_allclose(np.stack(got), reference(truth, found, {"all 0", "all 1"}))


def sample_of(labels, masks, kinds, predicted):
    masks = BitmapMasks(np.array(masks, np.uint8), *labels.shape)
    return dict(
        gt_sem_seg=dict(sem_seg=torch.tensor(labels)[None]),
        gt_instances=InstanceData(labels=torch.tensor(kinds), masks=masks),
        pred_panoptic_seg=dict(sem_seg=torch.tensor(predicted)[None]),
    )


def test_figures():
    """Two cups, one found whole and one missed; a table found to three quarters; a wall that is not there."""
    labels = np.full((4, 8), 2)
    masks = np.zeros((2, 4, 8), bool)
    masks[0, :2, :2] = masks[1, :2, 4:6] = True
    labels[masks.any(0)] = 0
    predicted = np.full((4, 8), 2)
    predicted[:2, :2] = INSTANCE_OFFSET
    predicted[3, :6] = 3
    metric = PanopticQuality()
    metric.dataset_meta = META
    metric.process(None, [sample_of(labels, masks, [0, 0], predicted)])
    figures = metric.compute_metrics(metric.results)
    table = 18 / (18 + 6 + 4)  # of 24 pixels six are taken for wall, and four of the missed cup are added
    assert figures["PQ_things"] == pytest.approx(100 * 1 / 1.5, abs=0.01)
    assert figures["PQ_stuff"] == pytest.approx(100 * table / 2, abs=0.01)
    assert figures["PQ"] == pytest.approx(100 * (1 / 1.5 + table + 0) / 3, abs=0.01)
    assert figures["SQ"] == pytest.approx(100 * (1 + table + 0) / 3, abs=0.01)
    assert figures["RQ"] == pytest.approx(100 * (1 / 1.5 + 1 + 0) / 3, abs=0.01)


def test_segments_as_objects():
    """The largest first, without void, with boxes around all parts of a segment."""
    predicted = np.full((6, 9), 4)
    predicted[4:, :] = 3
    predicted[0, 2:4] = predicted[2, 7] = INSTANCE_OFFSET + 1
    wall, plate = listed(predicted, CLASSES)
    assert (wall["label"], wall["name"], wall["score"], wall["box"]) == (3, "wall", 1.0, [0, 4, 9, 6])
    assert (plate["label"], plate["name"], plate["box"]) == (1, "plate", [2, 0, 8, 3])
    assert (plate["mask"] == (predicted == INSTANCE_OFFSET + 1)).all()
    assert listed(np.full((2, 2), 4), CLASSES) == []
    with pytest.raises(ValueError, match="need the names of the classes"):
        listed(predicted, ())


def test_what_the_metric_refuses():
    metric = PanopticQuality()
    metric.dataset_meta = dict(classes=CLASSES[:2])
    with pytest.raises(ValueError, match="does not tell which of its classes are stuff: give it metainfo="):
        metric.process(None, [])
    for classes, words in [
        (CLASSES[::-1], "class 0 is wall in the one and cup in the others"),
        (CLASSES[:3], "class 3 is None in the one and wall in the others"),
    ]:
        metric.dataset_meta = META | dict(classes=classes)
        with pytest.raises(ValueError, match=f"thing_classes and, behind them, stuff_classes; {words}"):
            metric.process(None, [])
    metric.dataset_meta = META
    with pytest.raises(ValueError, match="came without labels of its pixels and masks: is ReadPanoptic"):
        metric.process(None, [dict(img_path="a.jpg", gt_instances=InstanceData())])
    empty = np.full((2, 2), 255)
    with pytest.raises(ValueError, match=r"segments \(3, 2\) were predicted, and the truth is \(2, 2\)"):
        metric.process(None, [sample_of(empty, np.zeros((0, 2, 2)), [], np.full((3, 2), 4))])
    with pytest.raises(ValueError, match="a pixel is of class 5, and there are 4 classes"):
        metric.process(None, [sample_of(empty, np.zeros((0, 2, 2)), [], np.full((2, 2), 5))])
    metric.process(None, [sample_of(empty, np.zeros((0, 2, 2)), [], np.full((2, 2), 4))])
    with pytest.raises(ValueError, match="no pixel of the evaluated images belongs to a segment"):
        metric.compute_metrics(metric.results)


# --- COCO's files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """An image with two cups, a crowd of plates, a table and some void, in COCO's layout."""
    numbers = np.zeros((40, 50), int)
    segments = []
    for number, kind, part, crowd in (
        (70_000, 3, np.s_[20:, :], 0),
        (300, 1, np.s_[5:15, 5:15], 0),
        (7, 1, np.s_[25:38, 30:45], 0),
        (8, 2, np.s_[0:4, 20:50], 1),
    ):
        numbers[part] = number
        rows, columns = part
        top, left = rows.start or 0, columns.start or 0
        box = [left, top, (columns.stop or 50) - left, (rows.stop or 40) - top]
        segments.append(dict(id=number, category_id=10 * kind, bbox=box, area=box[2] * box[3], iscrowd=crowd))
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.jpg"), np.zeros((40, 50, 3), np.uint8))
    blue_first = np.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], -1).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "labels/a.png"), blue_first)
    entry = dict(image_id=1, file_name="a.png", segments_info=segments)
    categories = [dict(id=10 * kind, name=name, isthing=int(kind < 3)) for kind, name in enumerate(CLASSES, start=1)]
    whole = dict(
        images=[dict(id=1, file_name="a.jpg", height=40, width=50)], annotations=[entry], categories=categories
    )
    (tmp_path / "panoptic.json").write_text(json.dumps(whole))
    return tmp_path


def read(folder):
    steps = [dict(type="attlas.ReadImage"), dict(type="attlas.ReadPanoptic"), dict(type="PackDetInputs")]
    dataset = DATASETS.build(
        dict(
            type="mmdet.CocoPanopticDataset",
            data_root=str(folder),
            ann_file="panoptic.json",
            data_prefix=dict(img="images", seg="labels"),
            metainfo=META,
            pipeline=steps,
        )
    )
    return dataset[0]["data_samples"]


def test_cocos_labels(coco):
    sample = read(coco)
    labels = sample.gt_sem_seg.sem_seg[0].numpy()
    assert (labels[5:15, 5:15] == 0).all()
    assert (labels[0:4, 20:] == 1).all()
    assert (labels[20:, :30] == 2).all()
    assert (labels == 255).sum() == 20 * 50 - 100 - 120
    assert sample.gt_instances.labels.tolist() == [0, 0]  # not the crowd
    assert [int(mask.sum()) for mask in sample.gt_instances.masks.masks] == [100, 195]
    truth = true_segments(labels, sample.gt_instances.masks.masks, sample.gt_instances.labels.numpy(), 2)
    there = np.bincount(truth.numbers.ravel(), minlength=len(truth.classes)) > 0
    assert sorted(zip(truth.classes[there].tolist(), truth.crowd[there].tolist())) == [
        (-1, False), (0, False), (0, False), (1, True), (2, False)
    ]  # fmt: skip


def test_labels_of_another_image(coco):
    labels = cv2.imread(str(coco / "labels/a.png"))
    cv2.imwrite(str(coco / "labels/a.png"), labels[:, :30])
    with pytest.raises(ValueError, match=r"a\.png has 40 x 30 pixels \(height x width\), and its image 40 x 50"):
        read(coco)
    cv2.imwrite(str(coco / "labels/a.png"), np.zeros_like(labels))
    with pytest.raises(ValueError, match=r"a\.png has no pixel of segment 70000, which its entry tells of"):
        read(coco)


# --- rooms -----------------------------------------------------------------------------------------------------------


def test_a_training_on_rooms(furnished, tmp_path):
    """Three rooms, one epoch, and the test: floor, wall and ceiling are stuff. The truth itself scores 100."""
    config = load_config(CONFIGS / "panoptic_fpn_biformer_rooms.py", dict(pretrained="None"))
    rooms = {"room_seed" if name == "seed" else name: value for name, value in furnished.items()} | dict(
        cache=str(furnished["cache"])
    )
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=3)
        loader.dataset.update(rooms)
        next(step for step in loader.dataset.pipeline if step.type == "Resize").scale = (96, 72)
    config.merge_from_dict(dict(work_dir=str(tmp_path), train_cfg=dict(max_epochs=1, val_interval=1)))
    fill_channels(config.model)
    runner = Runner.from_cfg(config)
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    runner.train()
    assert sum(not torch.equal(before[name], value) for name, value in runner.model.named_parameters()) > 100
    figures = runner.test()
    assert {"PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"} == figures.keys()
    assert all(0 <= value <= 100 for value in figures.values())

    (answer,) = Inferencer(str(tmp_path / "epoch_1.pth"))(np.zeros((72, 96, 3), np.uint8))
    assert "error" not in answer, answer
    assert all(entry["score"] == 1 and entry["mask"]["size"] == [72, 96] for entry in answer["objects"])

    metric = runner.test_evaluator.metrics[0]
    for batch in runner.test_dataloader:
        for sample in batch["data_samples"]:
            truth = sample.gt_sem_seg.sem_seg.clone().int()
            for number, mask in enumerate(sample.gt_instances.masks.masks, start=1):
                truth[0, torch.from_numpy(mask).bool()] += number * INSTANCE_OFFSET
            assert 14 <= int(truth[truth < INSTANCE_OFFSET].max()) <= 16
            metric.process(None, [sample.to_dict() | dict(pred_panoptic_seg=dict(sem_seg=truth))])
    assert set(metric.compute_metrics(metric.results).values()) == {100}
