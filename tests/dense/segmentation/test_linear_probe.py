"""A linear probe of a frozen network: only the probe learns, and registers never reach it."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from attlas.backbones.channels import fill_channels
from attlas.config import load_config, unread_variables
from attlas.data import fill_classes
from attlas.dense.segmentation import LinearProbe
from attlas.registry import MODELS

PATH = Path(__file__).parents[3] / "configs/ph_reg/ph_reg_rooms.py"


def test_by_definition():
    probe = LinearProbe(6, 3).eval()
    x = torch.randn(2, 6, 4, 5)
    torch.nn.init.normal_(probe.norm.running_mean)
    rows = (x - probe.norm.running_mean.view(-1, 1, 1)) / (1 + 1e-5) ** 0.5
    expected = torch.einsum("bchw,kc->bkhw", rows, probe.conv_seg.weight[..., 0, 0])
    torch.testing.assert_close(probe([x * 0, x]), expected + probe.conv_seg.bias.view(-1, 1, 1))


@pytest.mark.parametrize("registers", [0, 8])
def test_of_rooms(registers):
    config = load_config(PATH, dict(registers=registers))
    assert config.model.backbone.registers == registers
    assert unread_variables(PATH) == {}
    config.model.backbone.init_cfg = None
    fill_channels(config.model)
    fill_classes(config.model, lambda: 3)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model).train()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[0] for name in names} == {"decode_head.norm", "decode_head.conv_seg"}
    images = torch.randn(2, 3, 40, 56)
    assert [tuple(x.shape) for x in model.extract_feat(images)] == [(2, 64, 5, 7)]
    shape = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (40, 56))
    labels = PixelData(data=torch.randint(3, (1, 40, 56)))
    samples = [SegDataSample(metainfo=shape, gt_sem_seg=labels) for _ in range(2)]
    model.parse_losses(model.loss(images, samples))[0].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.eval().predict(images, samples)[0].pred_sem_seg.data.shape == (1, 40, 56)
