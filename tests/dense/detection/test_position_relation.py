"""The plug-in in mmdet's detectors."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch.testing import assert_close

from attlas import checkpoint
from attlas.dense.detection.position_relation import PositionRelation

PUBLISHED = {
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "DeformableDETR": "deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py",
    "two-stage DeformableDETR": "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py",
    "DABDETR": "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
}


def build(name, relation=None, plain=False):
    """One of mmdet's published detectors with our class, at a small size."""
    config = Config.fromfile(Config._get_cfg_path(f"mmdet::{PUBLISHED[name]}", "")[0]).model
    small = {
        "num_queries": 7,
        "encoder.num_layers": 1,
        "decoder.num_layers": 3,
        "encoder.layer_cfg.ffn_cfg.feedforward_channels": 32,
        "decoder.layer_cfg.ffn_cfg.feedforward_channels": 32,
        "backbone.init_cfg": None,
        "backbone.depth": 18,
        "bbox_head.num_classes": 3,
        "test_cfg.max_per_img": 5,
        "neck.in_channels": [512] if name == "DABDETR" else [128, 256, 512],
    }
    config = Config(dict(model=config))
    config.merge_from_dict({f"model.{key}": value for key, value in small.items()})
    if not plain:
        config.model.type = f"attlas.Relation{name.split()[-1]}"
    if relation is not None:
        config.model.decoder.position_relation = relation
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.model)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim < 2 else p[0].numel() ** -0.5)
    return model


def scene(*counts, side=64):
    samples = []
    for count in counts:
        corner = torch.rand(count, 2) * side * 0.7
        sample = DetDataSample(
            metainfo=dict(img_shape=(side, side), batch_input_shape=(side, side), scale_factor=(1, 1))
        )
        boxes = torch.cat([corner, corner + 2 + torch.rand(count, 2) * side * 0.25], 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(3, (count,)))
        samples.append(sample)
    return torch.randn(len(counts), 3, side, side), samples


def outputs(model, images, samples):
    with torch.no_grad():
        return model.eval()._forward(images, samples)


@pytest.mark.parametrize("name", ["DeformableDETR", "two-stage DeformableDETR", "DABDETR"])
def test_without_it_a_detector_is_that_of_mmdet(name):
    """And with a relation of zeros, whose loop is our own."""
    images, samples = scene(2, 1)
    plain, none, zero = build(name, plain=True), build(name), build(name, dict(num_heads=8))
    torch.nn.init.zeros_(zero.decoder.position_relation.proj.bias)
    torch.nn.init.zeros_(zero.decoder.position_relation.proj.weight)
    none.load_state_dict(plain.state_dict())
    answer = zero.load_state_dict(plain.state_dict(), strict=False)
    assert answer.missing_keys == ["decoder.position_relation.proj.weight", "decoder.position_relation.proj.bias"]
    assert not answer.unexpected_keys
    expected = outputs(plain, images, samples)
    for model in (none, zero):
        for got, wanted in zip(outputs(model, images, samples), expected):
            assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "first"), [("DINO", 1), ("DeformableDETR", 2), ("two-stage DeformableDETR", 1), ("DABDETR", 1)]
)
def test_the_relation_acts_from_layer_to_layer(name, first):
    """`first` is the first layer that it reaches: the second, or the third where the first references are points."""
    images, samples = scene(2, 1)
    model = build(name, dict(num_heads=8))
    if name == "DINO":
        model.dn_query_generator.num_dn_queries = 4
    torch.nn.init.ones_(model.decoder.position_relation.proj.bias)
    before = outputs(model, images, samples)[0]
    with torch.no_grad():
        model.decoder.position_relation.proj.weight.add_(1)
    after = outputs(model, images, samples)[0]
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [layer < first for layer in range(3)]
    losses = model.train().loss(images, samples)
    sum(x.sum() if torch.is_tensor(x) else sum(x) for x in losses.values()).backward()
    assert model.decoder.position_relation.proj.weight.grad.any()


def test_init_weights_keeps_the_range_of_the_relation():
    model = build("DINO", dict(num_heads=8))
    model.init_weights()
    assert model.decoder.position_relation.proj.weight.abs().max() <= 64**-0.5


def test_a_checkpoint_of_the_whole_detector_is_kept(tmp_path):
    """mmdet would load it, and then draw the matrices of encoder and decoder again."""
    model, other = build("DINO", dict(num_heads=8)), build("DINO", dict(num_heads=8))
    file = tmp_path / "dino.safetensors"
    checkpoint.save(file, model.state_dict())
    other.init_cfg = dict(type="Pretrained", checkpoint=str(file))
    other.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_what_cannot_be_related_is_refused():
    images, samples = scene(1)
    model = build("DeformableDETR", dict(num_heads=8))
    model.with_box_refine = False
    with pytest.raises(ValueError, match="position_relation must be None unless with_box_refine=True"):
        outputs(model, images, samples)


def test_half_precision_and_mixed_dtypes():
    relation = PositionRelation(4).bfloat16()
    source, target = torch.rand(2, 3, 4), torch.rand(2, 5, 4).bfloat16()
    bias = relation(source, target)
    assert bias.dtype == torch.bfloat16
    expected = relation.float()(source, target.float())
    assert_close(bias.float(), expected, rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(relation(source, target), expected)
