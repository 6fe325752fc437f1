"""What characterizes attention diversification: one for queries that look alike, and gradients that part them."""

import copy

import pytest
import torch
from agreement import assert_agree

from attlas import backbones
from attlas.backbones.layers import Attention, diversification, diversification_loss, diversify, mean_loss, noted
from attlas.backbones.layers.diversification import attend


def logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(maps, threshold):
    """The definition, image by image and query by query."""
    found = []
    for image in maps.mean(1):
        least = threshold / image.shape[-1]
        shared = image.mean(0)
        shared = shared * (shared > least)
        for row in image:
            row = row * (row > least)
            norms = shared.norm().clamp(min=1e-8) * row.norm().clamp(min=1e-8)
            found.append((shared * row).sum() / norms)
    return torch.stack(found).mean()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0])
def test_by_definition(batch, threshold):
    maps = logits(batch, 2, 7, 12).softmax(-1)
    loss = diversification_loss(maps, threshold)
    assert_agree("loss", loss, by_hand(maps, threshold))
    assert 0 <= loss <= 1
    one_by_one = torch.stack([diversification_loss(image[None], threshold) for image in maps])
    assert_agree("images do not depend on each other", loss, one_by_one.mean())


def test_one_row_and_no_row():
    row = logits(1, 1, 1, 16).softmax(-1)
    assert row.max() > 2 / 16
    assert_agree("one row", diversification_loss(row.expand(2, 3, 16, 16)), torch.ones((), dtype=torch.float64))
    assert diversification_loss(torch.full((2, 3, 16, 16), 1 / 16)) == 0
    assert diversification_loss(torch.eye(16).expand(1, 1, 16, 16)) == 0  # each looks at itself alone: the mean is flat


@pytest.mark.parametrize("kept", [diversification.KEPT, 1])
@pytest.mark.parametrize("tile", [2**19, 200, 1])
@pytest.mark.parametrize("shape", [(1, 2, 9, 9), (3, 4, 13, 7), (2, 1, 1, 5)])
def test_attention_and_loss_in_tiles(shape, tile, kept, monkeypatch):
    """As with whole maps, and so are all gradients; of tiles that no size divides, too."""
    monkeypatch.setitem(diversification.TILE, "cpu", tile)
    monkeypatch.setattr(diversification, "KEPT", kept)
    images, heads, queries, pixels = shape
    q, k, v = (
        logits(images, heads, queries, 8),
        logits(images, heads, pixels, 8, seed=1),
        logits(images, heads, pixels, 6),
    )
    results = []
    for whole in (True, False):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        if whole:
            maps = (inputs[0] @ inputs[1].mT / 8**0.5).softmax(-1)
            out, loss = maps @ inputs[2], diversification_loss(maps, 1.5)
        else:
            out, loss = attend(*inputs, 1.5)
        gradients = torch.autograd.grad(out.square().sum() + 3 * loss, inputs)
        results.append([out, loss, *gradients])
    for name, expected, got in zip(("output", "loss", "q", "k", "v"), *results):
        assert_agree(name, got, expected)


def test_no_maps_are_kept():
    """What waits for the backward pass grows with the pixels, not with their square."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        attend(*(torch.randn(1, 2, 256, 4, requires_grad=True) for _ in range(3)))
    assert max(saved) == 2 * 256 * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    q, k, v = (logits(2, 2, 20, 8, seed=n, scale=1.0).to(dtype).requires_grad_() for n in range(3))
    out, loss = attend(q, k, v)
    assert (out.dtype, loss.dtype) == (dtype, torch.float32)
    exact = attend(q.double(), k.double(), v.double())
    torch.testing.assert_close(loss.double(), exact[1], atol=0.02, rtol=0.02)
    (out.float().sum() + loss).backward()
    assert all(x.grad.dtype == dtype and torch.isfinite(x.grad).all() for x in (q, k, v))


def small(**options):
    torch.manual_seed(0)
    return backbones.Isotropic(16, 3, img_size=32, patch_size=8, num_classes=3, **options).train()


def test_a_network_says_its_losses():
    network, image = small(), torch.randn(2, 3, 32, 40)
    with noted(network) as losses:
        network(image)
    assert losses == []  # nobody asked
    diversify(network)
    with noted(network) as losses:
        network(image)
    assert len(losses) == 3
    rows, maps = [], []
    for block in network.blocks:
        block.mixer.register_forward_pre_hook(lambda mixer, args: rows.append((mixer, *args)))
    with noted(network):
        network(image)
    for mixer, x, tokens in rows:
        q, k, _ = mixer._split(torch.cat([tokens, x.flatten(2).mT], 1))
        maps.append(diversification_loss((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)))
    torch.testing.assert_close(mean_loss(losses), torch.stack(maps).sum() / (3 + 1e-6))
    network.eval()
    with noted(network) as losses:
        network(image)
    assert losses == []
    assert all(block.mixer.losses is None for block in network.blocks)


def test_checkpointing_and_copies():
    """Blocks that are computed again note nothing twice; a copy, such as of averaged weights, is asked by itself."""
    image, gradients = torch.randn(2, 3, 32, 32), []
    for checkpointing in (False, True):
        network = small(grad_checkpointing=checkpointing)
        diversify(network)
        with noted(network) as losses:
            logits = network(image)
        mean_loss(losses).add(logits.sum()).backward()
        assert len(losses) == 3
        gradients.append(network.blocks[0].mixer.qkv.weight.grad)
    torch.testing.assert_close(*gradients)
    again = copy.deepcopy(network)
    with noted(network) as losses:
        again(image)
    assert losses == []


def test_training_on_it_alone_makes_queries_differ():
    torch.manual_seed(0)
    mixer, x = Attention(16, 2).train(), torch.randn(4, 16, 6, 6) + 2 * torch.randn(1, 16, 1, 1)
    torch.nn.init.normal_(mixer.qkv.weight, std=0.5)
    diversify(mixer, 1.0)
    optimizer, found = torch.optim.Adam(mixer.parameters(), lr=0.01), []
    for _ in range(30):
        with noted(mixer) as losses:
            mixer(x)
        optimizer.zero_grad()
        losses[0].backward()
        optimizer.step()
        found.append(losses[0].item())
    assert found[-1] < 0.6 * found[0]


def test_errors():
    with pytest.raises(ValueError, match=r"maps must be of shape .*got \(2, 3, 4\)"):
        diversification_loss(torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match=r"threshold must be a number of at least 0.*got -1"):
        diversification_loss(torch.rand(1, 2, 3, 4), -1)
    with pytest.raises(ValueError, match="Conv2d has no attention that says"):
        diversify(torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="no attention of the network said its loss"):
        mean_loss([])
