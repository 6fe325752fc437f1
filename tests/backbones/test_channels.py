"""Channels of necks and heads: filled in, checked, or left alone."""

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from attlas.backbones import Backbone
from attlas.backbones.channels import fill_channels
from attlas.registry import MODELS


@MODELS.register_module()
class ChannelsToy(Backbone):
    """Four levels; refuses to be built with memory."""

    num_levels = 4

    def __init__(self, dim=8, **options):
        super().__init__([dim, 2 * dim, 4 * dim, 8 * dim], [4, 8, 16, 32], **options)
        self.stem = nn.Linear(dim, dim)
        assert self.stem.weight.is_meta

    def levels(self, image):
        raise NotImplementedError

    def frozen_parts(self):
        return []

    def group_matcher(self, coarse=False):
        return {}


@MODELS.register_module()
class OutsideToy(nn.Module):
    def __init__(self):
        raise AssertionError("must not be built")


class NeckWithoutChannels(nn.Module):
    def __init__(self, embed_dim):
        super().__init__()


class HeadThatPassesOn(nn.Module):
    def __init__(self, in_channels):
        super().__init__()


@MODELS.register_module()
class ChannelsToyHead(HeadThatPassesOn):
    def __init__(self, **options):
        super().__init__(**options)


MODELS.register_module(module=NeckWithoutChannels)


def filled(backbone="ChannelsToy", **parts):
    model = ConfigDict(type="Model", backbone=dict(type=backbone), **parts)
    fill_channels(model)
    return model


@pytest.mark.parametrize("given", [{}, dict(in_channels="auto"), dict(in_channels=(8, 16, 32, 64))])
def test_necks_take_all_channels(given):
    assert list(filled(neck=dict(type="FPN", out_channels=256, num_outs=5, **given)).neck.in_channels) == [
        8,
        16,
        32,
        64,
    ]
    model = ConfigDict(
        backbone=dict(type="attlas.ChannelsToy", dim=4, out_indices=(1, 2, 3), init_cfg=dict(checkpoint="no.pth")),
        neck=[dict(type="mmdet.ChannelMapper"), dict(type="DyHead", in_channels=256)],
    )
    fill_channels(model)
    assert model.neck[0].in_channels == [8, 16, 32]
    assert model.neck[1].in_channels == 256
    assert model.backbone.init_cfg.checkpoint == "no.pth"


def test_necks_of_another_order():
    assert filled(neck=dict(type="YOLOV3Neck")).neck.in_channels == [64, 32, 16, 8]
    assert filled(neck=dict(type="CTResNetNeck")).neck.in_channels == 64


def test_wrong_channels_are_named_with_the_right_ones():
    message = (
        r"model\.neck\.in_channels of FPN is \[256, 512\], and must be \[8, 16, 32, 64\]: ChannelsToy gives "
        r"\[8, 16, 32, 64\] channels at strides \[4, 8, 16, 32\].*'auto'"
    )
    with pytest.raises(ValueError, match=message):
        filled(neck=dict(type="FPN", in_channels=[256, 512]))
    with pytest.raises(ValueError, match=r"decode_head\.in_channels of FCNHead is 2048, and must be 64"):
        filled(decode_head=dict(type="FCNHead", in_channels=2048, in_index=3))
    with pytest.raises(ValueError, match=r"auxiliary_head\[1\]\.in_channels of FCNHead is 16, and must be 32"):
        filled(auxiliary_head=[dict(type="FCNHead", in_index=2), dict(type="FCNHead", in_index=2, in_channels=16)])
    with pytest.raises(ValueError, match=r"decode_head\.in_index is \[0, 4\], but there are 4 maps"):
        filled(decode_head=dict(type="UPerHead", in_index=[0, 4]))


def test_heads_take_what_their_index_says():
    model = filled(
        decode_head=dict(type="UPerHead", in_index=[0, 1, 2, 3], input_transform="multiple_select"),
        auxiliary_head=[dict(type="FCNHead", in_index=2, in_channels="auto"), dict(type="FCNHead")],
    )
    assert model.decode_head.in_channels == [8, 16, 32, 64]
    assert [head.in_channels for head in model.auxiliary_head] == [32, 64]
    assert filled(decode_head=dict(type="Mask2FormerHead")).decode_head.in_channels == [8, 16, 32, 64]
    cascade = filled(decode_head=dict(type="Frame", kernel_generate_head=dict(type="UPerHead", in_index=[1, 2])))
    assert cascade.decode_head == dict(
        type="Frame", kernel_generate_head=dict(type="UPerHead", in_index=[1, 2], in_channels=[16, 32])
    )


def test_heads_behind_a_neck():
    neck = dict(type="FPN", out_channels=24, num_outs=3)
    model = filled(neck=neck, decode_head=dict(type="FPNHead", in_index=[0, 1]), auxiliary_head=dict(type="FCNHead"))
    assert model.decode_head.in_channels == [24, 24]
    assert model.auxiliary_head.in_channels == 24
    with pytest.raises(ValueError, match=r"is 64, and must be 24: the neck FPN gives \[24, 24, 24\]"):
        filled(neck=neck, decode_head=dict(type="FCNHead", in_channels=64))
    unknown = filled(neck=dict(type="Feature2Pyramid", in_channels="auto"), decode_head=dict(type="FCNHead"))
    assert "in_channels" not in unknown.decode_head


def test_classes_are_asked_whether_they_take_channels():
    assert "in_channels" not in filled(neck=dict(type="NeckWithoutChannels", embed_dim=64)).neck
    assert filled(decode_head=dict(type="ChannelsToyHead", in_index=0)).decode_head.in_channels == 8


@pytest.mark.parametrize("backbone", ["OutsideToy", "mmdet.SwinTransformer", "NobodyKnows"])
def test_other_backbones_are_left_alone(backbone):
    assert "in_channels" not in filled(backbone, neck=dict(type="FPN")).neck
    fill_channels(ConfigDict(type="PointClassifier", network=dict(type="RISurConv")))
    fill_channels(ConfigDict(type="ImageClassifier", backbone=dict(type="ChannelsToy", num_classes=3)))  # not built


def test_bare_names_mean_the_library_of_the_config():
    model = ConfigDict(backbone=dict(type="ResNet", depth=50), neck=dict(type="FPN"))
    fill_channels(model, "mmdet")
    assert "in_channels" not in model.neck
    with pytest.raises(ValueError, match="ResNet has no option 'depth'"):  # ours
        fill_channels(model)


def test_a_classifier_is_no_backbone_of_a_detector():
    model = ConfigDict(backbone=dict(type="ChannelsToy", num_classes=5), neck=dict(type="FPN"))
    with pytest.raises(ValueError, match=r"ChannelsToy would be a classifier.*out_indices=\(0, 1, 2, 3\)"):
        fill_channels(model)


def test_published_networks():
    name = "hornet_tiny_7x7"
    model = ConfigDict(backbone=dict(type="NamedBackbone", name=name, out_indices=(1, 3)), neck=dict(type="FPN"))
    state = torch.get_rng_state()
    fill_channels(model)
    assert model.neck.in_channels == [128, 512]
    assert torch.equal(torch.get_rng_state(), state)  # a filled config trains as one that was typed
