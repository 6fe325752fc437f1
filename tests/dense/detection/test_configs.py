"""Every detection config builds, with maps of the strides that its heads expect, and one of each detector learns."""

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from attlas import backbones, checkpoint
from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.data import fill_classes
from attlas.registry import MODELS

CONFIGS = Path(__file__).parents[3] / "configs"
STRIDES = dict(retinanet=(8, 16, 32, 64, 128), mask_rcnn=(4, 8, 16, 32, 64))


def read(path, **overrides):
    config = load_config(path, dict(pretrained="None") | overrides)
    fill_channels(config.model)
    fill_classes(config.model, lambda: 3)
    return config


def built(config):
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


@pytest.mark.parametrize("detector", STRIDES)
def test_there_is_one_for_every_system(detector):
    files = {Path(system.__module__.replace(".", "/")).name for system in backbones.systems().values()}
    found = {path.stem for path in (CONFIGS / detector).glob("*_coco.py")}
    assert found == {f"{detector}_{name}_coco" for name in files}


def test_of_rooms():
    config = load_config(CONFIGS / "retinanet/retinanet_biformer_rooms.py", dict(pretrained="None"))
    fill_channels(config.model)
    maps = built(config).extract_feat(torch.randn(1, 3, 240, 320))
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 30, 40), (64, 15, 20), (64, 8, 10), (64, 4, 5)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*_biformer_rooms.py")), ids=lambda path: path.stem)
def test_detectors_of_rooms(path):
    """They begin with the weights that are shipped, lose something, and predict."""
    config = load_config(path)
    fill_channels(config.model)
    model = built(config)
    model.init_weights()
    shipped = checkpoint.read(CONFIGS / "biformer/biformer_furniture_views.safetensors")["state_dict"]
    own = model.backbone.state_dict()
    assert len(own) > 100
    for name, tensor in own.items():
        if f"backbone.{name}" in shipped:  # norms of the maps are new
            assert torch.equal(tensor.half(), shipped[f"backbone.{name}"].half()), name
    assert sum(f"backbone.{name}" in shipped for name in own) > 100
    boxes = torch.tensor([[8.0, 10, 60, 50], [40, 20, 120, 90]])
    shape = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (96, 128))
    sample = DetDataSample(
        metainfo=shape | dict(scale_factor=(1.0, 1.0)),
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0, 3])),
    )
    images = torch.randn(1, 3, 96, 128)
    loss, _ = model.parse_losses(model.loss(images, [sample]))
    loss.backward()
    assert loss > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    (predicted,) = model.eval().predict(images, [sample])
    assert len(predicted.pred_instances.bboxes) <= 100


@pytest.mark.parametrize(
    "path", sorted(path for name in STRIDES for path in (CONFIGS / name).glob("*_coco.py")), ids=lambda path: path.stem
)
def test_maps_have_the_strides_of_the_heads(path):
    detector, size = path.parent.name, (256, 384)
    with torch.device("meta"):
        model = built(read(path))
        maps = model.extract_feat(torch.empty(1, 3, *size))
    expected = [tuple(-(-side // stride) for side in size) for stride in STRIDES[detector]]
    assert [tuple(x.shape[2:]) for x in maps] == expected
    assert {x.shape[1] for x in maps} == {256}
