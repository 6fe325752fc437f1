"""The mean of what is predicted in several sizes of an image and mirrored, and windows over images of any size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.models import EncoderDecoder
from torch import nn

from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.dense.segmentation import AveragedSegmentor, FurnishedRoomsMaps
from attlas.dense.segmentation.views import add_views, views
from attlas.inference import load
from attlas.registry import MODELS

CONFIGS = Path(__file__).parents[3] / "configs"
ROOMS = CONFIGS / "semantic_fpn/semantic_fpn_lsnet_rooms.py"
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
PLAIN = [dict(type="attlas.ReadImage"), dict(type="attlas.ReadMap"), dict(type="PackSegInputs")]


@pytest.fixture(scope="module")
def model(checkpoint):
    with DefaultScope.overwrite_default_scope("mmseg"):
        return load(checkpoint, device="cpu")


def batch(rooms, pipeline):
    dataset = FurnishedRoomsMaps(**rooms, pipeline=pipeline, test_mode=True)
    return pseudo_collate([dataset[i] for i in (0, 2)])


@torch.no_grad()
def test_one_view_is_the_plain_prediction(rooms, model):
    plain = model.test_step(batch(rooms, PLAIN))
    once = AveragedSegmentor(model).test_step(batch(rooms, views(PLAIN, [1.0], flip=False)))
    assert len(plain) == len(once) == 2
    for one, other in zip(plain, once):
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)
        assert torch.equal(one.gt_sem_seg.data, other.gt_sem_seg.data)
        torch.testing.assert_close(one.seg_logits.data.softmax(0), other.seg_logits.data.softmax(0))


@torch.no_grad()
@pytest.mark.parametrize("channels", [17, 1])
def test_probabilities_of_both_sides_are_averaged(rooms, model, channels):
    if channels == 1:
        config = load_config(ROOMS, dict(pretrained="None")).model
        config.decode_head.update(num_classes=2, out_channels=1, threshold=0.5)
        fill_channels(config)
        model = MODELS.build(config).eval()
    data = batch(rooms, PLAIN)
    found = AveragedSegmentor(model).test_step(batch(rooms, views(PLAIN, [1.0])))
    images = model.data_preprocessor(data)["inputs"]
    meta = [dict(img_shape=images.shape[2:])]
    both = [model.encode_decode(images, meta), model.encode_decode(images.flip(3), meta).flip(3)]
    squash = torch.sigmoid if channels == 1 else lambda x: x.softmax(1)
    mean = sum(squash(logits.double()) for logits in both) / 2
    for sample, expected, truth in zip(found, mean, data["data_samples"]):
        labels = expected.argmax(0) if channels > 1 else (expected[0] > 0.5).double()
        assert torch.equal(sample.pred_sem_seg.data[0], labels)
        got = sample.seg_logits.data.softmax(0) if channels > 1 else sample.seg_logits.data
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(sample.gt_sem_seg.data, truth.gt_sem_seg.data)  # not mirrored
    assert not torch.equal(squash(both[0]), squash(both[1]))


@torch.no_grad()
def test_mirrored_views_are_turned_back_whatever_meta_keys_say(rooms, model):
    """mmseg turns a prediction back where `flip` and `flip_direction` are in the sample."""
    keys = ("img_path", "ori_shape", "img_shape")
    few = [*PLAIN[:2], PLAIN[2] | dict(meta_keys=keys)]
    averaged = AveragedSegmentor(model)
    found = averaged.test_step(batch(rooms, views(few, [1.0])))
    for one, other in zip(found, averaged.test_step(batch(rooms, views(PLAIN, [1.0])))):
        assert torch.equal(one.seg_logits.data, other.seg_logits.data)
        assert {*keys, "flip", "flip_direction"} == one.metainfo.keys() - {"pad_shape", "img_padding_size"}
    assert few[2]["meta_keys"] == keys
    several = views(PLAIN, [1.0])
    several[-1]["transforms"][-1] = [few[2]]
    with pytest.raises(ValueError, match="meta_keys of PackSegInputs must have 'flip' and 'flip_direction'"):
        averaged.test_step(batch(rooms, several))


def test_sizes_are_multiples_of_the_test_size():
    """mmseg's own pipelines take multiples of the image; papers of ADE20K those of 2048 x 512, as we do."""
    config = load_config(CONFIGS / "upernet/upernet_davit_ade20k.py", dict(pretrained="None"))
    add_views(config)
    read, several = config.test_dataloader.dataset.pipeline
    assert read["type"] == "attlas.ReadImage"
    sizes, flips, *others = several["transforms"]
    assert [size["scale"] for size in sizes] == [(round(2048 * r), round(512 * r)) for r in SCALES]
    assert all(size["keep_ratio"] for size in sizes)
    assert [flip["prob"] for flip in flips] == [0, 1]
    assert [step["type"] for (step,) in others] == ["attlas.ReadMap", "PackSegInputs"]
    config = load_config(ROOMS, dict(pretrained="None"))
    add_views(config)
    image = np.zeros((48, 64, 3), np.uint8)
    several = Compose([step for step in config.test_dataloader.dataset.pipeline if step["type"] == "TestTimeAug"])
    several.transforms[0].subroutines = [
        Compose([*s.transforms[:2], s.transforms[3]]) for s in several.transforms[0].subroutines
    ]
    found = several(dict(img=image, img_path="", img_shape=(48, 64), ori_shape=(48, 64), seg_fields=[]))
    assert [tuple(x.shape[1:]) for x in found["inputs"]] == [(int(48 * r), int(64 * r)) for r in SCALES for _ in "12"]
    assert [sample.metainfo["flip"] for sample in found["data_samples"]] == [False, True] * 6


def test_pipelines_of_mmseg_are_taken():
    config = load_config(ROOMS, dict(pretrained="None"))
    config.tta_pipeline = [dict(type="LoadImageFromFile"), dict(type="TestTimeAug", transforms=[])]
    add_views(config)
    assert config.test_dataloader.dataset.pipeline == config.tta_pipeline
    assert config.custom_hooks[-1].type == "PrepareTTAHook"


def test_what_is_refused():
    config = load_config(ROOMS, dict(pretrained="None"))
    config.tta_views = None
    with pytest.raises(ValueError, match="no tta_model with tta_views or tta_pipeline"):
        add_views(config)
    for ratios in ([], [1.0, 0.0], 1.0, "a", ["a"], [float("nan")], None):
        with pytest.raises(ValueError, match="ratios must be a list of positive numbers"):
            views(PLAIN, ratios)
    with pytest.raises(ValueError, match="flip must be True or False, not 2"):
        views(PLAIN, [1.0], flip=2)
    with pytest.raises(ValueError, match=r"ratios: 0\.001 times .* leaves no pixel of a side"):
        views([PLAIN[0], dict(type="Resize", scale=(400, 300)), *PLAIN[1:]], [1.0, 0.001])
    with pytest.raises(ValueError, match="ReadSlice reads the map with the image"):
        views([dict(type="attlas.ReadSlice"), PLAIN[2]], [1.0])
    for given, words in [
        (dict(ratios=1.0), "tta_views: ratios must be a list"),
        (dict(flip=True), r"tta_views: ratios must be a list of positive numbers, not \(\)"),
        (dict(ratios=(1.0,), flp=True), "a key of tta_views is 'flp'.* Did you mean 'flip'"),
        ("a", "tta_views must be dict"),
    ]:
        config = load_config(ROOMS, dict(pretrained="None"))
        config._cfg_dict["tta_views"] = given
        with pytest.raises(ValueError, match=words):
            add_views(config)
    config = load_config(ROOMS, dict(pretrained="None"))
    config.test_dataloader.dataset = dict(type="ConcatDataset", datasets=[config.test_dataloader.dataset])
    with pytest.raises(ValueError, match=r"test_dataloader\.dataset, ConcatDataset, has no pipeline"):
        add_views(config)
    for step in (dict(type="TestTimeAug", transforms=[]), dict(type="RandomResize", scale=(9, 9))):
        with pytest.raises(ValueError, match="one Resize or none, not of ReadImage, "):
            views([PLAIN[0], step, *PLAIN[1:]], [1.0])


# --- windows ---------------------------------------------------------------------------------------------------------


class PerPixel(EncoderDecoder):
    """Scores of a pixel that depend on nothing else."""

    def __init__(self):
        nn.Module.__init__(self)
        self.out_channels, self.align_corners, self.windows = 2, False, []

    def encode_decode(self, inputs, batch_img_metas):
        self.windows.append(tuple(inputs.shape[2:]))
        return torch.stack([inputs[:, 0], -inputs[:, 0]], 1)


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        ((32, 48), [(32, 48)]),
        ((20, 33), [(20, 33)]),  # smaller than the window
        ((20, 101), [(20, 48)] * 4),  # in one direction
        ((33, 49), [(32, 48)] * 4),
        ((75, 101), [(32, 48)] * 16),
    ],
)
def test_windows_cover_images_of_any_size(size, windows):
    """Every pixel is the mean of its windows, which lie inside of the image."""
    model, image = PerPixel(), torch.randn(2, 1, *size)
    model.test_cfg = type("Test", (dict,), {"__getattr__": dict.__getitem__})(
        mode="slide", crop_size=(32, 48), stride=(20, 20)
    )
    shape = [dict(ori_shape=size, img_shape=size) for _ in image]
    logits = model.inference(image, shape)
    assert model.windows == windows
    torch.testing.assert_close(logits, torch.cat([image, -image], 1))


@torch.no_grad()
@pytest.mark.parametrize("test", [dict(mode="whole"), dict(mode="slide", crop_size=(64, 64), stride=(40, 40))])
def test_labels_of_odd_and_small_images(model, test):
    """Whole or in windows, labels have the size of the image, also mirrored and in other sizes."""
    before = model.test_cfg
    try:
        model.test_cfg = type(before)(test)
        steps = Compose(views([PLAIN[0], PLAIN[2]], [0.5, 1.0, 1.75])[1:])
        for size in ((37, 51), (9, 130), (101, 75)):
            image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
            results = dict(img=image, img_path="", img_shape=size, ori_shape=size)
            (found,) = AveragedSegmentor(model).test_step(pseudo_collate([steps(results)]))
            assert found.pred_sem_seg.data.shape == (1, *size)
            assert found.seg_logits.data.isfinite().all()
    finally:
        model.test_cfg = before
