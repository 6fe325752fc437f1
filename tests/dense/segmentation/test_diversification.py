"""The segmentor that adds the attention diversification loss: what it adds, and whom it refuses."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from attlas.backbones.channels import fill_channels


def config(**options):
    backbone = dict(type="attlas.Isotropic", dim=16, depth=4, patch_size=8, img_size=32, class_token=None)
    head = dict(type="FCNHead", in_channels="auto", in_index=3, channels=8, num_convs=1, num_classes=3)
    found = dict(type="attlas.DiversifiedSegmentor", backbone=backbone, decode_head=head, test_cfg=dict(mode="whole"))
    found = ConfigDict({**found, **options})
    fill_channels(found)
    return found


def samples(labels):
    return [SegDataSample(gt_sem_seg=PixelData(data=one[None]), metainfo=dict(img_shape=one.shape)) for one in labels]


def test_adds_the_loss_of_the_attentions():
    torch.manual_seed(0)
    model = MODELS.build(config(diversification=0.5, diversification_threshold=1.0)).train()
    image, labels = torch.randn(1, 3, 32, 64), samples(torch.randint(3, (1, 32, 64)))
    found = model.loss(image, labels)
    assert 0 < found["loss_ad"] <= 0.5
    total, said = model.parse_losses(found)
    torch.testing.assert_close(total, found["decode.loss_ce"] + found["loss_ad"])
    assert said["loss_ad"] == found["loss_ad"]
    model.zero_grad()
    found["loss_ad"].backward()
    assert model.backbone.blocks[0].mixer.qkv.weight.grad.abs().max() > 0
    model.eval()
    assert model.predict(image)[0].pred_sem_seg.data.shape == (1, 32, 64)


def test_without_it():
    model = MODELS.build(config(diversification=0)).train()
    assert "loss_ad" not in model.loss(torch.randn(2, 3, 32, 32), samples(torch.randint(3, (2, 32, 32))))


def test_errors():
    head = dict(type="FCNHead", in_channels=512, in_index=3, channels=8, num_convs=1, num_classes=3)
    backbone = dict(type="ResNet", depth=18, norm_cfg=dict(type="BN"))
    with pytest.raises(ValueError, match="ResNet has no attention that says"):
        MODELS.build(config(backbone=backbone, decode_head=head))
    with pytest.raises(ValueError, match="diversification must be a number of at least 0, got -1"):
        MODELS.build(config(diversification=-1))
