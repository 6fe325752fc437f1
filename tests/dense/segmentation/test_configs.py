"""Every config of segmentation builds, with maps of the strides and channels that its heads expect, and learns."""

from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from attlas import backbones
from attlas.backbones.channels import fill_channels
from attlas.config import load_config, unread_variables
from attlas.data import fill_classes
from attlas.registry import MODELS

CONFIGS = Path(__file__).parents[3] / "configs"
SEGMENTORS = ("upernet", "semantic_fpn")
OTHERS = dict(upernet={"hornet_horfpn"})  # beside one of each system
WHOLE = ("ffnet_seg",)  # whose backbone and head belong together
FOUND = sorted(path for name in (*SEGMENTORS, *WHOLE) for path in (CONFIGS / name).glob("*.py"))
ROOMS = [path for path in FOUND if path.stem.endswith("_rooms")]
MASK2FORMER = CONFIGS / "mask2former/mask2former_biformer_ade20k.py"
DEEPLABV3 = CONFIGS / "deeplabv3/deeplabv3_affnet_ade20k.py"
SEGFORMER = CONFIGS / "segformer/segformer_fan_cityscapes.py"
SMALL = dict(  # what makes a step of a segmentor a quick one
    ffnet_seg={"model.backbone.depths": (1, 1, 2, 1), "model.decode_head.depth": 2},
    segformer={
        "name": "tap_fan_tiny_8_hybrid",
        "model.decode_head.channels": 32,
        "model.test_cfg": dict(mode="whole"),
    },
    mask2former={
        "classes": 3,
        "model.decode_head.num_queries": 10,
        "model.decode_head.train_cfg.num_points": 200,
        "model.decode_head.pixel_decoder.encoder.num_layers": 1,
        "model.decode_head.transformer_decoder.num_layers": 2,
    },
)
PUBLISHED = [path for path in FOUND if path not in ROOMS]


def taking_turns(paths):
    """Of what every backbone has with each segmentor, one with one and the next with the next."""
    names = sorted({path.stem.removeprefix(f"{path.parent.name}_") for path in paths})
    for path in paths:
        turn = names.index(path.stem.removeprefix(f"{path.parent.name}_")) % len(SEGMENTORS)
        if path.parent.name not in SEGMENTORS or path.parent.name == SEGMENTORS[turn]:
            yield path


STEPS = [*taking_turns(FOUND)]


def built(path, number=5, **overrides):
    config = load_config(path, dict(pretrained="None") | overrides)
    fill_channels(config.model)
    fill_classes(config.model, lambda: number)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


def sample(height, width, classes):
    shape = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (height, width))
    labels = torch.randint(classes, (1, height, width))
    labels[:, :3] = 255
    return SegDataSample(metainfo=shape, gt_sem_seg=PixelData(data=labels))


@pytest.mark.parametrize("segmentor", SEGMENTORS)
def test_there_is_one_for_every_system(segmentor):
    files = {Path(system.__module__.replace(".", "/")).name for system in backbones.systems().values()}
    files -= {"alexnet", "vgg"}  # hosts of explanations, which nobody puts into new segmentors
    found = {path.stem for path in (CONFIGS / segmentor).glob("*_ade20k.py")}
    assert found == {f"{segmentor}_{name}_ade20k" for name in {*files, *OTHERS.get(segmentor, ())}}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path not in STEPS)) for path in PUBLISHED],
)
def test_maps_fit_the_heads(path):
    size = (128, 192)
    with torch.device("meta"):
        model = built(path)
        maps = model.extract_feat(torch.empty(2, 3, *size))
        logits = model.decode_head(maps)
        other = [model.auxiliary_head(maps)] if model.with_auxiliary_head else []
    first = 8 if "lsnet" in path.stem or path.parent.name in WHOLE else 4
    for number, found in enumerate(maps[:4]):
        assert tuple(found.shape[2:]) == tuple(-(-side // (first * 2**number)) for side in size)
    assert logits.shape == (2, 5, size[0] // first, size[1] // first)
    assert [tuple(found.shape) for found in other] == [(2, 5, *maps[2].shape[2:])] * len(other)
    assert unread_variables(path) == {}


@pytest.mark.parametrize(("name", "count"), [("affnet_et", 2.2e6), ("affnet_t", 3.5e6), ("affnet", 7.0e6)])
def test_maps_of_deeplabv3(name, count):
    """One map at stride 16; but for a 3x3 convolution where the authors have 1x1, the published size (6.9 million for
    the largest)."""
    with torch.device("meta"):
        model = built(DEEPLABV3, 150, name=name)
        maps = model.extract_feat(torch.empty(2, 3, 128, 192))
        assert [tuple(x.shape[2:]) for x in maps] == [(8, 12)]
        assert model.decode_head(maps).shape == (2, 150, 8, 12)
    more = 8 * (5 * 256) * 256
    assert sum(p.numel() for p in model.parameters()) - more == pytest.approx(count, abs=5e4)
    assert unread_variables(DEEPLABV3) == {}


def test_the_segmentor_of_fan():
    """Four maps, two of them at stride 16, and the head's ten times the learning rate."""
    with torch.device("meta"):
        model = built(SEGFORMER)
        maps = model.extract_feat(torch.empty(1, 3, 128, 192))
        assert [tuple(x.shape[1:]) for x in maps] == [(128, 32, 48), (256, 16, 24), (448, 8, 12), (448, 8, 12)]
        assert model.decode_head(maps).shape == (1, 5, 32, 48)
    wrapper = build_optim_wrapper(model, load_config(SEGFORMER).optim_wrapper)
    rates = {round(group["lr"], 9) for group in wrapper.optimizer.param_groups}
    assert rates == {6e-5, 6e-4}
    assert unread_variables(SEGFORMER) == {}


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_small_backbones_of_rooms(path):
    """They are those of the pictures of furniture, and begin with their weights where these are shipped."""
    config = load_config(path)
    own, system = dict(config.model.backbone), path.stem.split("_")[-2]
    views = dict(load_config(CONFIGS / f"{system}/{system}_furniture_views.py").model.backbone)
    shipped = CONFIGS / f"{system}/{system}_furniture_views.safetensors"
    given = own.pop("init_cfg")
    assert Path(given.checkpoint).samefile(shipped) if shipped.exists() else given is None
    assert own.pop("out_indices") == (0, 1, 2, 3)
    assert own | {"num_classes": 14} == views | {"type": f"attlas.{views['type']}"}
    assert unread_variables(path) == {}
    fill_channels(config.model)
    fill_classes(config.model, lambda: 17)
    with DefaultScope.overwrite_default_scope("mmseg"), torch.device("meta"):
        model = MODELS.build(config.model)
        assert model.decode_head(model.extract_feat(torch.empty(2, 3, 240, 320))).shape[:2] == (2, 17)


def small(path):
    """The network of a config, for three classes and images of 64 x 96."""
    overrides = dict(SMALL.get(path.parent.name, {}))
    if "transnext" in path.stem:
        overrides["model.backbone.img_size"] = 96  # 512 is a large table of biases
    if "duoformer" in path.stem:
        overrides |= {"model.backbone.depth": 1, "model.backbone.dim": 96}  # of 113 million parameters
    return built(path, 3, **overrides)


@pytest.mark.parametrize(
    "path",
    [
        *(pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (i % 6 > 0)) for i, path in enumerate(STEPS)),
        *(pytest.param(path, id=path.stem) for path in (MASK2FORMER, DEEPLABV3, SEGFORMER)),
    ],
)
def test_a_step(path):
    """Every parameter gets a gradient, with pixels that are ignored; then images of any size are predicted. Every sixth
    is one of the quick tests."""
    torch.manual_seed(0)
    model = small(path).train()
    model.init_weights()
    images, samples = torch.randn(2, 3, 64, 96), [sample(64, 96, 3) for _ in range(2)]
    loss, _ = model.parse_losses(model.loss(images, samples))
    assert loss > 0
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        (found,) = model.eval().predict(torch.randn(1, 3, 50, 75), [sample(50, 75, 3)])
    assert found.pred_sem_seg.data.shape == (1, 50, 75)
    assert found.seg_logits.data.shape == (3, 50, 75)
    assert found.seg_logits.data.isfinite().all()


@pytest.mark.parametrize("name", ["upernet/upernet_lsnet_ade20k", "semantic_fpn/semantic_fpn_shvit_ade20k"])
def test_windows(name):
    """Whole images and windows of the same size are predicted alike."""
    torch.manual_seed(0)
    model = small(CONFIGS / f"{name}.py").eval()
    images, samples = torch.randn(2, 3, 64, 96), [sample(64, 96, 3) for _ in range(2)]
    whole = model.predict(images, samples)
    assert whole[0].pred_sem_seg.data.shape == (1, 64, 96)
    model.test_cfg.update(mode="slide", crop_size=(64, 96), stride=(40, 40))
    slid = model.predict(images, samples)
    assert torch.equal(slid[1].pred_sem_seg.data, whole[1].pred_sem_seg.data)


def test_images_smaller_than_the_crop():
    """They are filled up to the largest of their batch, with pixels that are ignored, and to what the maps need."""
    model = built(CONFIGS / "semantic_fpn/semantic_fpn_lsnet_rooms.py", 3)
    sizes = (50, 70), (64, 40)
    samples = [sample(*size, 3) for size in sizes]
    data = dict(inputs=[torch.zeros(3, *size, dtype=torch.uint8) for size in sizes], data_samples=samples)
    ready = model.data_preprocessor(data, True)
    assert ready["inputs"].shape == (2, 3, 64, 96)
    for (height, width), found in zip(sizes, ready["data_samples"]):
        labels = found.gt_sem_seg.data[0]
        assert labels.shape == (64, 96)
        assert (labels[height:] == 255).all()
        assert (labels[:, width:] == 255).all()
        assert (labels[3:height, :width] < 3).all()
    loss, _ = model.parse_losses(model.loss(**ready))
    assert loss.isfinite()
