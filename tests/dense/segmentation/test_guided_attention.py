"""Multi-scale self-guided attention: the authors' results, and what characterizes the two attentions and the losses."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attlas import checkpoint
from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.dense.segmentation import GuidedAttentionHead
from attlas.dense.segmentation.guided_attention import (
    Autoencoder,
    ChannelAttention,
    PositionAttention,
    attention_layer,
    check_sizes,
    position_attention,
)

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs/guided_attention/guided_attention_x101_chaos.py"
NORM = dict(type="BN")
TOLERANCE = dict(rtol=0, atol=1e-4)
CHANNELS = (256, 512, 1024, 2048)


def samples(labels):
    return [SegDataSample(gt_sem_seg=PixelData(data=one[None].long())) for one in labels]


def small(channels=16, num_classes=4, **options):
    """A head whose attentions take part."""
    head = GuidedAttentionHead([8, 12, 16, 20], channels, num_classes=num_classes, **options)
    for name, parameter in head.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    return head


def maps(*size, channels=(8, 12, 16, 20), batch=2):
    return [torch.randn(batch, c, *(side >> i for side in size)) for i, c in enumerate(channels)]


# --- records of the authors' code ------------------------------------------------------------------------------------


def test_attentions():
    record = Record("ms-guided-attention/attention")
    layers = nn.ModuleDict(
        {"pam": attention_layer(16, PositionAttention(16), NORM), "cam": attention_layer(16, ChannelAttention(), NORM)}
    ).eval()
    rules = [(r"\.attn\.", "."), *GuidedAttentionHead.checkpoint_rules]
    account = checkpoint.load(layers, record.state_dict(), rules=rules)
    assert account.complete, str(account)
    assert sum(p.numel() for p in layers.parameters()) == record.params
    x, y = record.input("x", torch.float32), 0.3 * record.input("y", torch.float32)
    with torch.no_grad():
        got = layers["pam"][3](y), layers["cam"][3](y), layers["pam"](x), layers["cam"](x)
    for number, output in enumerate(got):
        assert_close(output, record.output(number), **TOLERANCE)


def test_autoencoder():
    record = Record("ms-guided-attention/semantic")
    network = Autoencoder(8, NORM).eval()
    rules = [(r"^(\w+)\.(?:en|de)code\.", r"\1.")]
    account = checkpoint.load(network, record.state_dict(), rules=rules)
    assert account.complete, str(account)
    assert sum(p.numel() for p in network.parameters()) == record.params
    with torch.no_grad():
        code, reconstruction = network(record.input("x", torch.float32))
    assert_close(code.flatten(), record.output(0), **TOLERANCE)
    assert_close(reconstruction, record.output(1), **TOLERANCE)


def loaded(record):
    head = GuidedAttentionHead(CHANNELS, num_classes=5)
    account = checkpoint.load(head, record.state_dict())
    assert account.complete, str(account)
    own = sum(p.numel() for p in head.parameters())
    state = record.state_dict()
    unused = sum(state[name].numel() for name in account.ignored if "running" not in name)
    assert {name.split(".")[0].rstrip("1234") for name in account.ignored} == {
        "conv6_", "conv7_", "attention", "refine"
    }  # fmt: skip
    assert (own, unused, own + unused) == (16_819_999, 955_412, record.params)
    return head.eval(), [record.input(f"f{i}", torch.float32) for i in (1, 2, 3, 4)]


def test_head_predicts_as_the_authors():
    head, features = loaded(record := Record("ms-guided-attention/head_eval"))
    with torch.no_grad():
        whole = head.predict(features, [dict(img_shape=(64, 64))], None)
    assert_close(whole[..., ::2, ::2], record.output(0), **TOLERANCE)


def test_head_loses_as_the_authors():
    head, features = loaded(record := Record("ms-guided-attention/head_losses"))
    labels = record.arrays["labels"]
    with torch.no_grad():
        guided = head.guided(features)
        losses = head.loss_by_feat(guided, samples(labels))
    whole = [F.interpolate(x, (32, 32), mode="bilinear") for x in (*guided.first, *guided.second)]
    assert_close(torch.stack(whole)[..., ::4, ::4], record.output(1), **TOLERANCE)
    sums = [
        sum(value for name, value in losses.items() if name.startswith(kind))
        for kind in ("loss_ce", "loss_code", "loss_reconstruction", "loss_")
    ]
    weighted = record.output(0) * torch.tensor([1, 0.25, 0.1, 1])
    assert_close(torch.stack(sums), weighted, rtol=1e-4, atol=0)


# --- attentions ------------------------------------------------------------------------------------------------------


def test_without_gamma_attentions_are_identities():
    x = torch.randn(2, 16, 5, 7)
    assert torch.equal(PositionAttention(16)(x), x)
    assert torch.equal(ChannelAttention()(x), x)


def naive(query, key, value):
    return (query @ key.mT).softmax(-1) @ value


def test_position_attention_is_the_naive_one():
    """Large logits (no scale), another width of values, a number of pixels that no block divides; gradients too."""
    given = [torch.randn(2, 67, width).mul(2).requires_grad_() for width in (4, 4, 24)]
    exact = [x.detach().double().requires_grad_() for x in given]
    got, expected = position_attention(*given), naive(*exact)
    grads = zip(torch.autograd.grad(got.square().sum(), given), torch.autograd.grad(expected.square().sum(), exact))
    for ours, theirs in [(got, expected), *grads]:
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_position_attention_commutes_with_any_order_of_pixels():
    attention = PositionAttention(16)
    nn.init.ones_(attention.gamma)
    x, order = torch.randn(2, 16, 6, 9), torch.randperm(54)

    def permuted(y):
        return y.flatten(2)[..., order].unflatten(2, (6, 9))

    assert_close(attention(permuted(x)), permuted(attention(x)))
    assert not torch.allclose(attention(x), x, atol=0.1)


def test_channel_weights_do_not_grow_with_the_image():
    for size in ((2, 3), (40, 30)):
        x = torch.randn(2, 8, *size)
        weights = ChannelAttention.weights(x)
        assert weights.shape == (2, 8, 8)
        assert_close(weights.sum(-1), torch.ones(2, 8))
    x[:, 1] = x[:, 0]  # alike, so they weigh least to each other
    weights = ChannelAttention.weights(x)
    assert (weights[:, 0].argmin(-1) <= 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_is_float32_under_autocast(dtype):
    """Logits of 40 that differ by 0.1: bfloat16 tells no such numbers apart, its nearest are 0.25 apart."""
    query, key = torch.tensor([[[5.0, 0.1]] * 2, [[8.0, 0.0], [8.0, 1.0]]], dtype=dtype).unsqueeze(1)
    value = torch.eye(2, dtype=dtype)[None]
    with torch.autocast("cpu", dtype):
        output = position_attention(query, key, value)
    assert output.dtype == dtype
    expected = naive(query.float(), key.float(), value.float())
    assert (expected[..., 1] - expected[..., 0]).min() > 0.04
    assert_close(output.float(), expected, rtol=0, atol=4e-3)


class Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor holds which any operator makes."""

    numbers = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)), 0)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_of_pixels_by_pixels(dtype):
    pixels = 1024
    for attend, most in ((position_attention, 64 * pixels), (naive, pixels**2)):
        given = [torch.randn(1, pixels, width, dtype=dtype, requires_grad=True) for width in (8, 8, 64)]
        with Largest() as largest:
            attend(*given).sum().backward()
        assert largest.numbers == most


@pytest.mark.slow
def test_compiled_it_is_one_graph():
    head = small().eval()
    given = maps(8, 8)
    with torch.no_grad():
        expected = head(given)
        got = torch.compile(head, fullgraph=True, backend="aot_eager")(given)
    assert_close(got, expected)


# --- the head --------------------------------------------------------------------------------------------------------


def test_the_output_is_the_mean_of_the_second_predictions():
    head = small(num_classes=3).eval()
    given = maps(8, 16)
    second = head.guided(given).second
    assert_close(head(given), sum(second) / 4)
    whole = head.predict(given, [dict(img_shape=(32, 64))], None)
    assert_close(whole, sum(F.interpolate(x, (32, 64), mode="bilinear") for x in second) / 4)


def test_the_total_is_its_parts():
    torch.manual_seed(1)
    given, labels = maps(8, 8), torch.randint(7, (2, 32, 32))
    labels[0, :5] = 255  # left out
    head = small(num_classes=7).eval()
    losses = head.loss(given, samples(labels), None)
    names = {name.rstrip("1234") for name in losses if name.startswith("loss")}
    assert names == {
        "loss_ce_first", "loss_ce_second", "loss_code", "loss_reconstruction_first", "loss_reconstruction_second"
    }  # fmt: skip
    assert len(losses) == 8 + 12 + 1
    guided = head.guided(given)
    for s in range(4):
        for order, predictions in (("first", guided.first), ("second", guided.second)):
            logits = F.interpolate(predictions[s], (32, 32), mode="bilinear")
            expected = F.cross_entropy(logits, labels, ignore_index=255)
            assert_close(losses[f"loss_ce_{order}{s + 1}"], expected)
        code = (guided.codes[0][s] - guided.codes[1][s]).square().mean()
        assert_close(losses[f"loss_code{s + 1}"], 0.25 * code)
        for number, order in enumerate(("first", "second")):
            error = (guided.inputs[number][s] - guided.reconstructions[number][s]).square().mean()
            assert_close(losses[f"loss_reconstruction_{order}{s + 1}"], 0.1 * error)
    other = small(
        num_classes=7,
        code_weight=1.0,
        reconstruction_weight=0.0,
        loss_decode=[dict(type="CrossEntropyLoss", avg_non_ignore=True, loss_weight=2.0), dict(type="DiceLoss")],
    ).eval()
    other.load_state_dict(head.state_dict())
    changed = other.loss(given, samples(labels), None)
    assert_close(changed["loss_code2"], 4 * losses["loss_code2"])
    assert_close(changed["loss_ce_second3"], 2 * losses["loss_ce_second3"])
    assert changed["loss_reconstruction_first1"] == 0
    assert "loss_dice_first1" in changed


def test_every_parameter_learns_in_mixed_precision():
    head = small()
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.loss(maps(16, 16), samples(torch.randint(4, (2, 64, 64))), None)
    sum(value for name, value in losses.items() if name.startswith("loss")).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_sizes_that_do_not_halve_are_refused():
    for side, accepted in ((32, True), (64, True), (36, False), (40, False), (48, False), (100, False)):
        sizes = [torch.empty(1, 1, *[-(-side // stride)] * 2) for stride in (4, 8, 16, 32)]
        if accepted:
            check_sizes(sizes)
        else:
            with pytest.raises(ValueError, match="must be multiples of the last map's stride"):
                check_sizes(sizes)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="channels=20 must be a multiple of 8"):
        GuidedAttentionHead([8] * 4, 20, num_classes=3)
    with pytest.raises(ValueError, match="in_channels='auto' must be a list of four"):
        GuidedAttentionHead("auto", num_classes=3)
    with pytest.raises(ValueError, match=r"in_index=\[0, 1\] must be a list of four"):
        GuidedAttentionHead([8] * 4, num_classes=3, in_index=[0, 1])


@pytest.mark.parametrize(
    ("channels", "backbone"),
    [
        (3, dict(type="attlas.NamedBackbone", name="biformer_tiny", depths=(1, 1, 1, 1), out_indices=None)),
        (1, dict(type="ResNet", depth=18, base_channels=8, in_channels=1, norm_cfg=NORM)),
    ],
)
def test_on_any_backbone(channels, backbone):
    """Of ours the channels need not be said."""
    in_channels = "auto" if channels == 3 else (8, 16, 32, 64)
    head = dict(type="attlas.GuidedAttentionHead", in_channels=in_channels, channels=8, num_classes=3)
    config = ConfigDict(type="EncoderDecoder", backbone=backbone, decode_head=head, test_cfg=dict(mode="whole"))
    fill_channels(config)
    model = MODELS.build(config)
    model.decode_head.init_weights()
    image = torch.randn(2, channels, 64, 32)
    total, _ = model.parse_losses(model.loss(image, samples(torch.randint(3, (2, 64, 32)))))
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.decode_head.parameters())
    model.eval()
    with torch.no_grad():
        found = model.predict(image)[0]
        assert found.pred_sem_seg.data.shape == (1, 64, 32)
        with pytest.raises(ValueError, match="multiples of the last map's stride"):
            model.predict(image[..., :20])


# --- the released network --------------------------------------------------------------------------------------------


def authors_name(name):
    """What the authors call a tensor of our backbone."""
    for ours, theirs in (("conv1", "layer0.0"), ("bn1", "layer0.1"), ("layer1", "layer1.1")):
        if name.startswith(f"{ours}."):
            return f"resnext.{theirs}.{name.removeprefix(ours + '.')}"
    return f"resnext.{name}"


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_the_released_network():
    config = load_config(CONFIG)
    with torch.device("meta"):
        model = MODELS.build(config.model)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model, model.backbone)]
    assert counts == [103_556_063, 86_736_064]
    assert sum(counts) - 2 * counts[1] + 955_412 == 17_775_411
    with torch.device("meta"):
        state = {authors_name(name): torch.empty_like(value) for name, value in model.backbone.state_dict().items()}
        head = {name: torch.empty(shape) for name, shape in Record("ms-guided-attention/head_eval").fields["state"]}
    account = checkpoint.load(model, {**state, **head})
    assert account.complete, str(account)
    assert all(name.split(".")[0] not in ("backbone", "decode_head") for name in account.ignored)
    assert len(account.ignored) == sum(bool(re.match("conv[67]|attention|refine", name)) for name in head)
    assert account.renamed["resnext.layer1.1.0.conv1.weight"] == "backbone.layer1.0.conv1.weight"
    assert account.renamed["conv8_14.bias"] == "decode_head.stages.1.merge.0.bias"


def test_initialization_is_the_authors():
    """Everything anew, the slopes but for it."""
    config = load_config(CONFIG).model
    config.backbone.update(depth=50, groups=1, base_width=64)  # as ResNeXt-101, and faster
    model = MODELS.build(config)
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.bias.eq(0).all(), name
            assert module.weight.sub(1).abs().max().item() < 0.12, name
            assert module.weight.std().item() > 0.005, name
        elif isinstance(module, nn.PReLU):
            assert module.weight.item() == 0.25
    conv = model.backbone.layer4[0].conv1.weight
    expected = (2 / sum(conv.shape[:2])) ** 0.5
    assert conv.std().item() == pytest.approx(expected, rel=0.05)


def rings(root, split, subjects):
    """Slices of bright balls with a brighter core, in noise, in the authors' layout."""
    draw = np.random.default_rng(subjects)
    for folder in ("Img", "GT"):
        (root / split / folder).mkdir(parents=True)
    y, x = np.mgrid[:64, :64]
    for subject, number in itertools.product(range(subjects), range(4)):
        center, radius = draw.integers(16, 48, 2), 3 + 2 * number
        distance = np.hypot(y - center[0], x - center[1]) / radius
        mask = (distance < 1.4).astype(np.uint8) + (distance < 0.7)
        image = np.array([60, 150, 210])[mask] + draw.normal(0, 15, mask.shape)
        for folder, pixels in (("Img", image.clip(0, 255)), ("GT", 63 * mask)):
            path = root / split / folder / f"Subj_{subject}slice_{number}.png"
            cv2.imwrite(str(path), pixels.astype(np.uint8))


@pytest.mark.slow
def test_it_learns_by_the_config(tmp_path):
    """By tools/train.py and the authors' recipe, on a narrow backbone and head: a mean Dice of at least 0.75."""
    for split, subjects in (("train", 6), ("val", 2), ("test", 2)):
        rings(tmp_path, split, subjects)
    changes = {
        "model.backbone": dict(depth=50, groups=1, base_width=8, base_channels=8),
        "model.decode_head": dict(in_channels=[32, 64, 128, 256], channels=8, num_classes=3),
        "train_cfg": dict(max_epochs=40, val_interval=40),
    }
    for split in ("train", "val", "test"):
        changes[f"{split}_dataloader"] = dict(num_workers=0, persistent_workers=False)
        changes[f"{split}_dataloader.dataset"] = dict(classes=["background", "ring", "core"])
    options = [f"{place}.{name}={value}" for place, named in changes.items() for name, value in named.items()]
    command = [sys.executable, "-W", "ignore", ROOT / "tools/train.py", CONFIG, "--work-dir", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--cfg-options", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "DATA_ROOT": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"Dice/case_mean: ([\d.]+)", done.stdout)
    assert float(found[-1]) >= 0.75, found
