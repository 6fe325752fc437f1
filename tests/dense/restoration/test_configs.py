"""Every config of restoration builds, reads its data as published, learns, and restores pictures of any size."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope

from attlas import checkpoint
from attlas.config import load_config, unread_variables
from attlas.registry import DATASETS, METRICS, MODELS

CONFIGS = Path(__file__).parents[3] / "configs"
ALL = sorted(
    path
    for name in ("dncnn", "ffnet_sr", "hat", "isotropic_restorer", "nafnet")
    for path in (CONFIGS / name).glob("*.py")
)
PHOTOS = [path for path in ALL if path.stem.endswith("_photos")]
FOUND = [path for path in ALL if path not in PHOTOS]
SMALL = dict(  # what makes a step a quick one
    HAT=dict(dim=12, depths=(2,), heads=2, compress=3, squeeze=6),
    DnCNN=dict(depth=3, width=8),
    FFNetSR=dict(dim=8, depth=2),
    IsotropicRestorer=dict(dim=8, depth=1),
    NAFNet=dict(width=4, encoders=(1, 1), middle=1, decoders=(1, 1), window=None),
)
DATA = dict(  # by parts of the names of configs: DATA, BENCHMARK
    df2k=("DF2K", "Set5"),
    imagenet=("pictures", "Set5"),
    real=("pictures", "Set5/GTmod12"),
    dfwb=("DFWB", "odd"),
    bsd400=("pictures", "odd"),
    sidd=("SIDD/train", "SIDD/val"),
    gopro=("GoPro/train", "GoPro/test"),
)
SCHEDULES = dict(  # iterations, learning rate, where it falls
    dncnn_b_bsd400=(335_160, 1e-3, [55_860, 111_720, 167_580]),
    dncnn_s_bsd400=(335_160, 1e-3, [55_860, 111_720, 167_580]),
    dncnn_s_weighted_bsd400=(335_160, 1e-3, [55_860, 111_720, 167_580]),
    ffnet_sr_df2k=(500_000, 1e-3, 1e-5),
    hat_denoising_dfwb=(1_600_000, 2e-4, [800_000, 1_200_000, 1_400_000, 1_500_000]),
    hat_df2k=(500_000, 2e-4, [250_000, 400_000, 450_000, 475_000]),
    hat_imagenet_pretraining=(800_000, 2e-4, [300_000, 500_000, 650_000, 700_000, 750_000]),
    hat_jpeg_dfwb=(1_600_000, 2e-4, [800_000, 1_200_000, 1_400_000, 1_500_000]),
    hat_pretrained_df2k=(250_000, 1e-5, [125_000, 200_000, 225_000, 240_000]),
    hat_x4_df2k=(250_000, 1e-4, [125_000, 200_000, 225_000, 240_000]),
    hat_x4_real=(1_000_000, 1e-4, []),
    nafnet_gopro=(200_000, 1e-3, 1e-7),
    nafnet_sidd=(200_000, 1e-3, 1e-7),
    nafnet_weighted_sidd=(200_000, 1e-3, 1e-7),
)


def by_name(path):
    return pytest.mark.parametrize("path", path, ids=lambda path: path.stem)


def write(folder, height, width, names=("a", "b")):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{name}.png"), cv2.resize(pixels, (width, height)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few pictures in every published layout."""
    root = tmp_path_factory.mktemp("data")
    for name in ("DIV2K_train", "Flickr2K"):
        write(root / f"DF2K/{name}_HR_sub", 768, 828)  # 12 x 64, 12 x 69
        for scale in (2, 3, 4):
            write(root / f"DF2K/{name}_LR_bicubic/X{scale}_sub", 768 // scale, 828 // scale)
    write(root / "Set5/GTmod12", 60, 84, ("baby",))
    for scale in (2, 3, 4):
        write(root / f"Set5/LRbicx{scale}", 60 // scale, 84 // scale, ("baby",))
    for name in ("DIV2K", "Flickr2K", "WED", "BSD500"):
        write(root / "DFWB" / name, 130, 150)
    write(root / "pictures", 300, 311)
    write(root / "odd", 37, 61)
    for part, truth, image in (
        ("SIDD/train", "gt_crops", "input_crops"),
        ("SIDD/val", "gt_crops", "input_crops"),
        ("GoPro/train", "sharp_crops", "blur_crops"),
        ("GoPro/test", "target", "input"),
    ):
        for folder in (truth, image):
            write(root / part / folder, *((260, 270) if "train" in part else (37, 61)))
    return root


def loaded(path, data=None, **overrides):
    if data is not None:
        folders = next(folders for key, folders in DATA.items() if key in path.stem)
        overrides |= dict(zip(("data_root", "benchmark"), (str(data / folder) for folder in folders)))
    return load_config(path, overrides)


def small(config):
    """The model of a config with a small network."""
    config.model.network.update(SMALL[config.model.network.type])
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


def restored(model, dataset, metrics):
    """A picture of a data set as the model restores it, and the figures that metrics give it."""
    item = dataset[0]
    samples = model.eval().test_step(pseudo_collate([item]))
    figures = {}
    for metric in metrics:
        metric.process(None, samples)
        figures |= metric.evaluate(1)
    return samples[0]["restored"], item["truth"], figures


@by_name(FOUND)
def test_a_step(path, data):
    """Every parameter gets a gradient; then a picture of odd size is restored, and measured."""
    config = loaded(path, data)
    model = small(config).train()
    train = DATASETS.build(config.train_dataloader.dataset)
    batch = model.data_preprocessor(pseudo_collate([train[0], train[1]]), True)
    losses = model(**batch, mode="loss")
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    assert losses["psnr"] > 3
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    patch = config.train_dataloader.dataset.patch
    assert batch["images"].shape[2:] == (patch, patch)
    metrics = [METRICS.build(metric) for metric in config.val_evaluator]
    picture, truth, figures = restored(model, DATASETS.build(config.test_dataloader.dataset), metrics)
    assert picture.shape == truth.shape
    assert any(side % 16 for side in truth.shape[1:])
    assert len(figures) == 2
    assert all(np.isfinite(value) for value in figures.values())
    assert set(figures) == ({"PSNR_Y", "SSIM_Y"} if "Set5" in str(config.benchmark)[-5:] else {"PSNR_RGB", "SSIM_RGB"})


@by_name(PHOTOS)
def test_a_step_on_photographs(path):
    """As above; the small networks as they are, for their learning rate is for them."""
    config = load_config(path)
    with DefaultScope.overwrite_default_scope("attlas"):
        model = MODELS.build(config.model).train()
    train = DATASETS.build(config.train_dataloader.dataset)
    batch = model.data_preprocessor(pseudo_collate([train[0], train[1]]), True)
    loss, _ = model.parse_losses(model(**batch, mode="loss"))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert sum(p.numel() for p in model.parameters()) < 700_000
    test = DATASETS.build(config.test_dataloader.dataset)
    assert (len(train), len(test)) == (11, 5)
    assert config.param_scheduler[1].end == config.train_cfg.max_iters
    assert config.train_cfg.max_iters % config.train_cfg.val_interval == 0
    names = {metric.type: metric.channels if "channels" in metric else "Y" for metric in config.test_evaluator}
    assert names == dict.fromkeys(("ImagePSNR", "ImageSSIM"), "Y" if model.scale == 2 else "RGB")


@by_name(FOUND)
def test_the_published_network(path):
    """It has the parameters that its class counts."""
    config = loaded(path)
    with torch.device("meta"), DefaultScope.overwrite_default_scope("attlas"):
        model = MODELS.build(config.model)
    count = sum(parameter.numel() for parameter in model.network.parameters())
    variants = sys.modules[type(model.network).__module__].VARIANTS
    if model.scale == 1 and path.parent.name == "hat":  # which is published for super-resolution alone
        assert 20_000_000 < count < 21_000_000
    else:
        assert count in [number for _, number in variants.values()]
    assert unread_variables(path) == {}


@by_name(FOUND)
def test_schedules(path):
    config = loaded(path)
    iterations, rate, falls = SCHEDULES[path.stem]
    assert config.train_cfg.max_iters == iterations
    assert config.optim_wrapper.optimizer.lr == rate
    scheduler = (config.get("param_scheduler") or [dict(milestones=[])])[0]
    assert scheduler.get("milestones", scheduler.get("eta_min")) == falls
    assert scheduler.get("by_epoch", False) is False
    assert scheduler.get("T_max", iterations) == iterations
    assert config.train_dataloader.sampler.type == "EndlessSampler"
    averaged = [hook for hook in config.custom_hooks if hook.type == "EMAHook"]
    assert len(averaged) == (0 if path.parent.name in ("dncnn", "nafnet") else 1)
    assert all(hook.momentum == 0.001 for hook in averaged)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("hat/hat_df2k", dict(name="hat_s", scale="3"), 9_658_111),
        ("hat/hat_df2k", dict(name="hat_l"), 40_698_863),
        ("hat/hat_x4_df2k", dict(name="hat_s"), 9_621_183),
        ("hat/hat_pretrained_df2k", dict(scale="2"), 40_698_863),
        ("hat/hat_imagenet_pretraining", dict(name="hat", scale="3"), 20_809_435),
        ("ffnet_sr/ffnet_sr_df2k", dict(name="ffnet_sr_light", scale="4"), 1_820_592),
        ("dncnn/dncnn_b_bsd400", dict(name="cdncnn_b"), 669_376),
        ("nafnet/nafnet_sidd", dict(name="nafnet_sidd_width64"), 115_982_915),
        ("nafnet/nafnet_gopro", dict(name="nafnet_gopro_width64"), 67_888_835),
    ],
)
def test_variants_by_name(name, overrides, expected):
    config = loaded(CONFIGS / f"{name}.py", **overrides)
    with torch.device("meta"), DefaultScope.overwrite_default_scope("attlas"):
        model = MODELS.build(config.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert all(str(value) in config.work_dir for key, value in overrides.items() if key == "name")
    if "scale" in overrides:
        assert model.scale == config.train_dataloader.dataset.get("scale", model.scale) == int(overrides["scale"])
        assert f"x{overrides['scale']}" in config.work_dir


def test_choices_of_a_config(data):
    config = loaded(CONFIGS / "hat/hat_denoising_dfwb.py", data, channels="1", sigma="15", mixer="RALA")
    model = small(config)
    assert type(model.network.layers[0].blocks[0].mixer.mixer).__name__ == "RALA"
    train = DATASETS.build(config.train_dataloader.dataset)
    assert train.degradation.sigma == 15
    assert train[0]["image"].shape == (1, 128, 128)
    assert loaded(CONFIGS / "hat/hat_jpeg_dfwb.py", quality="10").val_dataloader.dataset.degradation == dict(
        type="JPEG", quality=10
    )
    wide = loaded(CONFIGS / "nafnet/nafnet_gopro.py", name="nafnet_gopro_width64")
    assert (wide.train_cfg.max_iters, wide.train_dataloader.batch_size) == (400_000, 8)
    assert wide.optim_wrapper.optimizer.weight_decay == 1e-3
    for name, layout in (("ffnet_sr", "DF2K_sub"), ("ffnet_sr_light", "DIV2K_sub")):
        light = loaded(CONFIGS / "ffnet_sr/ffnet_sr_df2k.py", name=name, scale="3").train_dataloader
        assert (light.dataset.layout, light.dataset.patch, light.batch_size) == (layout, 64, 64)


def test_trainings_of_different_networks_have_different_folders():
    folders = [
        loaded(CONFIGS / f"hat/hat_{name}.py", **options).work_dir
        for name, choices in (
            ("jpeg_dfwb", dict(channels="3", quality="10")),
            ("denoising_dfwb", dict(channels="1", sigma="15")),
            ("df2k", dict(scale="4")),
            ("imagenet_pretraining", dict(scale="2")),
            ("pretrained_df2k", dict(scale="3")),
            ("x4_df2k", {}),
            ("x4_real", {}),
        )
        for options in ({}, dict(mixer="RALA"), *({key: value} for key, value in choices.items()))
    ]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("mixer", ["own", "RALA"])
def test_weights_come_from_the_training_before(mixer):
    for later, before, count in (("x4_df2k", "df2k", 500), ("pretrained_df2k", "imagenet_pretraining", 800)):
        first, second = (loaded(CONFIGS / f"hat/hat_{stem}.py", mixer=mixer) for stem in (before, later))
        assert second.load_from == f"{first.work_dir}/iter_{count}000.pth"
        assert first.model.network.mixer == second.model.network.mixer == (None if mixer == "own" else mixer)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("hat/hat_df2k", dict(name="hat_xl"), "name is 'hat_xl'; it may be 'hat', 'hat_l', 'hat_s'"),
        ("hat/hat_df2k", dict(scale="5"), "scale is '5'; it may be '2', '3', '4'"),
        ("hat/hat_jpeg_dfwb", dict(channels="4"), "channels is '4'; it may be '1', '3'"),
        ("ffnet_sr/ffnet_sr_df2k", dict(name="ffnet"), "name is 'ffnet'; it may be 'ffnet_sr', 'ffnet_sr_light'"),
        ("ffnet_sr/ffnet_sr_df2k", dict(scale="5"), "scale is '5'; it may be '2', '3', '4'"),
        ("dncnn/dncnn_b_bsd400", dict(name="cdncnn"), "Did you mean 'cdncnn_b'"),
        ("nafnet/nafnet_sidd", dict(name="nafnet_sidd"), "Did you mean 'nafnet_sidd_width"),
    ],
)
def test_choices_that_are_refused(name, overrides, words):
    with pytest.raises(ValueError, match=words):
        loaded(CONFIGS / f"{name}.py", **overrides)


def test_color_has_its_own_pictures():
    for name, train, test in (("dncnn_b", "Train400", "BSD68"), ("cdncnn_b", "CBSD432", "CBSD68")):
        config = loaded(CONFIGS / "dncnn/dncnn_b_bsd400.py", name=name)
        assert config.train_dataloader.dataset.root == f"data/{train}"
        assert config.val_dataloader.dataset.root == config.test_dataloader.dataset.root == f"data/{test}"
    config = loaded(CONFIGS / "dncnn/dncnn_b_bsd400.py", name=name, data_root="here", benchmark="there")
    assert (config.train_dataloader.dataset.root, config.test_dataloader.dataset.root) == ("here", "there")


def test_weights_by_two_begin_the_training_by_four():
    config = loaded(CONFIGS / "hat/hat_x4_df2k.py")
    by_two, by_four = small(loaded(CONFIGS / "hat/hat_df2k.py")), small(config)
    with pytest.raises(ValueError, match="looks like HAT\\(scale=2"):  # so says whoever did not mean it
        checkpoint.load(by_four, by_two.state_dict())
    account = checkpoint.load(by_four, by_two.state_dict(), ignore_mismatched=config.ignore_mismatched)
    assert account.missing == ["network.upsample.2.weight", "network.upsample.2.bias"]
    assert torch.equal(by_four.network.conv_last.weight, by_two.network.conv_last.weight)


def test_files_of_gan_generators_load(tmp_path):
    """They hold the averaged weights alone, under the names of all other files of HAT."""
    network = small(loaded(CONFIGS / "hat/hat_x4_real.py")).network
    theirs = {name: value + 0.01 for name, value in _theirs(network.state_dict()).items()}
    torch.save(dict(params_ema=theirs), tmp_path / "Real_HAT_GAN_SRx4.pth")
    found = type(network).from_file(tmp_path / "Real_HAT_GAN_SRx4.pth")
    assert found.scale == 4
    assert torch.equal(found.conv_last.weight, theirs["conv_last.weight"])
    model = small(loaded(CONFIGS / "hat/hat_x4_real.py"))
    account = checkpoint.load(model, checkpoint.read(tmp_path / "Real_HAT_GAN_SRx4.pth"))
    assert account.complete


def _theirs(state):
    """The state dict of a HAT under the authors' names."""
    pairs = (
        (".overlap.mixer.table", ".residual_group.overlap_attn.relative_position_bias_table"),
        (".overlap.mixer.", ".residual_group.overlap_attn."),
        (".overlap.", ".residual_group.overlap_attn."),
        (".blocks.", ".residual_group.blocks."),
        ("norm_first.", "patch_embed.norm."),
        (".mixer.channels.conv1.", ".conv_block.cab.0."),
        (".mixer.channels.conv2.", ".conv_block.cab.2."),
        (".mixer.channels.gate.fc1.", ".conv_block.cab.3.attention.1."),
        (".mixer.channels.gate.fc2.", ".conv_block.cab.3.attention.3."),
        (".mixer.mixer.table", ".attn.relative_position_bias_table"),
        (".mixer.mixer.", ".attn."),
    )
    found = {}
    for name, value in state.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        found[name] = value
    return found
