"""Heads: their final layers, auxiliary logits, class tokens."""

import pytest
import torch
from torch import nn

from attlas.backbones.layers import ClassAttention, ClassBlock, ClassHead, DistilledHead, Head, Mlp, fuse


def test_heads_list_their_final_layers():
    auxiliary = Head(6, 3)
    for head, names in (
        (Head(8, 3), ["fc"]),
        (Head(8, 3, auxiliary=auxiliary), ["fc", "auxiliary.fc"]),
        (DistilledHead(8, 3, nn.BatchNorm1d), ["fc", "distilled.fc"]),
        (ClassHead(8, 3, [ClassBlock(8, ClassAttention(8, 2), Mlp(8))]), ["fc"]),
    ):
        assert head.final_layers == names
        of_classes = {name for name, p in head.named_parameters() if name.endswith("fc.weight") and p.shape[0] == 3}
        assert of_classes == {f"{name}.weight" for name in names}
        head.reset(5)
        assert all(head.get_submodule(name).out_features == 5 for name in names)
        head.reset(0)
        assert all(isinstance(head.get_submodule(name), nn.Identity) for name in names)


def test_an_auxiliary_head():
    """It reads what was noted, in training alone, and as long as there are classes."""
    head = Head(8, 3, auxiliary=Head(6, 3))
    x, notes = torch.randn(2, 8, 4, 4), dict(auxiliary=torch.randn(2, 6, 2, 2))
    logits, second = head(x, notes=notes)
    assert torch.equal(second, head.auxiliary(notes["auxiliary"]))
    assert torch.equal(head(x), logits)
    assert head(x, pre_logits=True, notes=notes).shape == (2, 8)
    assert torch.equal(head.eval()(x, notes=notes), logits)
    head.train().reset(0)
    assert head(x, notes=notes).shape == (2, 8)
    assert fuse(Head(8, 3, auxiliary=Head(6, 3))).auxiliary is None


def test_a_class_token_reads_the_map():
    head = ClassHead(8, 3, [ClassBlock(8, ClassAttention(8, 2), Mlp(8)) for _ in range(2)], after=nn.LayerNorm(8))
    x = torch.randn(2, 8, 4, 4)
    token = head.cls_token.weight.expand(2, -1, -1)
    for block in head.blocks:
        token = block(x, token)
    torch.testing.assert_close(head(x), head.fc(head.after(token[:, 0])))
    assert head.cls_token.weight.grad is None
    head(x).sum().backward()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("before", [None, nn.BatchNorm2d])
def test_a_batch_norm_behind_the_mean_is_fused(before):
    """It is one linear map with the last layer; a norm before the mean stays."""
    norms = [before and before(8), nn.BatchNorm1d(8)]
    head, x = Head(8, 3, *norms), torch.randn(2, 8, 4, 5)
    for norm in filter(None, norms):
        for value, low in ((norm.running_mean, -1.0), (norm.running_var, 0.5), (norm.weight.data, 0.5)):
            nn.init.uniform_(value, low, 2.0)
        nn.init.normal_(norm.bias)
    expected = head.eval()(x)
    torch.testing.assert_close(fuse(head)(x), expected)
    assert isinstance(head.after, nn.Identity)
    assert isinstance(head.before, before or nn.Identity)
