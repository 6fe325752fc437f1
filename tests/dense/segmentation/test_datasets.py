"""Data sets of images and maps, in the published layouts."""

import logging

import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger

from attlas.data import EndlessSampler, count_classes
from attlas.dense.room_files import LABELS
from attlas.dense.segmentation import ADE20KMaps, CityscapesMaps, FurnishedRoomsMaps, SegmentationMaps

READ = [dict(type="attlas.ReadImage"), dict(type="attlas.ReadMap")]
PACKED = [
    *READ,
    dict(type="RandomCrop", crop_size=(8, 8)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]


def put(path, numbers):
    """A map, and the image that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), numbers)


def folder(root, maps, images="img_dir", labels="ann_dir", suffixes=(".jpg", ".png")):
    for number, numbers in enumerate(maps):
        put(root / labels / f"{number}{suffixes[1]}", numbers)
        put(root / images / f"{number}{suffixes[0]}", np.full((*numbers.shape, 3), number, np.uint8))
    return dict(data_root=str(root), data_prefix=dict(img_path=images, seg_map_path=labels))


def maps(count, largest, shape=(12, 16)):
    draw = np.random.default_rng(0)
    return [draw.integers(0, largest + 1, shape, dtype=np.uint8) for _ in range(count)]


NAMES = dict(classes=("sky", "road", "car"))


def test_a_folder_of_ones_own(tmp_path):
    written = maps(3, 2)
    dataset = SegmentationMaps(**folder(tmp_path, written), metainfo=NAMES, pipeline=READ)
    assert len(dataset) == 3
    assert dataset.metainfo["classes"] == NAMES["classes"]
    assert len(dataset.metainfo["palette"]) == 3
    assert np.array_equal(dataset[1]["gt_seg_map"], written[1])
    assert (
        count_classes(dict(type="attlas.SegmentationMaps", **folder(tmp_path, written), metainfo=NAMES), "mmseg") == 3
    )


def test_draws_depend_on_seed_epoch_and_item(tmp_path):
    options = folder(tmp_path, maps(3, 2)) | dict(metainfo=NAMES, pipeline=PACKED)
    one, other = SegmentationMaps(**options), SegmentationMaps(**options)
    items = [one[index]["data_samples"].gt_sem_seg.data for index in range(30)]
    assert all(bool((other[i]["data_samples"].gt_sem_seg.data == items[i]).all()) for i in reversed(range(30)))
    assert len({items[i].numpy().tobytes() for i in range(0, 30, 3)}) > 5  # epochs differ


def test_the_sampler_counts_epochs():
    sampler = EndlessSampler(range(5), shuffle=True, seed=1)
    drawn = iter(sampler)
    epochs = [[next(drawn) for _ in range(5)] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(0, 5)], [*range(5, 10)], [*range(10, 15)]]
    sampler.skip(7)
    assert next(iter(sampler)) == epochs[1][2]


def test_what_is_refused(tmp_path):
    options = folder(tmp_path, maps(3, 2))
    with pytest.raises(ValueError, match="no names of classes"):
        SegmentationMaps(**options)
    with pytest.raises(FileNotFoundError, match=r"no file that ends in '.tif'; its files end in 3 .jpg"):
        SegmentationMaps(**options, metainfo=NAMES, img_suffix=".tif")
    with pytest.raises(FileNotFoundError, match=r"no folder of images .*img"):
        SegmentationMaps(**options | dict(data_prefix=dict(img_path="img")), metainfo=NAMES)
    with pytest.raises(FileNotFoundError, match=r"the list of names .*train.txt does not exist"):
        SegmentationMaps(**options, metainfo=NAMES, ann_file="train.txt")
    with pytest.raises(ValueError, match=r"ann_dir/.*png holds 2 "):
        SegmentationMaps(**options, metainfo=dict(classes=("sky", "road")))
    (tmp_path / "ann_dir/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no map. First: of .*1.jpg it would be .*1.png"):
        SegmentationMaps(**options, metainfo=NAMES)


def test_a_bad_file_outside_of_the_sample(tmp_path):
    """It is named when its turn comes."""
    options = folder(tmp_path, [*maps(40, 2)])
    dataset = SegmentationMaps(**options, metainfo=NAMES, pipeline=READ)
    paths = [dataset.get_data_info(i)["seg_map_path"] for i in range(40)]
    put(tmp_path / "ann_dir/7.png", np.full((12, 16), 77, np.uint8))
    with pytest.raises(ValueError, match=r"ann_dir/7.png holds 77 \(192 pixels\)"):
        dataset[paths.index(str(tmp_path / "ann_dir/7.png"))]


def test_a_reader_that_does_not_know_the_values(tmp_path):
    """mmseg's takes numbers for labels: right where `values` say the same."""
    read = [dict(type="attlas.ReadImage"), dict(type="LoadAnnotations")]
    written = maps(3, 2)
    options = folder(tmp_path, written) | dict(metainfo=NAMES, pipeline=read)
    for values in (None, {0: "sky", 1: "road", 2: "car", 255: None}):
        assert np.array_equal(SegmentationMaps(**options, values=values)[-1]["gt_seg_map"], written[2])
    for values in ({0: "road", 1: "sky", 2: "car"}, {0: "sky", 1: "road", 2: "car", 7: None}):
        with pytest.raises(ValueError, match=r"LoadAnnotations knows nothing of `values`: take attlas.ReadMap"):
            SegmentationMaps(**options, values=values)
        SegmentationMaps(**options | dict(pipeline=READ), values=values)


def test_the_table_is_told_before_the_first_step(tmp_path):
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    try:
        SegmentationMaps(**folder(tmp_path, maps(2, 1)), metainfo=NAMES)
    finally:
        MMLogger.get_current_instance().removeHandler(handler)
    assert "2 images. The numbers in 2 of their maps:" in told[0]
    assert "0 sky" in told[0]
    assert "1 road" in told[0]
    assert "no map of the sample has a pixel of car" in told[1]


def test_images_of_other_kinds(tmp_path):
    """Grey, 16 bits and alpha are read as images of three channels."""
    labels = maps(3, 2)
    options = folder(tmp_path, labels, suffixes=(".png", ".png"), images="img")
    for number, image in enumerate(
        (np.zeros((12, 16), np.uint8), np.zeros((12, 16), np.uint16), np.zeros((12, 16, 4), np.uint8))
    ):
        put(tmp_path / f"img/{number}.png", image)
    dataset = SegmentationMaps(**options, img_suffix=".png", metainfo=NAMES, pipeline=READ)
    assert [dataset[i]["img"].shape for i in range(3)] == [(12, 16, 3)] * 3


def test_ade20k(tmp_path):
    numbers = np.arange(151, dtype=np.uint8).reshape(1, 151).repeat(3, 0)
    options = folder(tmp_path, [numbers], "images/training", "annotations/training")
    found = ADE20KMaps(**options, pipeline=READ)[0]["gt_seg_map"]
    assert found[0, :4].tolist() == [255, 0, 1, 2]
    assert sorted({*found.ravel().tolist()})[-2:] == [149, 255]
    few = ADE20KMaps(**options, pipeline=READ, metainfo=dict(classes=("sky", "wall")))
    assert few[0]["gt_seg_map"][0, :4].tolist() == [255, 1, 255, 0]  # wall, building, sky


def test_cityscapes_as_it_is_published(tmp_path):
    city = tmp_path / "gtFine/train/bonn"
    put(city / "bonn_000000_000019_gtFine_labelIds.png", np.arange(34, dtype=np.uint8)[None].repeat(2, 0))
    put(tmp_path / "leftImg8bit/train/bonn/bonn_000000_000019_leftImg8bit.png", np.zeros((2, 34, 3), np.uint8))
    prefix = dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train")
    (item,) = CityscapesMaps(data_root=str(tmp_path), data_prefix=prefix, pipeline=READ)
    found = item["gt_seg_map"][0].tolist()
    assert [i for i, label in enumerate(found) if label != 255] == [
        7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33
    ]  # fmt: skip
    assert [label for label in found if label != 255] == [*range(19)]


def test_furnished_rooms(rooms):
    dataset = FurnishedRoomsMaps(**rooms, pipeline=READ)
    assert dataset.metainfo["classes"] == LABELS
    item = dataset[1]
    assert item["gt_seg_map"].shape == item["img"].shape[:2] == (72, 96)
    assert {14, 15} <= {*np.unique(item["gt_seg_map"]).tolist()}  # floor and wall
