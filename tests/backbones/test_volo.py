"""What characterizes VOLO: sums of windows that a center weighs, two resolutions, labels of every token."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from levels import levels_changed_by

from attlas import backbones
from attlas.backbones.classification.model import ImagePreprocessor
from attlas.backbones.inspection.costs import analyze
from attlas.backbones.layers import swap_box
from attlas.backbones.volo import VOLO, OutlookAttention
from attlas.registry import MODELS

SMALL = dict(dims=(16, 32, 32, 32), depths=(1, 1, 1, 1), heads=(2, 4, 4, 4), stem_dim=8, img_size=64)


def outlook(dim=12, heads=3, **options):
    torch.manual_seed(0)
    return OutlookAttention(dim, heads, **options).double()


def maps(*size, dim=12):
    return torch.randn(2, dim, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def image(*size):
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def volo(**options):
    torch.manual_seed(0)
    return VOLO(**{**SMALL, **options}).double().eval()


# --- operator --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (5, 1), (1, 1)])
def test_windows_are_added(kernel_size, stride):
    """On a constant map every pixel that k² whole windows hold is k² times its value, and a border pixel less."""
    mixer = outlook(kernel_size=kernel_size, stride=stride)
    mixer.proj = torch.nn.Identity()
    x = maps(1, 1).abs().expand(-1, -1, 12, 11)
    torch.nn.init.uniform_(mixer.v.weight)  # values above zero
    y, value = mixer(x), mixer.v(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    inner = slice(kernel_size - 1, -(kernel_size - 1) or None)
    assert_agree("inner pixels", y[..., inner, inner], kernel_size**2 * value[..., inner, inner])
    if kernel_size > 1:
        assert (y[..., 0, :] < kernel_size**2 * value[..., 0, :]).all()


def by_unfolding(mixer, x):
    """As the paper has it."""
    (height, width), k, s = x.shape[-2:], mixer.kernel_size, mixer.stride
    values = mixer.v(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    columns = (
        F.unfold(values, k, padding=k // 2, stride=s).unflatten(1, (mixer.heads, -1, k * k)).permute(0, 1, 4, 3, 2)
    )
    pooled = F.avg_pool2d(x, s, s, ceil_mode=True).permute(0, 2, 3, 1).flatten(1, 2)
    weights = mixer.attn(pooled).unflatten(-1, (mixer.heads, k * k, k * k)).transpose(1, 2)
    mixed = (weights * mixer.scale).softmax(-1) @ columns
    y = F.fold(mixed.permute(0, 1, 4, 3, 2).flatten(1, 3), (height, width), k, padding=k // 2, stride=s)
    return mixer.proj(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (2, 5), (1, 1)])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (3, 1), (5, 3), (5, 2)])
def test_by_definition(kernel_size, stride, size):
    mixer, x = outlook(kernel_size=kernel_size, stride=stride, qkv_bias=True), maps(*size)
    assert_agree("output", mixer(x), by_unfolding(mixer, x))


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (5, 2)])
def test_attention_maps(kernel_size, stride):
    """The output is the values weighed by them."""
    mixer, x = outlook(kernel_size=kernel_size, stride=stride), maps(5, 4)
    mixer.proj = torch.nn.Identity()
    values, y = mixer.v(x.permute(0, 2, 3, 1)).unflatten(-1, (3, -1)), mixer(x)
    for row in range(5):
        for column in range(4):
            seen = mixer.attention_maps(x, (row, column))
            expected = torch.einsum("bhyx,byxhc->bhc", seen, values).flatten(1)
            assert_agree("pixel", y[:, :, row, column], expected)
    assert_agree("one whole window", outlook().attention_maps(x, (2, 2)).sum((2, 3)), torch.ones(2, 3).double())


def test_cost_is_linear_in_the_pixels():
    counts = []
    with torch.device("meta"):
        mixer = OutlookAttention(32).eval()
        for side in (8, 16):
            counts.append(analyze(mixer, torch.empty(1, 32, side, side), repeats=0)[-1].macs)
    assert counts[1] == 4 * counts[0]


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match=f"scale={scale} must be at least 0 and finite"):
        OutlookAttention(32, scale=scale)


def test_a_step_beyond_the_windows():
    with pytest.raises(ValueError, match=r"stride=3 must be from 1 to 2 for kernel_size=3"):
        OutlookAttention(32, stride=3)
    with pytest.raises(ValueError, match="kernel_size=2 must be odd"):
        OutlookAttention(32, kernel_size=2)


# --- network ---------------------------------------------------------------------------------------------------------


def test_two_resolutions():
    with torch.device("meta"):
        network = backbones.create("volo_d1_224", num_classes=None)
        shapes = [tuple(x.shape) for x in network(torch.empty(1, 3, 224, 224))]
    assert shapes == [(1, 192, 28, 28), *[(1, 384, 14, 14)] * 3]
    assert network.out_strides == (8, 16, 16, 16)


@pytest.mark.parametrize(
    ("size", "fine", "coarse", "table"),
    [
        ((56, 56), (7, 7), (3, 3), (3, 3)),
        ((63, 62), (8, 7), (4, 3), (3, 3)),
        ((1, 17), (2, 2), (1, 1), (1, 1)),
    ],
)
def test_what_is_left_over_beside_whole_patches(size, fine, coarse, table):
    """It is lost, but for what the first convolution rounds up. The table is the authors'. Small images are filled
    up."""
    network = volo(img_size=size)
    assert network.stages[1].downsample.position.weight.shape[2:] == table
    assert [tuple(y.shape[-2:]) for y in network(image(*size))] == network.map_sizes(*size) == [fine, *[coarse] * 3]


def test_the_first_stage_has_no_stochastic_depth():
    network = volo(depths=(2, 1, 2, 1), drop_path_rate=0.5)
    rates = [[block.drop_path.rate for block in stage.blocks] for stage in network.stages]
    assert [rate for stage in rates for rate in stage] == pytest.approx([0, 0, 0.2, 0.3, 0.4, 0.5])


def test_the_position_of_images_that_are_no_squares():
    """The table of the trained size is resized, by itself and from a file."""
    network, wide = volo(), volo(img_size=96)
    table = network.stages[1].downsample.position.weight
    x = image(64, 96)
    network.stages[1].downsample.register_forward_hook(lambda _, __, y: seen.append(y))
    seen = []
    network(x)
    torch.nn.init.zeros_(table)
    network(x)
    torch.nn.init.trunc_normal_(table, std=1.0)
    network(x)
    with_first, without, with_other = seen
    assert with_first.shape == (2, 32, 4, 6)
    resized = F.interpolate(table, (4, 6), mode="bicubic")
    assert_agree("position", (with_other - without).detach(), resized.expand(2, -1, -1, -1).detach())
    account = backbones.load(wide, network.state_dict())
    assert account.complete
    assert wide.stages[1].downsample.position.weight.shape == (1, 32, 6, 6)


def test_the_dense_form():
    """Neither class token nor class attention; a norm of each map, not on the path; the file of a classifier loads."""
    network, x = volo(), image(40, 72)
    assert levels_changed_by(network, x, "norms.0.weight") == [0]
    assert levels_changed_by(network, x, "stages.1.downsample.position.weight") == [1, 2, 3]
    assert [tuple(y.shape[-2:]) for y in network(x)] == [(5, 9), *[(2, 4)] * 3]
    account = backbones.load(network, volo(num_classes=3).state_dict())
    assert not account.unexpected
    assert set(account.missing) == {f"norms.{i}.{name}" for i in range(4) for name in ("weight", "bias")}
    assert all(name.startswith("head.") for name in account.ignored)


def test_the_answers_of_both_heads():
    """In inference half the best answer of the pixels is added; fusing keeps that."""
    network, x = volo(num_classes=3), image(64, 64)
    features = network.forward_features(x)
    token = network.forward_head(features, pre_logits=True)
    pixels = network.head.auxiliary(network.head.after(features))
    assert pixels.shape == (2, 3, 4, 4)
    expected = network.head.fc(token) + 0.5 * pixels.flatten(2).amax(2)
    assert_agree("logits", network(x), expected)
    assert_agree("fused", network.fuse()(x), expected)
    assert network.no_weight_decay() == {"head.cls_token.weight", "stages.1.downsample.position.weight"}


def test_without_logits_of_pixels():
    """Logits are those of the class token, in inference and in training; a file of both heads loads."""
    both, alone, x = volo(num_classes=3), volo(num_classes=3, pixel_logits=False), image(64, 64)
    account = backbones.load(alone, both.state_dict())
    assert account.complete
    assert set(account.ignored) == {f"head.auxiliary.fc.{name}" for name in ("weight", "bias")}
    features = both.forward_features(x)
    token = both.head.fc(both.forward_head(features, pre_logits=True))
    assert_agree("logits", alone(x), token)
    assert alone.train()(x).shape == (2, 3)


# --- token labels ----------------------------------------------------------------------------------------------------


def test_mixed_tokens():
    """Where no pixel looks at another, the logits of pixels are those without mixing: they stand at their places."""
    network, x = volo(num_classes=3, mix_tokens=1.0).train(), image(64, 96)
    for stage in network.stages:
        for block in stage.blocks:
            torch.nn.init.zeros_(block.mixer.proj.weight)
    torch.nn.init.zeros_(network.stages[1].downsample.position.weight)
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()
    np.random.seed(0)
    seen = set()
    for _ in range(8):
        logits, pixels, kept = network(x)
        seen.add(kept)
        network.mix.alpha = 0.0
        plain, expected = network(x)
        network.mix.alpha = 1.0
        assert_agree("logits of pixels", pixels, expected)
        assert torch.equal(logits, plain) == (kept == 1)
    assert len(seen) > 2
    assert all(0 <= kept <= 1 and abs(kept * 24 - round(kept * 24)) < 1e-9 for kept in seen)  # of 4 x 6 tokens
    assert len(network.eval()(x)) == 2  # images: nothing is mixed in inference


def test_a_box_of_another_image():
    x = torch.arange(3.0)[:, None, None, None].expand(3, 1, 4, 5)
    swapped = swap_box(x, (1, 3, 2, 5))
    assert swapped[0, 0].tolist() == [[0] * 5, [0, 0, 2, 2, 2], [0, 0, 2, 2, 2], [0] * 5]
    assert torch.equal(swap_box(swapped, (1, 3, 2, 5)), x)


def classifier(**options):
    torch.manual_seed(0)
    backbone = dict(type="VOLO", **SMALL, num_classes=3, mix_tokens=options.pop("mix_tokens", 0.0))
    return MODELS.build(dict(type="ImageClassifier", backbone=backbone, **options)).double()


def test_the_loss_of_token_labels(monkeypatch):
    """Of the class, whose targets are mixed as the tokens are, and of every pixel, whose targets are its own."""
    model = classifier(mix_tokens=1.0, auxiliary_weight=0.5, label_smoothing=0.1)
    x, labels = image(64, 64), torch.tensor([0, 2])
    tokens = torch.rand(2, 3, 4, 4, dtype=torch.float64).softmax(1)
    found = torch.randn(2, 3).double(), torch.randn(2, 3, 4, 4).double(), 0.75
    monkeypatch.setattr(model.backbone, "forward", lambda images: found)
    losses = model(x, labels, mode="loss", token_labels=tokens)
    own = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    of_class = -((0.75 * own + 0.25 * own.flip(0)) * found[0].log_softmax(1)).sum(1).mean()
    of_pixels = -((0.9 * tokens + 0.1 / 3) * found[1].log_softmax(1)).sum(1).mean()
    assert losses["auxiliary"].item() == pytest.approx(of_pixels.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((of_class + 0.5 * of_pixels).item(), rel=1e-5)
    alone = model(x, labels, mode="loss")["auxiliary"]  # every pixel is of the image's class
    expected = -(own[..., None, None] * found[1].log_softmax(1)).sum(1).mean()
    assert alone.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_of_token_labels():
    model = classifier(mix_tokens=1.0)
    x, tokens = image(64, 96), torch.rand(2, 3, 4, 6).softmax(1)
    for batch in (
        dict(image=x, label=torch.tensor([0, 1]), token_labels=tokens),
        dict(image=list(x), label=[0, 1], token_labels=list(tokens)),
    ):
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        losses["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_token_labels_of_any_kind():
    """Lists of NumPy arrays are stacked, and what is no target of a pixel is named before it leaves the CPU."""
    preprocessor, x = ImagePreprocessor(3), image(64, 64)
    tokens = torch.rand(2, 3, 4, 4).softmax(1)

    def read(targets):
        return preprocessor(dict(image=x, token_labels=targets), True)["token_labels"]

    assert torch.equal(read(list(tokens.numpy())), tokens)
    assert torch.equal(read(tokens.half()), tokens.half())
    for wrong, message in (
        (
            [tokens[0], tokens[1, :, :3]],
            r"token_labels of a batch must have one size, got \[\(3, 3, 4\), \(3, 4, 4\)\]",
        ),
        (tokens.argmax(1), r"token_labels must be of shape \(B, num_classes, h, w\), got \(2, 4, 4\)"),
        (7 * tokens, "token_labels must sum to 1 over the classes of each pixel, got 7"),
        (tokens * math.nan, "token_labels must sum to 1 over the classes of each pixel, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            read(wrong)
    for weight in (-1, "0.5", math.nan, math.inf):
        with pytest.raises(ValueError, match="auxiliary_weight must be a number of at least 0"):
            classifier(auxiliary_weight=weight)


def test_token_labels_that_do_not_fit():
    x, labels = image(64, 64), torch.tensor([0, 1])
    tokens = torch.rand(2, 3, 4, 4).softmax(1)
    with pytest.raises(ValueError, match=r"of pixels, \(2, 3, 4, 4\), got \(2, 3, 14, 14\)"):
        classifier()(x, labels, mode="loss", token_labels=torch.rand(2, 3, 14, 14))
    with pytest.raises(ValueError, match=r"which ImageClassifier\.mixup and cutmix move"):
        classifier(cutmix=1.0)(x, labels, mode="loss", token_labels=tokens)
    plain = MODELS.build(
        dict(type="ImageClassifier", backbone=dict(type="Pyramid", dims=(8,), depths=(1,), num_classes=3))
    )
    with pytest.raises(ValueError, match="the batch has token_labels, but Pyramid gives no logits of pixels"):
        plain(x.float(), labels, mode="loss", token_labels=tokens)


def test_bad_options():
    for options, message in (
        (dict(mix_tokens=-1.0), "mix_tokens=-1.0 must be at least 0"),
        (dict(class_blocks=0), "class_blocks=0 must be at least 1"),
        (dict(mix_tokens=1.0), "mix_tokens=1.0 .* got num_classes=None and pixel_logits=True"),
        (dict(mix_tokens=1.0, num_classes=0), "got num_classes=0"),
        (dict(mix_tokens=1.0, num_classes=3, pixel_logits=False), "got num_classes=3 and pixel_logits=False"),
        (dict(img_size=0), "img_size=0 must be a number of pixels, at least 1"),
        (dict(img_size=(64, -64)), r"img_size=\(64, -64\) must be a number of pixels"),
        (dict(img_size=(64, 64, 64)), "img_size must have one entry for each of the 2 sides"),
        (dict(dims=(16,), depths=(1,), heads=(2,)), "at least one behind it"),
    ):
        with pytest.raises(ValueError, match=message):
            VOLO(**{**SMALL, **options})
