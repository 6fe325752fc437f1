"""Slices of medical volumes, and the Dice of whole volumes."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS

from attlas.config import load_config
from attlas.dense.segmentation import MedicalSlices, ReadSlice, VolumeDice
from attlas.dense.segmentation.medical import read_gray
from attlas.registry import METRICS

CONFIG = Path(__file__).parents[3] / "configs/guided_attention/guided_attention_x101_chaos.py"


def slices(root, split="train", names=("Subj_1slice_2", "Subj_1slice_10", "Subj_12slice_1"), size=(40, 32)):
    for folder in ("Img", "GT"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        image = np.random.randint(0, 256, size, np.uint8)
        mask = 63 * np.random.randint(0, 5, size, np.uint8)
        mask[0, 0], image[0, 0] = 63 * (i % 5), i
        cv2.imwrite(str(root / split / "Img" / f"{name}.png"), image)
        cv2.imwrite(str(root / split / "GT" / f"{name}.png"), mask)
    return root


def test_the_config_reads_the_authors_slices(tmp_path, monkeypatch):
    for split in ("train", "val", "test"):
        slices(tmp_path, split)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    config = load_config(CONFIG)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        train, val = (DATASETS.build(config[f"{split}_dataloader"].dataset) for split in ("train", "val"))
        metric = METRICS.build(config.test_evaluator)
    assert metric.empty == "skip"
    assert train.metainfo["classes"][1] == "liver"
    assert [(val[i]["data_samples"].subject, val[i]["data_samples"].slice) for i in range(3)] == [
        ("1", 2), ("1", 10), ("12", 1)
    ]  # fmt: skip
    for data in (val, train):
        one = data[1]
        assert one["inputs"].shape == (1, 40, 32)
        assert one["inputs"].dtype == torch.uint8
        labels = one["data_samples"].gt_sem_seg.data
        assert labels.shape == (1, 40, 32)
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 4}
    assert val[2]["data_samples"].gt_sem_seg.data[0, 0, 0] == 2
    assert torch.equal(val[-1]["inputs"], val[2]["inputs"])
    with pytest.raises(IndexError, match="item -4, and there are 3"):
        val[-4]
    draws = [train[1 + 3 * epoch]["inputs"] for epoch in (0, 0, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not all(torch.equal(draws[0], other) for other in draws[2:])


def test_slices_that_cannot_be_read(tmp_path):
    def read(**options):
        return MedicalSlices(str(tmp_path), pipeline=[ReadSlice()], **options)[0]

    with pytest.raises(FileNotFoundError, match="does not exist"):
        read()
    slices(tmp_path, names=["Subj_1slice_1"])
    image, mask = (tmp_path / "train" / folder / "Subj_1slice_1.png" for folder in ("Img", "GT"))
    with pytest.raises(ValueError, match="levels=None must be 7 different gray levels"):
        read(classes="abcdefg")
    with pytest.raises(ValueError, match=r"Subj_1slice_1\.png holds gray levels that are no class: .*252 "):
        read(classes=("background", "liver"))
    cv2.imwrite(str(mask), np.full((40, 32), 255, np.uint8))
    assert read(classes=("background", "liver"), levels=(0, 255))["gt_seg_map"].all()
    cv2.imwrite(str(mask), np.zeros((40, 31), np.uint8))
    with pytest.raises(ValueError, match=r"has 40 x 32 pixels .* 40 x 31"):
        read()
    cv2.imwrite(str(mask), np.zeros((40, 32, 3), np.uint8))
    assert read()["gt_seg_map"].shape == (40, 32)
    for wrong, message in (
        (np.full((40, 32), 300, np.uint16), "16 bits"),
        (np.dstack([np.zeros((40, 32, 2), np.uint8), np.ones((40, 32, 1), np.uint8)]), "is in color"),
        (np.zeros((40, 32, 4), np.uint8), "transparent"),
    ):
        cv2.imwrite(str(image), wrong)
        with pytest.raises(ValueError, match=message):
            read()
    image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"is not a readable PNG: .* do not begin as PNG"):
        read()
    (tmp_path / "train/GT/Subj_1slice_2.png").touch()
    with pytest.raises(ValueError, match=r"1 files are only in one of .*Subj_1slice_2"):
        read()
    for folder in ("Img", "GT"):
        (tmp_path / "train" / folder / "Subj_1slice_2.png").touch()
        (tmp_path / "train" / folder / "foo.png").touch()
    with pytest.raises(ValueError, match=r"foo\.png must be named Subj_"):
        read()


def test_slices_that_would_need_too_much_memory(tmp_path):
    slices(tmp_path, names=["Subj_1slice_1"])
    path = tmp_path / "train/Img/Subj_1slice_1.png"
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Subj_1slice_1\.png .* 60000 x 60000 pixels are declared"):
        read_gray(path)


def test_slices_without_masks():
    """As attlas.inference asks."""
    gray = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for image in (gray, np.repeat(gray[..., None], 3, -1)):
        found = ReadSlice().transform(dict(img=image, img_path=None))
        assert np.array_equal(found["img"], gray)
        assert "gt_seg_map" not in found
    with pytest.raises(ValueError, match=r"a\.png is in color"):
        ReadSlice().transform(dict(img=np.arange(60, dtype=np.uint8).reshape(4, 5, 3), img_path="a.png"))


def sample(subject, number, found, truth):
    return dict(
        subject=subject,
        slice=number,
        pred_sem_seg=dict(data=torch.tensor([found])),
        gt_sem_seg=dict(data=torch.tensor([truth])),
    )


SLICES = [  # class 1: A 2 * 3 / (5 + 3), B 2 * 1 / (1 + 2); class 2: A 0, invented; B absent; 3 absent in both
    sample("A", 1, [[1, 1, 1, 2]], [[1, 1, 0, 0]]),
    sample("B", 1, [[1, 0, 0, 0]], [[1, 1, 0, 0]]),
    sample("A", 2, [[1, 1, 0, 0]], [[1, 0, 0, 255]]),
    sample("A", 2, [[1, 1, 0, 0]], [[1, 0, 0, 255]]),  # once more, as a sampler pads
]


@pytest.mark.parametrize(
    ("empty", "second", "third"), [("skip", 0.0, float("nan")), ("one", 0.5, 1.0), ("zero", 0.0, 0.0)]
)
def test_dice_by_hand(empty, second, third):
    metric = VolumeDice(empty)
    metric.dataset_meta = dict(classes=("background", "one", "two", "three"))
    for one in SLICES:
        metric.process(None, [one])
    figures = metric.evaluate(len(SLICES))
    first = (6 / 8 + 2 / 3) / 2
    pooled = [2 * 4 / (6 + 5), 0.0, third]
    expected = dict(case_one=first, case_two=second, pooled_one=pooled[0], pooled_two=0.0)
    expected = {name: value for name, value in expected.items() if np.isfinite(value)}
    if np.isfinite(third):  # a class of no volume has no figure
        expected |= dict(case_three=third, pooled_three=third)
    expected |= dict(case_mean=np.nanmean([first, second, third]), pooled_mean=np.nanmean(pooled))
    assert figures == pytest.approx({f"Dice/{name}": value for name, value in expected.items()})


def test_dice_of_volumes_is_not_that_of_slices():
    metric = VolumeDice()
    metric.dataset_meta = dict(classes=("background", "one"))
    metric.process(None, [sample("A", 1, [[1] * 9 + [0]], [[1] * 9 + [0]]), sample("A", 2, [[1, 0]], [[0, 1]])])
    assert metric.evaluate(2)["Dice/case_one"] == pytest.approx(0.9)


def test_what_dice_refuses():
    with pytest.raises(ValueError, match="skip"):
        VolumeDice("skipp")
    metric = VolumeDice()
    metric.dataset_meta = dict(classes=("background", "one"))
    with pytest.raises(ValueError, match="gathers slices by subject"):
        metric.process(None, [{key: value for key, value in SLICES[0].items() if key != "subject"}])
    with pytest.raises(ValueError, match=r"subject A, slice 1: labels \[2\] are no class"):
        metric.process(None, SLICES[:1])
