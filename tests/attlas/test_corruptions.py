"""Corrupted images: what changes, what repeats, and what is refused."""

import sys

import cv2
import numpy as np
import pytest
from coco_files import write_coco
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from attlas.corruptions import CORRUPTIONS, Corrupted, corrupt, with_corruption
from attlas.registry import DATASETS

READ = [dict(type="attlas.ReadImage")]


@pytest.fixture(scope="module")
def image():
    """A smooth picture with edges, 48 x 64."""
    y, x = np.mgrid[:48, :64]
    picture = np.stack([2 * x + y, 200 - 2 * y, 90 + 60 * np.sin(x / 3)], -1)
    picture[10:30, 20:40] = (230, 40, 60)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_corruption_repeats_and_grows(corruption, image):
    before, state = image.copy(), np.random.get_state()[1].copy()
    weak, strong = (corrupt(image, corruption, severity, seed=3) for severity in (1, 5))
    assert weak.dtype == np.uint8
    assert weak.shape == image.shape
    np.testing.assert_array_equal(weak, corrupt(image, corruption, 1, seed=3))
    errors = [np.abs(found.astype(float) - image).mean() for found in (weak, strong)]
    assert 0.5 < errors[0] < errors[1]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # the caller's generator is as it was


@pytest.mark.parametrize("corruption", ["gaussian_noise", "impulse_noise", "glass_blur", "frost"])
def test_noise_depends_on_the_seed_the_image_and_the_severity(corruption, image):
    base = corrupt(image, corruption, 2)
    assert (base != corrupt(image, corruption, 2, seed=1)).any()
    other = image.copy()
    other[0, 0] ^= 1
    changed = (base != corrupt(other, corruption, 2)).any(-1)
    assert changed[8:, 8:].any()  # far from the pixel that differs


def test_severity_0_is_the_image(image):
    assert corrupt(image, "fog", 0) is image


def test_what_is_refused(image, monkeypatch):
    with pytest.raises(ValueError, match=r"'gausian_noise'; it may be .* Did you mean 'gaussian_noise'"):
        corrupt(image, "gausian_noise", 1)
    with pytest.raises(ValueError, match="severity is 6; it may be 0, 1, 2, 3, 4, 5"):
        corrupt(image, "fog", 6)
    with pytest.raises(ValueError, match="seed is -1"):
        corrupt(image, "fog", 1, seed=-1)
    with pytest.raises(ValueError, match="an image of 64 x 31 pixels; corruptions need 32"):
        corrupt(image[:31], "fog", 1)
    for wrong, form in ((image / 255, r"float64 \(48, 64, 3\)"), (image[..., 0], r"uint8 \(48, 64\)"), (None, "None")):
        with pytest.raises(ValueError, match=form):
            corrupt(wrong, "fog", 0)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ImportError, match=r"pip install 'attlas\[robustness\]'"):
        corrupt(image, "fog", 1)


# --- in a pipeline ---------------------------------------------------------------------------------------------------


def test_an_image_that_the_data_set_reads(image):
    step = Corrupted([lambda data: data | dict(image=data["image"][:, ::-1])], "snow", 3)
    np.testing.assert_array_equal(step(dict(image=image))["image"], corrupt(image, "snow", 3)[:, ::-1])


def test_an_image_that_a_transform_reads_is_blue_first(image, tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, image[..., ::-1])
    seen = []
    with DefaultScope.overwrite_default_scope("mmdet"):
        step = Corrupted([*READ, lambda data: seen.append(data["img"]) or data], "frost", 4, seed=2)
    np.testing.assert_array_equal(step(dict(img_path=path))["img"][..., ::-1], corrupt(image, "frost", 4, seed=2))
    assert len(seen) == 1


def test_a_pipeline_without_an_image_and_one_that_is_too_small(tmp_path):
    with pytest.raises(ValueError, match="these data have no image"):
        Corrupted([], "fog", 1)(dict(points=np.zeros((5, 3))))
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"tiny\.png: an image of 9 x 8 pixels"):
        Corrupted(READ, "fog", 0)(dict(img_path=str(tmp_path / "tiny.png")))
    assert Corrupted([lambda data: None], "fog", 1)({}) is None  # mm's way to leave an item out


def first(batch):
    return batch[0]["img"]


def test_workers_change_nothing(tmp_path):
    path = write_coco(tmp_path, images=4)
    config = dict(type="attlas.CocoDetection", ann_file=str(path), data_prefix=dict(img=str(tmp_path / "images")))
    config |= dict(pipeline=READ, test_mode=True)
    with DefaultScope.overwrite_default_scope("mmdet"):
        noisy = DATASETS.build(with_corruption(config, "impulse_noise", 3))
        clean = DATASETS.build(with_corruption(config, "impulse_noise", 0))
    alone = [noisy[number]["img"] for number in range(4)]
    shared = list(DataLoader(noisy, batch_size=1, num_workers=2, collate_fn=first))
    for number in range(4):
        np.testing.assert_array_equal(alone[number], shared[number])
        assert (alone[number] != clean[number]["img"]).any()
        expected = corrupt(np.ascontiguousarray(clean[number]["img"][..., ::-1]), "impulse_noise", 3)
        np.testing.assert_array_equal(alone[number][..., ::-1], expected)


def test_configs_of_data_sets():
    inner = dict(type="A", transforms=[1])
    step = dict(type="attlas.Corrupted", transforms=[1], corruption="fog", severity=2, seed=0)
    done = dict(type="A", transforms=[step])
    assert with_corruption(inner, "fog", 2) == done
    assert inner == dict(type="A", transforms=[1])
    assert with_corruption(dict(type="B", dataset=inner, pipeline=[2]), "fog", 2)["dataset"] == done
    assert with_corruption(dict(type="C", datasets=[inner, inner]), "fog", 2)["datasets"] == [done, done]
    with pytest.raises(ValueError, match=r"the data set \(D\) has neither transforms nor a pipeline"):
        with_corruption(dict(type="D"), "fog", 2)
