"""What characterizes DHVT: tokens of the heads in attention, factors for the class token that only pixels decide."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from levels import levels_changed_by

from attlas import backbones
from attlas.backbones.dhvt import DHVT, Affine, DHVTBlock, DynamicAggregation, HeadInteractedAttention, Stem
from attlas.config import load_config
from attlas.registry import MODELS


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random(module):
    """A module in float64 whose parameters and running statistics are all of them random."""
    generator = torch.Generator().manual_seed(3)
    for value in [*module.parameters(), *module.buffers()]:
        if value.is_floating_point():
            torch.nn.init.normal_(value, 0.1, 0.4, generator)
    for name, value in module.named_buffers():
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return module.double().eval().requires_grad_(False)


def attention(dim=24, heads=4, **options):
    return random(HeadInteractedAttention(dim, heads, **options))


def by_definition(mixer, rows):
    """Results of head-interacted attention for all rows (B, N, C), without those of the head tokens; these; and the
    weights (B, heads, N + heads, N + heads)."""
    batch, _, dim = rows.shape
    heads, width = mixer.heads, dim // mixer.heads
    tokens = []
    for i in range(heads):
        projected = F.linear(
            rows.mean(1)[:, i * width : (i + 1) * width], mixer.token_proj.weight, mixer.token_proj.bias
        )
        groups = projected.view(batch, heads, width)
        norm = mixer.token_norm
        groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        tokens.append(F.gelu(groups * norm.weight + norm.bias).flatten(1) + mixer.token_embedding[0, i])
    rows = torch.cat([rows, torch.stack(tokens, 1)], 1)
    q, k, v = F.linear(rows, mixer.qkv.weight, mixer.qkv.bias).view(batch, -1, 3, heads, width).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / width**0.5).softmax(-1)
    y = F.linear((weights @ v).transpose(1, 2).flatten(2), mixer.proj.weight, mixer.proj.bias)
    return y[:, :-heads], y[:, -heads:], weights


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_by_definition(heads, count):
    """Each token gets the mean of the head tokens' results, no pixel does."""
    mixer, x, tokens = attention(heads=heads), normal(2, 24, 3, 5), normal(2, count, 24, seed=1)
    y, of_heads, weights = by_definition(mixer, torch.cat([tokens, x.flatten(2).mT], 1))
    pixels = y[:, count:].mT.unflatten(2, (3, 5))
    if count == 0:
        torch.testing.assert_close(mixer(x), pixels)
    else:
        torch.testing.assert_close(mixer(x, tokens), (pixels, y[:, :count] + of_heads.mean(1, keepdim=True)))
    for row, column in ((0, 0), (1, 4), (2, 2)):
        maps = mixer.attention_maps(x, (row, column), tokens if count else None)
        torch.testing.assert_close(maps.flatten(2), weights[:, :, count + 5 * row + column, count:-heads])


def test_attention_knows_no_places():
    """Permuted pixels give permuted pixels and the same class token; the feed-forward is not so."""
    x, token, order = normal(2, 24, 4, 4), normal(2, 1, 24, seed=1), torch.randperm(16)
    permuted = x.flatten(2)[..., order].unflatten(2, (4, 4))
    mixer = attention()
    (y, class_token), (other, other_token) = mixer(x, token), mixer(permuted, token)
    torch.testing.assert_close(other.flatten(2), y.flatten(2)[..., order])
    torch.testing.assert_close(other_token, class_token)
    mlp = random(DynamicAggregation(24, 2))
    y, other = mlp(x), mlp(permuted)
    assert (other.flatten(2) - y.flatten(2)[..., order]).norm() > 0.1 * y.norm()


def test_factors_of_the_class_token():
    """One vector for each image, which only its pixels decide; twice the token is twice the result."""
    mlp, x, tokens = random(DynamicAggregation(24, 2)), normal(2, 24, 4, 6), normal(2, 3, 24, seed=1)
    y, result = mlp(x, tokens)
    torch.testing.assert_close(y, mlp(x))
    factors = result / tokens
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    means = y.mean((2, 3))
    torch.testing.assert_close(factors[:, 0], mlp.excite(F.gelu(mlp.compress(means))))
    assert (factors.abs() > 1).any()  # nothing bounds them
    same, twice = mlp(x, 2 * tokens)
    assert torch.equal(same, y)
    torch.testing.assert_close(twice, 2 * result)
    other = mlp(torch.stack([x[0], normal(24, 4, 6, seed=2)]), tokens)[1] / tokens
    torch.testing.assert_close(other[0], factors[0])
    assert (other[1] - factors[1]).abs().min() > 0


def test_feed_forward_by_definition():
    mlp, x = random(DynamicAggregation(12, 2)), normal(2, 12, 5, 3)

    def norm(x, part):
        return F.batch_norm(
            x, part.norm.running_mean, part.norm.running_var, part.norm.weight, part.norm.bias, eps=1e-5
        )

    conv1, local, conv2 = mlp.conv1, mlp.local.branch, mlp.conv2
    y = F.gelu(norm(F.conv2d(x, conv1.conv.weight, conv1.conv.bias), conv1))
    y = y + F.gelu(norm(F.conv2d(y, local.conv.weight, local.conv.bias, padding=1, groups=24), local))
    torch.testing.assert_close(mlp(x), norm(F.conv2d(y, conv2.conv.weight, conv2.conv.bias), conv2))


@pytest.mark.parametrize(("patch_size", "widths"), [(2, [16]), (4, [8, 16]), (8, [4, 8, 16]), (16, [2, 4, 8, 16])])
def test_stem(patch_size, widths):
    """GELU stands between the convolutions; behind the last one there is none, unless it is the only one. The image is
    scaled before the convolution puts zeros around it."""
    stem, x = random(Stem(3, 16, patch_size)), normal(1, 3, 37, 50)
    convs = [part for part in stem.convs if not isinstance(part, torch.nn.GELU)]
    assert [conv.conv.out_channels for conv in convs] == widths
    y = stem.before.alpha * x + stem.before.beta
    for i, conv in enumerate(convs):
        y = conv.norm(F.conv2d(y, conv.conv.weight, stride=2, padding=1))
        if i < len(convs) - 1 or len(convs) == 1:
            y = F.gelu(y)
    y = stem.after.alpha * y + stem.after.beta
    torch.testing.assert_close(stem(x), y)
    assert y.shape[-2:] == (-(-37 // patch_size), -(-50 // patch_size))


def test_affine_begins_as_nothing_and_keeps_the_memory_format():
    x = torch.randn(2, 5, 4, 6).contiguous(memory_format=torch.channels_last)
    y = Affine(5)(x)
    assert torch.equal(y, x)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_tokens_inside_and_outside():
    """As many tokens leave a block as enter it; attention has one more for each head. Any shape runs."""
    network = backbones.create("dhvt_tiny_cifar_patch2", depth=2).eval()
    seen = []
    network.blocks[0].mixer.qkv.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[1]))
    assert network.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 257, 192)
    assert seen == [257 + 4]
    assert network.forward_features(torch.randn(1, 3, 32, 48)).shape == (1, 385, 192)
    assert network(torch.randn(2, 3, 31, 17)).shape == (2, 100)


def test_a_block_by_its_parts():
    block = random(DHVTBlock(24, HeadInteractedAttention(24, 4), DynamicAggregation(24, 2)))
    x, tokens = normal(2, 24, 3, 4), normal(2, 1, 24, seed=1)
    of_x, of_tokens = block.mixer(block.norm1(x), block.norm1(tokens))
    y, mixed = x + of_x, tokens + of_tokens
    of_x, of_tokens = block.mlp(block.norm2(y), block.norm2(mixed))
    torch.testing.assert_close(block(x, tokens), (y + of_x, mixed + of_tokens))


def test_a_sample_drops_pixels_and_tokens_together():
    block = random(DHVTBlock(24, HeadInteractedAttention(24, 4), DynamicAggregation(24, 2), drop_path=0.7))
    block.drop_path.train()
    torch.manual_seed(0)
    x, tokens = normal(64, 24, 2, 2), normal(64, 1, 24, seed=1)
    y, mixed = block(x, tokens)
    untouched = (y == x).flatten(1).all(1)
    assert torch.equal(untouched, (mixed == tokens).flatten(1).all(1))
    assert 0.3 < untouched.double().mean() < 0.7  # 0.7 ** 2 of them


def test_the_dense_form():
    """One norm for all maps, not on the path; the class token is read until the last block, whose feed-forward has no
    factors for it, and every parameter of the classifier that is not there is named."""
    network = DHVT(16, 3, patch_size=4, out_indices=(0, 2)).double().eval()
    image = normal(1, 3, 18, 21)
    assert [tuple(y.shape) for y in network(image)] == [(1, 16, 5, 6)] * 2
    assert levels_changed_by(network, image, "norm.weight") == [0, 2]
    assert levels_changed_by(network, image, "cls_token.weight") == [0, 2]
    assert levels_changed_by(network, image, "blocks.0.mlp.excite.bias") == [2]
    classifier = random(DHVT(16, 3, patch_size=4, num_classes=3))
    account = backbones.load(network, classifier.state_dict())
    last = [f"blocks.2.mlp.{layer}.{kind}" for layer in ("compress", "excite") for kind in ("weight", "bias")]
    assert sorted(account.ignored) == sorted([*last, "head.fc.weight", "head.fc.bias"])
    assert not account.missing
    maps = network(image)
    _, expected = classifier.forward_intermediates(image, indices=(0, 2))
    torch.testing.assert_close(maps, tuple(classifier.norm(y) for y in expected))


def test_the_classifier_reads_the_class_token():
    network, image = random(DHVT(16, 2, patch_size=4, num_classes=3)), normal(2, 3, 16, 16)
    features = network.forward_features(image)
    torch.testing.assert_close(network(image), network.head.fc(features[:, 0]))
    assert {network.norm.eps, *(norm.eps for block in network.blocks for norm in (block.norm1, block.norm2))} == {1e-6}


def test_sums_over_many_pixels_in_half_precision():
    """The means of float16 are right where their sums exceed its range."""
    mixer, x = HeadInteractedAttention(16, 2).eval().requires_grad_(False), 4 + normal(1, 16, 160, 160)
    assert x.sum((2, 3)).min() > torch.finfo(torch.float16).max
    rows = x.flatten(2).mT
    expected = mixer.double().head_tokens(rows)
    got = mixer.half().head_tokens(rows.half()).double()
    torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)


def test_initial_weights():
    torch.manual_seed(0)
    network = DHVT(64, 2, patch_size=4, num_classes=5)
    mixer, mlp = network.blocks[0].mixer, network.blocks[0].mlp
    for layer in (mixer.qkv, mixer.token_proj, mlp.excite, network.head.fc):
        assert 0.017 < layer.weight.std() < 0.023
        assert not layer.bias.any()
    assert 0.017 < mixer.token_embedding.std() < 0.023
    bound = 64**-0.5  # of PyTorch's uniform start of a 1x1 convolution of 64 channels
    assert mlp.conv1.conv.weight.abs().max() <= bound
    assert mlp.conv1.conv.weight.std() > 0.5 * bound


def test_what_decays():
    """Head tokens and affines do, as in the authors' code, whose list of exceptions misses them."""
    assert DHVT(16, 2, num_classes=3).no_weight_decay() == {"cls_token.weight"}


def test_bad_options():
    for patch_size in (1, 3, 6):
        with pytest.raises(ValueError, match=rf"patch_size={patch_size} must be 2, 4, 8 or another power of two"):
            DHVT(16, 2, patch_size=patch_size)
    with pytest.raises(ValueError, match=r"patch_size=64 must be .* power of two up to 2 \* dim=32"):
        DHVT(16, 2, patch_size=64)
    with pytest.raises(ValueError, match=r"HeadInteractedAttention: dim=192 is not divisible by heads=5"):
        DHVT(heads=5)
    with pytest.raises(ValueError, match="DHVT does not use the option 'registers'"):
        DHVT(registers=2)


def test_a_fair_comparison():
    """The plain transformer beside DHVT has as many parameters and learns from the same, for as long."""
    folder = Path(__file__).parents[2] / "configs/dhvt"
    dhvt, plain = (load_config(folder / f"{name}_furniture_views.py") for name in ("dhvt", "vit"))
    count, other = (sum(p.numel() for p in MODELS.build(config.model).parameters()) for config in (dhvt, plain))
    assert 0.99 * count < other < 1.01 * count
    networks = [config.model.pop("backbone") for config in (dhvt, plain)]
    heads = [networks[0].heads, networks[1].mixers.heads]
    assert [(n.dim, n.depth, n.patch_size) for n in networks] == [(64, 6, 8)] * 2
    assert heads == [4, 4]
    assert dict(dhvt) == dict(plain)


def test_recipes_of_small_data_sets():
    """The learning rate is in proportion to the images of a step; a variant gets the size and classes of its data."""
    for data, names in (("cifar100", backbones.list("dhvt*cifar*")), ("domainnet", backbones.list("dhvt*domain*"))):
        path = Path(__file__).parents[2] / f"configs/dhvt/dhvt_{data}.py"
        for name in names:
            config, facts = load_config(path, {"name": name}), backbones.variant(name)[1]
            step = config.train_dataloader.batch_size
            assert step == (1 if "small" in name else 2) * (256 if data == "cifar100" else 128)
            assert config.optim_wrapper.optimizer.lr * 512 == pytest.approx(1e-3 * step)
            assert config.model.backbone.num_classes == facts.classes
            assert config.train_dataloader.dataset.transforms[0].size == facts.size
            assert config.model.backbone.drop_path_rate == facts.drop_path
    config = load_config(path, {"domain": "sketch"})
    assert [config[f"{part}_dataloader"].dataset.file for part in ("train", "test")] == [
        "sketch_train.txt",
        "sketch_test.txt",
    ]


def test_pyramids_take_patches_of_16_alone():
    """Their maps would have other strides than the detectors expect."""
    found = sorted((Path(__file__).parents[2] / "configs").glob("*/*_dhvt_*.py"))
    assert len(found) == 5
    for config in found:
        with pytest.raises(ValueError, match="patches of 16 pixels alone, got 'dhvt_tiny_cifar_patch4'"):
            load_config(config, dict(name="dhvt_tiny_cifar_patch4"))
    assert load_config(config, dict(name="dhvt_small_imagenet_patch16")).model.backbone.out_indices == (11,)
