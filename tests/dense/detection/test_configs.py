"""Every detection config builds, with maps of the strides that its heads expect; one of each backbone, and so of each
detector, gives losses and gradients."""

from itertools import cycle, product
from pathlib import Path

import pytest
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData

from attlas import backbones, checkpoint
from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.data import fill_classes
from attlas.registry import MODELS

CONFIGS = Path(__file__).parents[3] / "configs"
STRIDES = dict(retinanet=(8, 16, 32, 64, 128), mask_rcnn=(4, 8, 16, 32, 64), relation_detr=(8, 16, 32, 64))
SMALL = dict(  # what makes a step of a detector a quick one
    mask_rcnn={"train_cfg.rcnn.sampler.num": 32, "test_cfg.rpn.max_per_img": 20, "test_cfg.rcnn.max_per_img": 5},
    relation_detr={"num_queries": 20, "num_hybrid_queries": 30, "encoder.num_layers": 1, "decoder.num_layers": 2},
)
OTHERS = dict(  # beside one of each system
    mask_rcnn={"hornet_horfpn"},
    relation_detr={"r50", "r50_2x", "r50_mixer", "swin_l"},
)
EXPLAINED = {"alexnet", "vgg"}  # hosts of explanations, which nobody puts into new detectors
SYSTEMS = sorted({system.__module__.rpartition(".")[2] for system in backbones.systems().values()} - EXPLAINED)


def read(detector, system, **overrides):
    config = load_config(CONFIGS / detector / f"{detector}_{system}_coco.py", dict(pretrained="None") | overrides)
    fill_channels(config.model)
    fill_classes(config.model, lambda: 3)
    return config


def built(config):
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


@pytest.mark.parametrize("detector", STRIDES)
def test_there_is_one_for_every_system(detector):
    found = {path.stem for path in (CONFIGS / detector).glob("*_coco.py")}
    assert found == {f"{detector}_{name}_coco" for name in {*SYSTEMS, *OTHERS.get(detector, ())}}


def test_of_rooms():
    config = load_config(CONFIGS / "retinanet/retinanet_biformer_rooms.py", dict(pretrained="None"))
    fill_channels(config.model)
    maps = built(config).extract_feat(torch.randn(1, 3, 240, 320))
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 30, 40), (64, 15, 20), (64, 8, 10), (64, 4, 5)]


@pytest.mark.parametrize(
    "name", ["retinanet/retinanet", "bvr/bvr_retinanet", "dino/dino", "relation_detr/relation_detr"]
)
def test_detectors_of_rooms(name):
    """They begin with the weights that are shipped, lose something, and predict."""
    config = load_config(CONFIGS / f"{name}_biformer_rooms.py")
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
    ("detector", "system"), [*product(STRIDES, SYSTEMS), ("mask_rcnn", "hornet_horfpn"), ("panoptic_fpn", "biformer")]
)
def test_maps_have_the_strides_of_the_heads(detector, system):
    size = 256, 384
    with torch.device("meta"):
        model = built(read(detector, system))
        maps = model.extract_feat(torch.empty(1, 3, *size))
    strides = STRIDES["mask_rcnn" if detector == "panoptic_fpn" else detector]
    expected = [tuple(-(-side // stride) for side in size) for stride in strides]
    assert [tuple(x.shape[2:]) for x in maps] == expected
    assert {x.shape[1] for x in maps} == {256}


def scene():
    """Two images of different sizes, with a box and a mask each."""
    samples = []
    for height, width in (64, 96), (50, 96):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                pad_shape=(64, 96),
                batch_input_shape=(64, 96),
                scale_factor=(1, 1),
            )
        )
        mask = torch.zeros(1, 64, 96, dtype=torch.uint8)
        mask[:, 8:40, 16:72] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[16.0, 8, 72, 40]]), labels=torch.tensor([1]), masks=BitmapMasks(mask.numpy(), 64, 96)
        )
        samples.append(sample)
    return torch.randn(2, 3, 64, 96), samples


STEPS = [*zip(cycle(STRIDES), SYSTEMS), ("mask_rcnn", "hornet_horfpn")]
SOME = 2 * len(STRIDES)  # that the quick tests try


@pytest.mark.parametrize(
    ("detector", "system"), [*STEPS[:SOME], *(pytest.param(*step, marks=pytest.mark.slow) for step in STEPS[SOME:])]
)
def test_a_step(detector, system):
    small = dict(SMALL.get(detector, {}))
    if system == "transnext":
        small["backbone.img_size"] = 96  # 800 is a large table of biases
    if system == "duoformer":
        small |= {"backbone.depth": 1, "backbone.dim": 96}  # of 113 million parameters
    model = built(read(detector, system, **{f"model.{key}": value for key, value in small.items()})).train()
    if detector == "relation_detr":
        torch.nn.init.normal_(model.level_embed)  # which mmdet leaves uninitialized until init_weights()
        assert checkpoint.load(model, model.state_dict()).complete
    images, samples = scene()
    losses = model.loss(images, samples)
    sum(part.sum() for loss in losses.values() for part in (loss if isinstance(loss, list) else [loss])).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        results = model.eval().predict(images, scene()[1])
    assert all(result.pred_instances.bboxes.isfinite().all() for result in results)


def test_a_step_of_panoptic_segmentation():
    """Things by Mask R-CNN, stuff by the second head; the fusion gives each pixel one segment or none."""
    torch.manual_seed(0)
    options = {"things": 3, "stuff": 2} | {f"model.{key}": value for key, value in SMALL["mask_rcnn"].items()}
    model = built(read("panoptic_fpn", "biformer", **options)).train()
    assert (model.roi_head.bbox_head.num_classes, model.roi_head.mask_head.num_classes) == (3, 3)
    images, samples = scene()
    for sample in samples:
        labels = torch.full((1, 64, 96), 3)
        labels[:, 40:], labels[:, 8:40, 16:72] = 4, 1
        sample.gt_sem_seg = PixelData(sem_seg=labels)
    loss, losses = model.parse_losses(model.loss(images, samples))
    assert {"loss_rpn_cls", "loss_bbox", "loss_mask", "loss_seg"} <= losses.keys()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.test_cfg.rcnn.score_thr = 0.0
    model.panoptic_fusion_head.test_cfg.stuff_area_limit = 1
    with torch.no_grad():
        results = model.eval().predict(images, samples)
    for result, (height, width) in zip(results, ((64, 96), (50, 96))):
        found = result.pred_panoptic_seg.sem_seg
        assert found.shape == (1, height, width)
        classes = found.unique() % INSTANCE_OFFSET
        assert set(classes.tolist()) <= set(range(6))  # 5: no segment
        assert len(classes) > 1
