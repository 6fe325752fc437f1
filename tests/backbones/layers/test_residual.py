"""Residual branches: stochastic depth, tokens beside a map, activations behind a branch."""

import torch
from torch import nn

from attlas.backbones.layers import Block, DropPath, LayerNorm2d, LocalBlock, Mlp, Residual, depthwise, fuse


def test_branches_of_a_block_share_the_draw():
    drop = DropPath(0.5).train()
    one, two = drop(torch.ones(64, 3, 2, 2), torch.ones(64, 5, 3))
    assert one.shape == (64, 3, 2, 2)
    assert set(one.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(one[:, 0, 0, 0], two[:, 0, 0])
    assert drop.eval()(one) is one


def test_tokens_beside_a_map_are_dropped_with_it():
    class Both(nn.Module):
        takes_tokens = True

        def forward(self, x, tokens):
            return torch.ones_like(x), torch.ones_like(tokens)

    block = Block(4, Both(), Mlp(4), drop_path=0.5).train()
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    x, tokens = block(torch.zeros(64, 4, 2, 2), torch.zeros(64, 1, 4))
    assert 10 < x[:, 0, 0, 0].count_nonzero() < 54
    assert torch.equal(x[:, 0, 0, 0], tokens[:, 0, 0])


def test_an_activation_behind_a_branch():
    x = torch.randn(1, 4, 5, 5)
    residual = Residual(depthwise(4, 3), activation=nn.GELU())
    expected = x + nn.functional.gelu(residual.branch(x))
    torch.testing.assert_close(residual(x), expected)
    torch.testing.assert_close(fuse(residual)(x), expected)  # there is no identity tap to merge with
    plain = Residual(depthwise(4, 3))
    expected = plain(x)
    fused = fuse(plain)
    assert type(fused) is nn.Conv2d
    torch.testing.assert_close(fused(x), expected)


def test_a_local_block_by_its_parts():
    torch.manual_seed(0)
    parts = nn.Conv2d(6, 6, 5, padding=2), nn.Conv2d(6, 6, 3, padding=1), Mlp(6, 2)
    block, x = LocalBlock(6, *parts, norm=nn.BatchNorm2d).double().eval(), torch.randn(2, 6, 5, 4).double()
    norms = block.norm1, block.local.branch[0], block.norm2
    assert len({*norms}) == 3
    assert {type(LocalBlock(6, *parts).norm1), type(LocalBlock(6, *parts).local.branch[0])} == {LayerNorm2d}
    y = x + block.position1.branch(x)
    for norm, part in zip(norms, parts):
        norm.running_mean.normal_()
        y = y + part(norm(y))
    torch.testing.assert_close(block(x), y)
    torch.testing.assert_close(fuse(block)(x), y)


def test_a_local_block_drops_all_branches_but_the_first():
    block, x = LocalBlock(6, nn.Identity(), nn.Identity(), nn.Identity(), drop_path=0.999), torch.randn(2, 6, 5, 4)
    torch.manual_seed(0)
    torch.testing.assert_close(block(x), block.position1(x))
