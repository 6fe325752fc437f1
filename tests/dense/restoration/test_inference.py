"""Restorers asked about pictures: form, opacity, tint, tiles and place are kept; a file tells its network."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image, ImageCms
from small_restorers import ByImresize, SmallUpscaler
from torch import nn

import attlas
from attlas import checkpoint, images
from attlas.backbones.inspection.explaining import explain
from attlas.data import build_transforms
from attlas.dense.restoration import HAT, DnCNN, FFNetSR, NAFNet, Restorer
from attlas.dense.restoration import restorer as module
from attlas.dense.restoration.degradations import Bicubic, imresize
from attlas.dense.restoration.inference import Restoration
from attlas.inference import Inferencer
from attlas.registry import MODELS

ROOT = Path(__file__).parents[3]
SMALL_HAT = dict(scale=2, dim=12, depths=(2,), heads=2, window=4, compress=3, squeeze=6)


def asked(network=None, options=(), **more):
    """An inferencer of a network, a module or its options of `ByImresize`."""
    model = Restorer(dict(type="ByImresize", **(network if isinstance(network, dict) else {})), **dict(options)).eval()
    if isinstance(network, nn.Module):
        model.network = network
    model.classes, model.transforms = (), Restoration().prepare(build_transforms([dict(type="PackPair")]))
    return Inferencer(model, **more)


def picture(*shape, dtype=np.uint8, seed=0):
    """Smooth, so that enlarging it does not leave the range."""
    noise = np.random.default_rng(seed).uniform(0.2, 0.8, (-(-shape[0] // 4), -(-shape[1] // 4), *shape[2:]))
    smooth = imresize(noise, size=shape[:2]).clip(0.05, 0.95)
    return np.round(smooth * np.iinfo(dtype).max).astype(dtype)


def restored(ask, image):
    (result,) = ask(image)
    assert "error" not in result, result
    return result["restored"]


def close(got, expected, most):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert abs(got.astype(int) - expected).max() <= most


# --- the form of a picture -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(17, 23), (17, 23, 3), (17, 23, 4), (1, 1), (1, 1, 4), (2, 600, 3)])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_depth_and_channels_are_kept(dtype, shape, scale):
    image = picture(*shape, dtype=dtype)
    if shape[2:] == (4,):
        image[..., 3] = np.iinfo(dtype).max
    got = restored(asked(dict(scale=scale)), image)
    close(got, imresize(image, scale), 2)  # which rounds behind each axis


def test_a_result(tmp_path):
    assert Restoration.suffixes == images.SUFFIXES
    cv2.imwrite(str(tmp_path / "a.png"), picture(8, 10, 3))
    ask = asked()
    (result,) = ask(tmp_path)
    assert set(result) == {"input", "restored", "height", "width", "network", "scale", "drift"}
    assert result["restored"].shape == (result["height"], result["width"], 3) == (16, 20, 3)
    assert ask.task.said(result) == "ByImresize x2, 20 x 16 pixels"
    assert ask.task.save(None, result, tmp_path / "larger") == {}
    json.dumps(result)
    assert images.read_pixels(tmp_path / "larger.png").shape == (16, 20, 3)


def test_pictures_of_many_sizes_in_a_call():
    """They do not share a batch, and a result does not depend on the pictures beside it."""
    ask = asked(SmallUpscaler(start=0.1, multiple=4))
    given = [picture(*size, seed=i) for i, size in enumerate([(9, 9, 3), (9, 9, 3), (9, 12, 3), (9, 9), (80, 80, 3)])]
    for result, image in zip(ask([*given, given[-1]]), [*given, given[-1]]):
        close(result["restored"], restored(ask, image), 0)
    small, large = (ask.model.transforms(dict(image=image)) for image in (given[0], given[-1]))
    assert ask.task.form(small) == ask.task.form(small)
    assert ask.task.form(large) != ask.task.form(large)


@pytest.mark.parametrize("image", [np.zeros((3, 3)), np.zeros((3, 3, 2), np.uint8), np.zeros((0, 3), np.uint8), "P"])
def test_what_is_no_picture(image):
    given = np.zeros((2, 3, 3, 3), np.uint8) if isinstance(image, str) else image
    (result,) = asked()([given])
    assert result["error"].startswith("a picture must be uint8 or uint16, (H, W), (H, W, 3) or (H, W, 4)")


def test_files_of_every_kind(tmp_path):
    """Palette, ink, grey, opacity, EXIF; what is written is what came back, upright."""
    colors = Image.fromarray(picture(12, 16, 3))
    turned = Image.Exif()
    turned[0x112] = 6
    key = colors.convert("P").getpixel((0, 0))
    kinds = {
        "palette.png": (colors.convert("P"), {}, (24, 32, 3)),
        "clear.png": (colors.convert("P"), dict(transparency=key), (24, 32, 4)),
        "grey.png": (colors.convert("L"), {}, (24, 32)),
        "grey_opacity.png": (colors.convert("LA"), {}, (24, 32, 4)),
        "ink.jpg": (colors.convert("CMYK"), {}, (24, 32, 3)),
        "turned.jpg": (colors, dict(exif=turned), (32, 24, 3)),
        "turned.png": (colors.convert("RGBA"), dict(exif=turned), (32, 24, 4)),
        "turned.webp": (colors, dict(exif=turned, lossless=True), (32, 24, 3)),
        "bits.png": (colors.convert("1"), {}, (24, 32)),
    }
    ask = asked()
    for name, (image, options, shape) in kinds.items():
        image.save(tmp_path / name, **options)
        (result,) = ask(tmp_path / name)
        assert result["restored"].shape == shape, name
        expected = result["restored"].copy()
        ask.task.save(None, result, tmp_path / "out")
        written = tmp_path / "out.png"
        assert np.array_equal(images.read_pixels(written), expected)
        assert Image.open(written).getexif().get(0x112) is None
        if not name.startswith(("clear", "bits")):  # of which bicubic leaves the range
            colored = images.read_image(tmp_path / name)
            close(images.read_image(written), imresize(colored, 2), 3)


def test_a_broken_picture_has_an_error(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture(12, 16, 3))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:200] + b"x" + content[201:])
    (tmp_path / "c.png").write_bytes(content[:-30])
    first, *broken = asked()(tmp_path)
    assert "restored" in first
    assert ["checksum" in broken[0]["error"], "breaks off" in broken[1]["error"]] == [True, False]
    assert "is declared, which the PNG does not hold" in broken[1]["error"]


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, cv2.error, torch.OutOfMemoryError])
def test_a_picture_at_which_the_network_fails_ends_no_folder(kind):
    network = SmallUpscaler(start=0.1)

    def full(_, inputs):
        if inputs[0].shape[0] > 1 or inputs[0].mean() > 0.7:
            raise kind("memory is out")

    network.register_forward_pre_hook(full)
    bright = np.full((12, 16, 3), 200, np.uint8)
    first, failed, last = asked(network)([bright // 2, bright, bright // 4])
    assert "restored" in first
    assert "restored" in last
    assert failed["error"].startswith(f"{kind.__name__}: ")
    assert "memory is out" in failed["error"]


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("change", ["", "long", "GRAY", "CMYK", "damaged", "huge", "none"])
def test_a_color_profile_is_kept_or_said_to_be_lost(tmp_path, suffix, change):
    """Of a JPEG also in parts; in place of red, green and blue the profile may be of others, which do not fit."""
    profile = bytearray(PROFILE)
    if change in ("long", "huge"):
        profile += np.random.default_rng(0).bytes(150_000) if change == "long" else bytes(2**22)
        profile[:4] = len(profile).to_bytes(4, "big")
    elif change == "damaged":
        del profile[-9:]
    elif change in ("GRAY", "CMYK"):
        profile[16:20] = change.encode()
    profile, file = bytes(profile), tmp_path / f"a.{suffix}"
    Image.fromarray(picture(12, 16, 3)).save(file, **({} if change == "none" else dict(icc_profile=profile)))
    ask = asked()
    (result,) = ask(file)
    said = ask.task.said(result)
    ask.task.save(None, result, tmp_path / "out")
    json.dumps(result)
    kept = change in ("", "long")
    assert result.get("profile_kept") == (None if change == "none" else kept)
    assert ("its color profile is not kept" in said) == (not kept and change != "none")
    assert Image.open(tmp_path / "out.png").info.get("icc_profile") == (profile if kept else None)
    assert images.read_pixels(tmp_path / "out.png").shape == (24, 32, 3)


def test_a_profile_of_grey_is_kept_of_grey(tmp_path):
    for name, profile in (("a.png", PROFILE[:16] + b"GRAY" + PROFILE[20:]), ("b.png", PROFILE)):
        Image.fromarray(picture(12, 16)).save(tmp_path / name, icc_profile=profile)
    Image.fromarray(picture(12, 16, 4)).save(tmp_path / "c.png", icc_profile=PROFILE)
    assert [result["profile_kept"] for result in asked()(tmp_path)] == [True, False, True]


# --- channels of the picture and of the network ----------------------------------------------------------------------


def test_grey_through_a_network_of_colors_and_colors_through_one_of_grey():
    torch.manual_seed(0)
    colored, grey = (DnCNN(in_channels=channels, depth=3, width=4).eval() for channels in (3, 1))
    for network in (colored, grey):
        network.layers[-1].weight.data *= 0.05  # so that nothing leaves the range
    image = picture(20, 30, 3)
    one_by_one = [restored(asked(grey), np.ascontiguousarray(image[..., c])) for c in range(3)]
    close(restored(asked(grey), image), np.dstack(one_by_one), 1)
    thrice = restored(asked(colored), np.repeat(image[..., :1], 3, 2))
    assert thrice.std(2).max() > 0
    close(restored(asked(colored), image[..., 0]), np.round(thrice.mean(2)).astype(np.uint8), 1)


def test_channels_that_fit_nothing():
    with pytest.raises(ValueError, match="ByImresize takes pictures of 4 channels, and these have 3"):
        module.tiles(ByImresize(in_channels=4), torch.rand(1, 3, 8, 8))


# --- opacity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_disc_keeps_its_color_at_the_rim(dtype):
    """On a black and transparent ground, of which nothing may show: no dark fringe."""
    most = np.iinfo(dtype).max
    rows, columns = np.mgrid[:40, :40] - 19.5
    disc = np.hypot(rows, columns) < 12
    color = np.array([0.8, 0.5, 0.2]) * most
    image = np.zeros((40, 40, 4), dtype)
    image[disc] = [*color.astype(dtype), most]
    got = restored(asked(), image)
    opacity = got[..., 3].astype(float)
    larger = imresize(image[..., 3] / most, 2).clip(0, 1) * most
    assert abs(opacity - larger).max() < 0.6
    rim = (opacity > 0.05 * most) & (opacity < 0.95 * most)
    assert rim.sum() > 100
    assert abs(got[rim][:, :3] - color).max() < 0.006 * most
    assert not got[larger == 0].any()
    plain = restored(asked(), np.ascontiguousarray(image[..., :3]))
    assert abs(plain[rim] - color).max() > 0.5 * most  # what the test would find


def test_opaque_pictures_have_the_colors_of_those_without_opacity():
    image = picture(15, 21, 3)
    ask = asked(SmallUpscaler(start=0.2, multiple=1))
    opaque = restored(ask, np.dstack([image, np.full((15, 21), 255, np.uint8)]))
    close(opaque[..., :3], restored(ask, image), 0)
    assert (opaque[..., 3] == 255).all()


# --- tint ------------------------------------------------------------------------------------------------------------


def test_a_drift_is_told_and_taken_back():
    image = picture(70, 90, 3)
    (result,) = asked()(image)
    assert max(map(abs, result["drift"])) < 0.3
    (result,) = asked(dict(shift=0.03))(image)
    assert result["drift"] == pytest.approx(3 * [0.03 * 255], abs=0.3)
    said = asked().task.said(result)
    assert said.endswith("the network changes the mean by +7.7, +7.7, +7.7 of 255 (--keep-tint takes that back)")
    ask = asked(dict(shift=0.03), keep_tint=True)
    (result,) = ask(image)
    close(result["restored"], restored(asked(), image), 2)
    assert ask.task.said(result).endswith("of 255, which is taken back")


def test_keeping_the_tint_keeps_details():
    """A network that brightens one side and sharpens everything loses the one and not the other."""

    class Tinting(ByImresize):
        def forward(self, x):
            larger = super().forward(x)
            checks = 0.05 * (torch.arange(larger.shape[2])[:, None] + torch.arange(larger.shape[3])) % 2 - 0.025
            return larger + 0.08 * torch.linspace(0, 1, larger.shape[3]) + checks

    image = picture(128, 256, 3)
    plain = restored(asked(), image).astype(float)
    tinted, kept = (restored(asked(Tinting(), keep_tint=keep), image) - plain for keep in (False, True))
    assert abs(tinted.mean((0, 2))[[40, 470]] - [0.0, 0.0]).max() > 10
    assert abs(kept.mean((0, 2))[[40, 470]]).max() < 3
    assert kept.std(0).mean() == pytest.approx(tinted.std(0).mean(), rel=0.1)


# --- tiles and half precision ----------------------------------------------------------------------------------------


def test_what_is_larger_than_a_tile_is_tiled_unless_told_otherwise(monkeypatch):
    sizes = []
    network = SmallUpscaler(start=0.1)
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    monkeypatch.setattr(module, "LARGE", 30)  # and 32 is the next multiple of 4
    image = picture(60, 100, 3)
    whole = restored(asked(SmallUpscaler(start=0.1)), image)
    network.load_state_dict(SmallUpscaler(start=0.1).state_dict())
    first = restored(asked(network), image)
    assert max(s for s in sizes if s != (64, 64)) == (32, 32)  # (64, 64): where the reach is measured
    assert whole.shape == first.shape
    for options, largest in ((dict(tile=48, overlap=8), (48, 48)), (dict(tile=200), (60, 100))):
        sizes.clear()
        close(restored(asked(network, **options), image), first, 1)
        assert max(sizes) == largest
    sizes.clear()
    restored(asked(network, options=dict(tile=40, overlap=16)), image)  # of the model's config
    assert max(sizes) == (40, 40)


def test_no_tile_means_auto_and_none_whole_pictures():
    ask = asked()
    assert ask.model.tile == "auto"
    assert Inferencer(ask.model, tile=None).model.tile is None
    assert Inferencer(ask.model, tile=40, half="bfloat16").model.tile == 40
    assert (Inferencer(ask.model).model.tile, ask.model.half) == (40, "bfloat16")  # they stay with the model


def test_seams_vanish_in_the_answer():
    torch.manual_seed(0)
    network = SmallUpscaler(start=0.1, multiple=4)
    image = picture(90, 130, 3)
    close(restored(asked(network, tile=32), image), restored(asked(network, tile=132), image), 1)


def test_reach_of_hat_is_measured_as_an_inferencer_asks():
    """In inference mode, whose tensors an autograd would refuse; and a training goes on afterwards."""
    torch.manual_seed(0)
    network = HAT(**SMALL_HAT)
    ask = asked(network, tile=24)
    restored(ask, picture(40, 40, 3))
    assert 2 < ask.model._reach < 32
    network.train()(torch.rand(1, 3, 16, 16)).sum().backward()


class Overflowing(nn.Module):
    """Bright pictures leave the range of float16 on the way through a product."""

    scale, multiple, in_channels = 1, 1, 3

    def __init__(self):
        super().__init__()
        self.large = nn.Linear(3, 3, bias=False)
        nn.init.constant_(self.large.weight, 40_000.0)

    def forward(self, x):
        return self.large(x.movedim(1, -1)).movedim(-1, 1) / 120_000


def test_half_precision_is_done_again_where_it_overflows(monkeypatch):
    lines = []
    monkeypatch.setattr(module, "print_log", lambda text, **_: lines.append(text))
    image = np.full((16, 48, 3), 50, np.uint8)
    image[:, 32:] = 230
    close(restored(asked(Overflowing(), tile=16, overlap=0, half="float16"), image), image, 1)
    assert lines == ["1 of 3 tiles were not finite in float16, and were done again in float32."]


def test_a_network_that_gives_no_numbers():
    network = Overflowing()
    nn.init.constant_(network.large.weight, float("nan"))
    results = asked(network, half="bfloat16")([picture(8, 8, 3), picture(9, 8, 3)])
    assert all("the network gives NaN or infinite numbers" in result["error"] for result in results)


def test_the_eight_symmetries():
    torch.manual_seed(0)
    ask = asked(SmallUpscaler(start=0.1, multiple=4), ensemble=True)
    image = picture(20, 24, 3)
    close(restored(ask, np.ascontiguousarray(image[::-1])), restored(ask, image)[::-1], 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(tile=0), "tile is 0"),
        (dict(tile=20), "must be a multiple of 16"),
        (dict(tile="all"), "Restorer.tile is 'all'; .*'auto'"),
        (dict(half="float8"), "Restorer.half is 'float8'"),
        (dict(tile=32, overlap=20), "overlap is 20"),
        (dict(tiles=3), "Did you mean 'tile'"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        asked(SmallUpscaler(multiple=16), **options)


MEMORY = """
import re
from pathlib import Path
import torch
from attlas.dense.restoration import FFNetSR, Restorer

model = Restorer(dict(type="FFNetSR", scale=1, dim=64, depth=1), tile=96).eval()
torch.set_num_threads(1)
peaks = []
for side in (96, 600):
    with torch.inference_mode():
        model(torch.rand(1, 3, side, side), mode="predict")
    # not getrusage's ru_maxrss, which begins with the peak of the process that started this one
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
print(peaks[1] - peaks[0])
"""


def test_memory_is_that_of_a_tile():
    """A picture 39 times as large takes what it and its output need (8 MiB, and as much again), where one map of the
    network would be 88 MiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 50


@pytest.mark.slow
def test_memory_of_a_large_picture(tmp_path, count):
    """4,000 x 3,000 pixels, enlarged to 8,000 x 6,000 by tools/infer.py, in less than 2 GB."""
    torch.manual_seed(0)
    network = FFNetSR(scale=2, dim=8, depth=1)
    torch.save(dict(params=network.state_dict()), tmp_path / "ffnet.pth")
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    command = [sys.executable, "tools/infer.py", tmp_path / "ffnet.pth", tmp_path / "a.png", "--out", tmp_path / "out"]
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    asked_for = [sys.executable, "-c", script, *map(str, command)]
    done = subprocess.run(asked_for, capture_output=True, text=True, check=True, cwd=ROOT)
    peak = int(done.stdout.split()[-1]) / 2**20
    count("peak memory of 4,000 x 3,000 pixels enlarged twice", f"{peak:.2f} GiB")
    assert peak * 2**30 < 2e9
    assert images.read_pixels(tmp_path / "out" / "a.png").shape == (6000, 8000, 3)


# --- place -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pictures_and_true_ones_are_in_phase(scale):
    """A blob and a ramp lie where they lay, after they were made smaller and larger again."""
    side = 24 * scale
    rows, columns = np.mgrid[:side, :side] + 0.5
    center = np.array([0.4, 0.55]) * side
    blob = np.exp(-((rows - center[0]) ** 2 + (columns - center[1]) ** 2) / (2 * (2 * scale) ** 2))
    truth = np.round(60_000 * blob).astype(np.uint16)
    got = restored(asked(dict(scale=scale)), Bicubic(scale)(truth)).astype(float)
    assert got.shape == truth.shape
    place = [float((got * axis).sum() / got.sum()) for axis in (rows, columns)]
    expected = [float((truth * axis).sum() / truth.sum(dtype=float)) for axis in (rows, columns)]
    assert place == pytest.approx(expected, abs=0.01)
    ramp = np.round(200 * (columns + 2 * rows)).astype(np.uint16)
    back = restored(asked(dict(scale=scale), tile=16, overlap=8), Bicubic(scale)(ramp))
    inner = slice(4 * scale, -4 * scale)
    assert abs(back[inner, inner].astype(int) - ramp[inner, inner]).max() <= 3  # a pixel aside would be 200


# --- a file tells its network ----------------------------------------------------------------------------------------


def networks():
    torch.manual_seed(0)
    return {
        "HAT x2": HAT(**SMALL_HAT),
        "HAT x1": HAT(**SMALL_HAT | dict(scale=1, in_channels=1)),
        "FFNetSR x3": FFNetSR(scale=3, dim=8, depth=2),
        "NAFNet x1": NAFNet(width=4, encoders=(1, 1), middle=1, decoders=(1, 1)),
        "DnCNN x1": DnCNN(in_channels=3, depth=4, width=8),
    }


@pytest.mark.parametrize("name", list(networks()))
def test_files_without_a_config(tmp_path, name):
    """As the authors save networks, and as `tools/publish.py` writes a training's."""
    network = networks()[name].eval()
    state = network.state_dict()
    torch.save(dict(params_ema=state), tmp_path / "theirs.pth")
    ours = {f"network.{key}": value.half() for key, value in state.items()}
    checkpoint.save(tmp_path / "ours.safetensors", ours)
    image = picture(13, 18, 3)
    for file, most in (("theirs.pth", 0), ("ours.safetensors", 2)):
        model = attlas.load(tmp_path / file)
        assert type(model.network) is type(network)
        ask = Inferencer(model)
        (result,) = ask(image)
        assert ask.task.said(result).startswith(f"{name}, {18 * network.scale} x {13 * network.scale} pixels")
        close(result["restored"], restored(asked(network), image), most)


def swinir():
    """Names of SwinIR: those of HAT without its channel attention and its overlapping windows."""
    theirs = {}
    for name, value in HAT(**SMALL_HAT).state_dict().items():
        if ".channels." in name or ".overlap." in name:
            continue
        name = name.replace(".blocks.", ".residual_group.blocks.").replace("mixer.mixer.", "attn.")
        theirs[name.replace("attn.table", "attn.relative_position_bias_table")] = value
    return theirs


def test_a_file_of_swinir_is_not_taken_for_hat(tmp_path):
    torch.save(dict(params=swinir()), tmp_path / "swinir.pth")
    with pytest.raises(ValueError, match=r"HAT: This is a state dict of SwinIR or its like, not of HAT") as error:
        attlas.load(tmp_path / "swinir.pth")
    for name in ("HAT", "NAFNet", "DnCNN", "FFNetSR"):
        assert f"\n  {name}: " in str(error.value)
    assert "Give the config before the checkpoint" in str(error.value)


def test_files_of_no_network(tmp_path):
    state = HAT(**SMALL_HAT).state_dict()
    for change, said in (
        (lambda s: s.pop("conv_last.bias"), "HAT: it lacks tensors, or has them in other shapes"),
        (lambda s: s.update(more=torch.zeros(2)), "HAT: it has 1 tensors more"),
        (lambda s: s.update({"layers.0.blocks.0.mlp.fc1.weight": torch.zeros(3, 3)}), "HAT: "),
        (lambda s: s.clear() or s.update({"layers.0.weight": torch.zeros(0, 0, 3, 3)}), "DnCNN: "),
    ):
        changed = dict(state)
        change(changed)
        torch.save(changed, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=said):
            attlas.load(tmp_path / "x.pth")


def test_a_file_of_two_networks(tmp_path, monkeypatch):
    network = networks()["DnCNN x1"]
    torch.save(network.state_dict(), tmp_path / "x.pth")

    class Twin(DnCNN):
        pass

    monkeypatch.setitem(MODELS.module_dict, "Twin", Twin)
    with pytest.raises(ValueError, match=r"holds no config, and may be of DnCNN and of Twin\. Give the config"):
        attlas.load(tmp_path / "x.pth")


def test_a_scale_that_the_file_does_not_have(tmp_path):
    torch.save(dict(params_ema=HAT(**SMALL_HAT | dict(scale=4)).state_dict()), tmp_path / "x4.pth")
    config = dict(
        model=dict(type="Restorer", network=dict(type="HAT", **SMALL_HAT)),
        test_dataloader=dict(dataset=dict(type="PairedImages", transforms=[dict(type="PackPair")])),
    )
    with pytest.raises(ValueError, match=r"The file looks like HAT\(scale=4, "):
        Inferencer(tmp_path / "x4.pth", Config(config))
    assert Inferencer(tmp_path / "x4.pth").model.scale == 4


# --- what is explained of it -----------------------------------------------------------------------------------------


def test_targets_of_a_restorer(tmp_path):
    """A patch of what is restored: its mean, and its PSNR."""
    torch.manual_seed(0)
    ask = asked(SmallUpscaler(start=0.05).eval())
    source, clean = ask.task.take(picture(20, 28, 3)), picture(40, 56, 3, seed=1)
    images.write_png(tmp_path / "clean.png", clean)
    mean = ask.task.question(ask.model, source, "12,30,8")
    psnr = ask.task.question(ask.model, source, f" 12, 30, 8:{tmp_path / 'clean.png'}")
    with torch.no_grad():
        (output,) = ask.model(*mean.inputs)
        patch = output[:, 12:20, 30:38]
        error = (patch - torch.from_numpy(clean[12:20, 30:38] / 255).permute(2, 0, 1)).square().mean()
        assert float(mean.score(output[None])) == pytest.approx(float(patch.mean()))
        assert float(psnr.score(output[None])) == pytest.approx(float(-10 * error.log10()), abs=1e-4)
    assert psnr.said == f"PSNR of 8 x 8 at 12, 30: {float(-10 * error.log10()):.3g} dB"
    assert mean.said == f"mean of 8 x 8 at 12, 30: {float(patch.mean()):.3g}"
    assert mean.box == (15, 6, 19, 10)  # in pixels of the picture
    assert np.array_equal(mean.picture, source["image"])
    for question in (mean, psnr):
        found = explain(question, "gradient")
        assert found.shape == (20, 28)
        assert found[6:10, 15:19].min() > 0
        assert not found[14:].any()


def test_bad_targets_of_a_restorer(tmp_path):
    ask = asked(SmallUpscaler().eval())
    source = ask.task.take(picture(20, 28, 3))
    images.write_png(tmp_path / "small.png", picture(20, 28, 3))
    (tmp_path / "text.png").write_text("no picture")
    for target, said in (
        (None, r"no target is given, and a restorer is asked about ROW,COLUMN,SIDE"),
        ("chair", "target 'chair': a restorer is asked about ROW,COLUMN,SIDE"),
        ("1,2", "target '1,2': a restorer is asked"),
        ("-1,2,8", "target '-1,2,8': a restorer is asked"),
        ("1,2,8:", "target '1,2,8:': a restorer is asked"),
        ("33,0,8", "33,0,8: the patch .* is not inside the restored picture of 56 x 40 pixels"),
        ("0,49,8", "0,49,8: the patch .* is not inside the restored picture of 56 x 40 pixels"),
        ("0,0,0", "or is empty"),
        (f"0,0,8:{tmp_path / 'small.png'}", r"small.png has shape \(3, 20, 28\) .*restored picture \(3, 40, 56\)"),
        (f"0,0,8:{tmp_path / 'text.png'}", "text.png is not a readable image"),
    ):
        with pytest.raises(ValueError, match=said):
            ask.task.question(ask.model, source, target)
    with pytest.raises(OSError, match=r"none\.png"):
        ask.task.question(ask.model, source, f"0,0,8:{tmp_path / 'none.png'}")
    with pytest.raises(ValueError, match="has channels=1, and the network is explained for 3 alone"):
        ask.task.question(ask.model, ask.task.take(picture(20, 28)), "0,0,8")
