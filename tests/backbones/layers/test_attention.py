"""Attention to all pixels, with tokens beside them and of class tokens alone."""

import pytest
import torch

from attlas import checkpoint
from attlas.backbones.layers import Attention, ClassAttention, ClassBlock, Mlp, as_rows


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tokens_take_part_in_attention_maps():
    """The weights of one pixel, those of the tokens too, against its output recomputed from them."""
    mixer, x, tokens = Attention(8, 2).double(), normal(2, 8, 3, 4), normal(2, 2, 8, seed=1)
    y, _ = mixer(x, tokens)
    maps = mixer.attention_maps(x, (1, 2), tokens)
    assert (maps.sum((2, 3)) < 1).all()
    rows = torch.cat([tokens, x.flatten(2).mT], dim=1)
    q, k, v = mixer.qkv(rows).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    weights = (q[:, :, 2 + 1 * 4 + 2, None] @ k.mT / 2).softmax(-1)
    torch.testing.assert_close(maps.flatten(2), weights[:, :, 0, 2:])
    torch.testing.assert_close(mixer.proj((weights @ v)[:, :, 0].flatten(1)), y[:, :, 1, 2])
    alone = mixer.attention_maps(x, (1, 2)).sum((2, 3))
    torch.testing.assert_close(alone, torch.ones_like(alone))


def test_maps_of_large_values_in_float16():
    x, tokens = torch.full((1, 64, 2, 2), 40.0).half(), torch.full((1, 1, 64), 40.0).half()
    mixer, of_class = Attention(64, 1).half(), ClassAttention(64, 1).half()
    for layer in (mixer.qkv, of_class.q, of_class.kv):
        layer.weight.data.copy_(torch.eye(64).repeat(len(layer.weight) // 64, 1))
        layer.bias.data.zero_()
    for maps in (
        mixer.weights(x, tokens)[..., 1:],
        mixer.attention_maps(x, (1, 1), tokens),
        of_class.attention_maps(x, (0, 0), tokens),
    ):
        torch.testing.assert_close(maps, torch.full_like(maps, 0.2))


@pytest.mark.parametrize("count", [1, 3])
def test_class_attention_is_that_of_some_rows(count):
    """Full attention of tokens and pixels, of which only the rows of the tokens are computed."""
    mixer, full = ClassAttention(8, 2).double(), Attention(8, 2).double()
    state = {f"qkv.{n}": torch.cat([getattr(mixer.q, n), getattr(mixer.kv, n)]) for n in ("weight", "bias")}
    full.load_state_dict(state | {f"proj.{name}": value for name, value in mixer.proj.state_dict().items()})
    x, tokens = normal(2, 8, 3, 5), normal(2, count, 8, seed=1)
    torch.testing.assert_close(mixer(x, tokens), full(x, tokens)[1])
    # whatever the place, and of the first token
    maps = mixer.attention_maps(x, (2, 4), tokens)
    assert maps.shape == (2, 2, 3, 5)
    assert torch.equal(maps, mixer.attention_maps(x, (0, 0), tokens))
    rows = torch.cat([tokens, x.flatten(2).mT], dim=1)
    k = mixer.kv(rows)[..., :8].unflatten(-1, (2, 4)).transpose(1, 2)
    q = mixer.q(tokens[:, 0]).unflatten(-1, (2, 1, 4))
    weights = (q @ k.mT / 2).softmax(-1)
    torch.testing.assert_close(maps.flatten(2), weights[:, :, 0, count:])


def test_class_attention_does_not_see_the_order_of_pixels():
    mixer, x, tokens = ClassAttention(8, 2).double(), normal(2, 8, 3, 5), normal(2, 1, 8, seed=1)
    shuffled = x.flatten(2)[..., torch.randperm(15)].unflatten(2, (3, 5))
    torch.testing.assert_close(mixer(shuffled, tokens), mixer(x, tokens))


def test_class_block():
    """The definition, with layer scale; the map is read, not changed."""
    block = ClassBlock(8, ClassAttention(8, 2, qkv_bias=False), Mlp(8, 2), layer_scale=0.5).double()
    assert block.mixer.q.bias is None
    x, tokens = normal(2, 8, 3, 5), normal(2, 1, 8, seed=1)
    rows = torch.cat([tokens, x.flatten(2).mT], dim=1)
    normed = block.norm1(rows)
    y = tokens + 0.5 * block.mixer(normed[:, 1:].mT.unflatten(2, (3, 5)), normed[:, :1])
    torch.testing.assert_close(block(x, tokens), y + 0.5 * block.mlp(block.norm2(y)))


@pytest.mark.parametrize("pixels", [1, 6])
def test_rows_lie_as_fused_attention_wants_them(pixels):
    (rows,) = as_rows(normal(2, 16, pixels).transpose(1, 2))
    assert rows.stride() == (16 * pixels, 16, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_files_that_keep_queries_keys_and_values_apart(bias):
    whole, joined = Attention(8, 2, qkv_bias=bias), torch.nn.Sequential(Attention(8, 2, qkv_bias=bias))
    state = {f"0.{name}": value for name, value in whole.state_dict().items()}
    for kind in ("weight", "bias")[: 1 + bias]:
        apart = state.pop(f"0.qkv.{kind}").chunk(3)
        state |= {f"0.{part}.{kind}": value for part, value in zip("qkv", apart)}
    account = checkpoint.load(joined, state)
    assert account.complete
    assert torch.equal(joined[0].qkv.weight, whole.qkv.weight)
    del state["0.k.weight"]
    account = checkpoint.load(joined, state)
    assert account.missing == ["0.qkv.weight"]
    assert {"0.q.weight", "0.v.weight"} <= set(account.unexpected)
