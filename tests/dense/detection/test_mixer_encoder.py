"""Mixers in the encoders of mmdet's DETRs and of Relation-DETR."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch.testing import assert_close

from attlas import backbones, checkpoint  # noqa: F401  the first registers
from attlas.config import load_config
from attlas.dense.detection.mixer_encoder import LevelMixer, rectangles
from attlas.dense.layers import MultiScaleDeformableAttention
from attlas.registry import MIXERS, UnknownName

CONFIGS = Path(__file__).parents[3] / "configs/relation_detr"
PUBLISHED = {
    "DINO": "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
    "DeformableDETR": "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
}
MIXER_NAMES = sorted(MIXERS.module_dict)


def options(name, **encoder):
    """A detector of 256 channels that is small otherwise, ours by "Mixer..." or mmdet's own."""
    plain = name.removeprefix("Mixer")
    if plain in PUBLISHED:
        config = Config.fromfile(Config._get_cfg_path(PUBLISHED[plain], "")[0])
    else:
        config = load_config(CONFIGS / "relation_detr_r50_coco.py", {"model.num_hybrid_queries": 9})
    small = {
        "num_queries": 7,
        "encoder.num_layers": 2,
        "decoder.num_layers": 2,
        "encoder.layer_cfg.ffn_cfg.feedforward_channels": 32,
        "decoder.layer_cfg.ffn_cfg.feedforward_channels": 32,
        "backbone.init_cfg": None,
        "backbone.depth": 18,
        "backbone.base_channels": 8,
        "bbox_head.num_classes": 3,
        "test_cfg.max_per_img": 5,
        "neck.in_channels": [16, 32, 64],
    }
    if plain != "DeformableDETR":
        small["dn_cfg.group_cfg.num_dn_queries"] = 4
    config = Config(dict(model=config.model))
    config.merge_from_dict({f"model.{key}": value for key, value in small.items()})
    if name != plain:
        config.model.type = f"attlas.{name}"
    if "mixer" in encoder:
        config.model.encoder.layer_cfg.self_attn_cfg = None
    config.model.encoder.update(encoder)
    return config.model


def build(name, **encoder):
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(options(name, **encoder))
    torch.nn.init.normal_(model.level_embed)  # which mmdet leaves uninitialized until init_weights()
    return model


def scene(*sizes):
    """Images of some sizes, at the top left of a batch with noise around them, and samples of two objects each."""
    batch = tuple(max(sides) for sides in zip(*sizes))
    samples = []
    for size in sizes:
        corner = torch.rand(2, 2) * min(size) * 0.5
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=batch, scale_factor=(1, 1)))
        boxes = torch.cat([corner, corner + 2 + torch.rand(2, 2) * min(size) * 0.4], 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(3, (2,)))
        samples.append(sample)
    return torch.randn(len(sizes), 3, *batch), samples


def tokens(maps):
    return torch.cat([x.flatten(2).mT for x in maps], 1)


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_every_mixer(name):
    """A step of two images of odd sizes, of which each has padding; the coarsest maps have one pixel."""
    model = build("RelationDETR", mixer=name).train()
    losses = model.loss(*scene((75, 61), (43, 101)))
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values())
    layers = [layer.self_attn for layer in model.encoder.layers]
    assert all(type(layer) is LevelMixer for layer in layers)
    assert type(layers[0].mixer) is MIXERS.get(name)
    for layer in layers:
        learning = [p for p in layer.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MIXER_NAMES)
def test_an_image_in_a_batch_gets_what_it_gets_alone(name, training):
    """Whatever stands in its padding, which gets nothing itself."""
    shapes = [(9, 5), (5, 3), (1, 1)]
    sizes = [[(9, 5), (5, 3), (1, 1)], [(4, 3), (2, 2), (1, 1)], [(9, 2), (5, 1), (1, 1)], [(4, 3), (2, 2), (1, 1)]]
    mixer = LevelMixer(name, 64).train(training)
    for p in mixer.parameters():  # some norms begin with zeros
        if p.ndim == 1:
            torch.nn.init.normal_(p)
    images = [[torch.randn(1, 64, *size) for size in levels] for levels in sizes]
    maps = [torch.full((4, 64, *shape), torch.nan) for shape in shapes]
    for i, levels in enumerate(images):
        for x, image in zip(maps, levels):
            x[i, :, : image.shape[2], : image.shape[3]] = image[0]
    batch = tokens(maps)
    padding = batch.isnan().any(-1)
    with torch.no_grad():
        got = mixer(batch, torch.zeros_like(batch), padding, spatial_shapes=torch.tensor(shapes))
        nothing = mixer(batch.nan_to_num(3.0), None, padding, spatial_shapes=torch.tensor(shapes))
        for i, levels in enumerate(images):
            alone = mixer(tokens(levels), spatial_shapes=torch.tensor(sizes[i]))
            assert_close(got[i, ~padding[i]], alone[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got[~padding], batch[~padding])
    assert (nothing[padding] == 3).all()


@pytest.mark.parametrize("name", ["MixerDINO", "MixerDeformableDETR", "RelationDETR"])
@pytest.mark.parametrize("mixer", ["GnConv", dict(type="BiLevelRouting", regions=3, topk=2)], ids=["name", "options"])
def test_detectors(name, mixer):
    model = build(name, mixer=mixer).train()
    images, samples = scene((64, 64), (64, 50))
    losses = model.loss(images, samples)
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    attentions = [n for n, part in model.named_modules() if isinstance(part, MultiScaleDeformableAttention)]
    assert attentions == ["decoder.layers.0.cross_attn", "decoder.layers.1.cross_attn"]
    if mixer != "GnConv":
        assert model.encoder.layers[1].self_attn.mixer.regions == 3
        assert model.encoder.layers[1].self_attn.mixer.topk == 2
    for batch in ((64, 64), (64, 50)), ((64, 64), (64, 64)):  # the second without a mask
        results = model.eval().predict(*scene(*batch))
        assert all(r.pred_instances.bboxes.isfinite().all() for r in results)


@pytest.mark.parametrize("name", ["DINO", "DeformableDETR"])
def test_without_a_mixer_a_detector_is_that_of_mmdet(name):
    plain, ours = build(name).eval(), build(f"Mixer{name}").eval()
    assert ours.load_state_dict(plain.state_dict())
    images, samples = scene((64, 64), (64, 50))
    with torch.no_grad():
        expected, got = plain._forward(images, samples), ours._forward(images, samples)
    assert_close(got[0], expected[0], rtol=1e-4, atol=1e-4)
    assert_close(got[1], expected[1], rtol=1e-4, atol=1e-4)


def test_in_mixed_precision():
    model = build("MixerDINO", mixer="RALA").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(*scene((64, 64), (64, 50)))
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["MixerDINO", "MixerDeformableDETR", "RelationDETR"])
def test_initial_values(name, tmp_path):
    """A mixer has its own, the layer around it those of mmdet; a checkpoint has all."""
    model = build(name, mixer="NeighborhoodAttention")
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    model.init_weights()
    changed = {key for key, value in model.encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert any("ffn" in key for key in changed)
    assert not any("self_attn" in key for key in changed)
    file = tmp_path / "all.safetensors"
    checkpoint.save(file, model.state_dict())
    again = options(name, mixer="NeighborhoodAttention") | dict(init_cfg=dict(type="Pretrained", checkpoint=str(file)))
    with DefaultScope.overwrite_default_scope("mmdet"):
        loaded = MODELS.build(again)
    loaded.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))


def test_wrong_options():
    with pytest.raises(UnknownName, match=r"'BiLevelRoutin' is not a registered mixer\.\nNear names: BiLevelRouting"):
        build("MixerDINO", mixer="BiLevelRoutin")
    with pytest.raises(KeyError, match="type"):
        build("MixerDINO", mixer=dict(regions=7))
    with pytest.raises(ValueError, match="GnConv: dim=256 must be divisible by"):
        build("MixerDINO", mixer=dict(type="GnConv", order=20))
    attention = dict(embed_dims=256, num_levels=4)
    with pytest.raises(ValueError, match=r"encoder\.mixer='GnConv' takes the place of .*self_attn_cfg=.*Leave one"):
        build("MixerDINO", mixer="GnConv", layer_cfg=dict(self_attn_cfg=attention))
    with pytest.raises(TypeError, match="mixer"):
        build("DINO", mixer="GnConv")


def test_padding_must_leave_a_rectangle():
    masks = [torch.zeros(2, 3, 4, dtype=torch.bool), torch.ones(2, 2, 2, dtype=torch.bool)]
    masks[0][1, 2:] = masks[0][1, :, 1:] = True
    assert rectangles(masks) == [[(3, 4), (2, 1)], [(0, 0), (0, 0)]]
    masks[0][1, 0, 3] = False
    with pytest.raises(ValueError, match="image 1 of the batch must be a rectangle at the top left of level 0"):
        rectangles(masks)


@pytest.mark.parametrize("mixer", [None, "GnConv"])
def test_the_config(mixer):
    config = load_config(CONFIGS / "relation_detr_r50_mixer_coco.py", dict(mixer=mixer) if mixer else {})
    mixer = mixer or "BiLevelRouting"
    assert config.work_dir == f"work_dirs/relation_detr_r50_{mixer}_coco"
    config.model.bbox_head.num_classes = 80
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        encoder = MODELS.build(config.model).encoder
    assert [type(layer.self_attn.mixer) for layer in encoder.layers] == [MIXERS.get(mixer)] * 6
