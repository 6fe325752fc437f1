"""SSD learns and predicts, at the sizes that its anchors are made for."""

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from attlas.backbones.channels import fill_channels
from attlas.config import load_config, unread_variables
from attlas.data import fill_classes
from attlas.registry import MODELS

CONFIG = Path(__file__).parents[3] / "configs/ssdlite/ssdlite_affnet_coco.py"


def built(**overrides):
    config = load_config(CONFIG, dict(pretrained="None") | overrides)
    fill_channels(config.model)
    fill_classes(config.model, lambda: 3)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


def scene(side):
    shape = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (side, side))
    boxes = torch.tensor([[16.0, 8, 72, 40], [40, 50, 90, 90]])
    sample = DetDataSample(
        metainfo=shape | dict(scale_factor=(1.0, 1.0)),
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([1, 2])),
    )
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)), [sample]


@pytest.mark.parametrize("name", ["affnet_et", "affnet_t", "affnet"])
def test_maps_fit_the_anchors(name):
    with torch.device("meta"):
        model = built(name=name)
        maps = model.extract_feat(torch.empty(1, 3, 320, 320))
    assert [x.shape[2] for x in maps] == [40, 20, 10, 5, 3, 2]
    assert [x.shape[1] for x in maps] == model.bbox_head.in_channels
    strides = [stride for stride, _ in model.bbox_head.prior_generator.strides]
    assert [round(320 / stride) for stride in strides] == [40, 20, 10, 5, 3, 2]
    assert model.bbox_head.num_base_priors == [6] * 6
    convs = [part for part in model.bbox_head.modules() if isinstance(part, torch.nn.Conv2d)]
    assert {conv.kernel_size for conv in convs if conv.groups == 1} == {(1, 1)}
    assert unread_variables(CONFIG) == {}


def test_a_step():
    torch.manual_seed(0)
    model = built(name="affnet_et").train()
    model.init_weights()
    images, samples = scene(128)
    images = images.repeat(2, 1, 1, 1)  # norms of the smallest map want more than one pixel
    loss, _ = model.parse_losses(model.loss(images, samples * 2))
    loss.backward()
    assert loss > 0
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_what_is_learned_is_predicted():
    """The boxes of one image, after some steps on it."""
    torch.manual_seed(0)
    model = built(name="affnet_et", **{"model.backbone.depths": (1, 1, 1, 1)})
    images, samples = scene(128)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(60):
        loss, _ = model.train().parse_losses(model.loss(images.repeat(2, 1, 1, 1), samples * 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval().predict(images, samples)
    best = found.pred_instances[:2]
    order = best.labels.argsort()
    assert best.labels[order].tolist() == [1, 2]
    assert (best.scores > 0.5).all()
    overlaps = bbox_overlaps(best.bboxes[order], samples[0].gt_instances.bboxes)
    assert (overlaps.diagonal() > 0.6).all()


def test_the_fork_needs_it():
    """mmdet's own head stops in decoding."""
    model, (images, samples) = built(name="affnet_et", **{"model.bbox_head.type": "SSDHead"}).eval(), scene(128)
    with torch.no_grad(), pytest.raises(AttributeError, match="'SSDHead' object has no attribute 'loss_cls'"):
        model.predict(images, samples)
