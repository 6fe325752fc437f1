import itertools
import math

import numpy as np
import pytest
import torch
from agreement import assert_agree
from levels import levels_changed_by
from networks import build, close, image

from attlas import backbones
from attlas.backbones.dependencyvit import DependencyViT, ReversedAttention, dependency_tree
from attlas.backbones.inspection.dependency_trees import branches
from attlas.backbones.layers import Attention
from attlas.kernels.dispatch import decompositions


def mixer(dim=12, heads=3, **options):
    torch.manual_seed(0)
    return ReversedAttention(dim, heads, **options).double()


def maps(*size, dim=12):
    return torch.randn(2, dim, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def lite(**options):
    options = {"prune_blocks": (0, 1), "prune_ratio": 0.2, "depth": 3, "patch_size": 8, "img_size": 64, **options}
    return build("DependencyViT", **options)


def small_lite(**options):
    """Of double precision, with 4 x 3 patches of images of 32 x 24."""
    return lite(dim=12, heads=3, img_size=(32, 24), **options).double()


def picture(*size):
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# --- operator --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(qkv_bias=True, selector_bias=True, controller_bias=True)])
def test_equals_the_matrices_of_the_paper(options):
    """The formula step by step, with all matrices in memory: output, messages, mask, what is received, and maps."""
    ours, x, before = mixer(**options), maps(3, 4), torch.rand(2, 12, dtype=torch.float64)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rows = x.flatten(2).mT
    q, k, v = (y.unflatten(-1, (3, 4)).transpose(1, 2) for y in ours.qkv(rows).chunk(3, -1))
    forward = (q @ k.mT * 4**-0.5).softmax(-1)
    selected = (ours.head_selector(rows) / 0.1).softmax(-1).mT.unsqueeze(2)
    control = ours.message_controller
    m = before * control.fc2(torch.nn.functional.gelu(control.fc1(rows))).sigmoid().squeeze(-1)
    matrices = forward.mT * selected * m[:, None, None]
    expected = ours.proj((matrices @ v).transpose(1, 2).flatten(2)).mT.unflatten(-1, (3, 4))

    out, messages, received = ours(x, before, received=True)
    assert_agree("output", out, expected)
    assert_agree("output without messages", ours(x), ours(x, torch.ones_like(before))[0])
    assert_agree("messages", messages, m)
    assert_agree("received", received, matrices.sum((1, 3)))
    assert_agree("mask", ours.dependency_mask(x, before), matrices.sum(1))
    assert_agree("maps", ours.attention_maps(x, (1, 2), before), matrices[:, :, 6].unflatten(-1, (3, 4)))


def test_columns_of_the_mask_are_messages():
    ours, x, before = mixer(), maps(5, 4), torch.rand(2, 20, dtype=torch.float64)
    assert_agree("sums", ours.dependency_mask(x, before).sum(1), ours(x, before)[1])


def test_half_types_do_not_overflow():
    """Products of queries and keys beyond 65,504 are none when they are divided by the root of their length."""
    torch.manual_seed(0)
    operator = mixer(dim=32, heads=2).half()
    with torch.no_grad():
        operator.qkv.weight[:64].normal_(std=27)
    x = maps(3, 5, dim=32).half()
    q, k, _, _, m = operator._split(x.flatten(2).transpose(1, 2), None)
    assert (q @ k.mT).isinf().any()
    mask, seen = operator.dependency_mask(x), operator.attention_maps(x, (1, 2))
    close(mask.sum(1), m, 2e-3)
    close(seen.sum(1).flatten(1), mask[:, 7], 5e-2)  # logits of 1e5 have two digits behind the point


def speaking(dim=12, heads=3):
    """All messages are 1, and all heads speak alike."""
    ours = mixer(dim, heads, controller_bias=True)
    torch.nn.init.zeros_(ours.head_selector.weight)
    torch.nn.init.constant_(ours.message_controller.fc2.bias, 50.0)
    return ours


def test_is_the_transpose_of_attention():
    ours, x = speaking(), maps(3, 4)
    rows = x.flatten(2).mT
    q, k, _ = (y.unflatten(-1, (3, 4)).transpose(1, 2) for y in ours.qkv(rows).chunk(3, -1))
    assert_agree("mean of heads", ours.dependency_mask(x), (q @ k.mT / 2).softmax(-1).mean(1).mT)


def test_transposed_back_it_is_attention():
    ours, x = speaking(heads=1), maps(3, 4)
    plain = Attention(12, 1, qkv_bias=False).double()
    plain.load_state_dict(
        {name: value for name, value in ours.state_dict().items() if name.startswith(("qkv", "proj"))}
    )
    values = ours.qkv(x.flatten(2).mT)[..., 24:]
    rows = ours.proj(ours.dependency_mask(x).mT @ values)
    assert_agree("output", rows.mT.unflatten(-1, (3, 4)), plain(x))


def test_permuted_pixels_are_permuted_results():
    ours, x, order = mixer(), maps(1, 12), torch.randperm(12)
    assert_agree("output", ours(x[..., order]), ours(x)[..., order])


# --- network ---------------------------------------------------------------------------------------------------------


def test_messages_fade():
    """m never grows from block to block, and a silent token sends nothing from there on."""
    network, notes, before = build("DependencyViT", depth=4, patch_size=8), {}, None
    for _ in network.levels(image(64, 48), notes):
        messages = notes["messages"]
        assert messages.shape == (2, 48)
        assert (messages <= (1 if before is None else before)).all()
        before = messages
    assert 0 < before.min() < before.max() < 0.5


def test_the_head_reads_the_map_times_the_messages():
    network, x, notes = build("DependencyViT", num_classes=5, patch_size=8), image(64, 48), {}
    features = network.forward_features(x, notes)
    (final,) = network.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    close(features, final.flatten(2).mT * notes["messages"].unsqueeze(-1), 1e-6)
    close(network(x), network.head.fc(features.mean(1)), 1e-6)
    early = build("DependencyViT", num_classes=5, patch_size=8, join="before")
    (unnormed,) = early.forward_intermediates(x, indices=1, intermediates_only=True)
    close(early.forward_features(x), early.norm(unnormed.flatten(2).mT * notes["messages"].unsqueeze(-1)), 1e-6)


def test_the_dense_form():
    """One norm for all maps, not on the path, and no factor of the messages behind it."""
    network = build("DependencyViT", patch_size=8, out_indices=(0, 1))
    x = image(64, 48)
    assert levels_changed_by(network, x, "norm.weight") == [0, 1]
    assert levels_changed_by(network, x, "blocks.1.norm1.weight") == [1]
    torch.nn.init.zeros_(network.norm.weight)
    assert torch.equal(network(x)[1], network.norm.bias.view(1, -1, 1, 1).expand(2, -1, 8, 6))


@pytest.mark.parametrize("block", [0, 2, -1])
def test_dependencies(block):
    network, x = build("DependencyViT", depth=3, patch_size=8), image(64, 48)
    found, notes = network.dependencies(x, block), {}
    for i, _ in enumerate(network.levels(x, notes)):
        if i == block % 3:
            break
    assert found.mask.shape == (2, 48, 48)
    assert found.size == (8, 6)
    close(found.messages, notes["messages"], 1e-6)
    assert torch.equal(found.places, torch.arange(48).expand(2, 48))


# --- pruning ---------------------------------------------------------------------------------------------------------


def left(network, x):
    """Numbers of pixels behind every block."""
    notes = {}
    return [notes["rest"].shape[-2:].numel() for _ in network.levels(x, notes)]


def test_counts():
    """Of 64 pixels, at a fifth each time, and of 14 x 14 in the published network."""
    network = lite(num_classes=5)
    assert left(network, image(64, 64)) == [51, 38, 38]
    assert network.forward_features(image(64, 64)).shape == (2, 38, 48)
    with torch.device("meta"):
        published = backbones.create("dependencyvit_lite_tiny")
        counts = left(published, torch.zeros(1, 3, 224, 224))
    assert counts == [196, 164, 164, 164, 132, 132, 132, 100, 100, 100, 69, 69]
    assert [1 - p * 0.16 for p in range(1, 5)] == pytest.approx([n / 196 for n in counts[1::3]], abs=0.01)


def test_exact_shares():
    """1 - 0.6 of five pixels are two; as floats, shares of shares would be less."""
    assert left(lite(prune_blocks=(0, 1, 2), prune_ratio=0.2), image(8, 40)) == [4, 3, 2]
    assert left(lite(prune_blocks=(0,), prune_ratio=0.9), image(8, 16)) == [1, 1, 1]


@pytest.mark.parametrize("score", ["message", "received", "both"])
def test_the_highest_scores_stay(score):
    """Between the branches of the block, and what is left goes on as if it had been alone."""
    network, x, notes = small_lite(prune_blocks=(1,), prune_ratio=0.5, prune_score=score), picture(32, 24), {}
    mask, messages, *_ = network.dependencies(x, 1)
    scores = {"message": messages, "received": mask.sum(2), "both": messages + mask.sum(2)}[score]
    kept = scores.topk(6).indices.sort().values
    list(network.levels(x, notes))
    assert torch.equal(notes["pruned"].places, kept)

    whole = small_lite(prune_blocks=())
    whole.load_state_dict(network.state_dict())
    first, block = {}, whole.blocks[1]
    before, m = next(whole.levels(x, first)), first["messages"]
    mixed, m = block.mixer(block.norm1(before), m)
    rows = (before + block.scale1(mixed)).flatten(2).gather(2, kept[:, None].expand(-1, 12, -1)).unsqueeze(2)
    rows, m, _ = whole.blocks[2](rows + block.scale2(block.mlp(block.norm2(rows))), m.gather(1, kept), None)
    assert_agree("what is left", notes["rest"], rows)
    assert_agree("messages", notes["messages"], m)


def test_pruned_maps_are_on_the_grid():
    """A pixel that was dropped keeps its last value, or is zero; the rest is where it was."""
    network, x = small_lite(out_indices=(0, 1, 2)), picture(32, 24)
    zero = small_lite(out_indices=(0, 1, 2), fill="zero")
    maps, zeros = network(x), zero(x)
    dropped = []
    for level, (own, other) in enumerate(zip(maps, zeros)):
        notes = {}
        list(itertools.islice(network.levels(x, notes), level + 1))
        places = notes["pruned"].places
        stays = torch.zeros(2, 12, dtype=torch.bool).scatter(1, places, True).view(2, 1, 4, 3)
        assert_agree("kept", own * stays, other * stays)
        assert not (other * ~stays).any()
        assert (own * ~stays).abs().sum(1).ne(0).eq(~stays[:, 0]).all()
        rows = network.norm(notes["rest"]).squeeze(2)
        assert_agree("in place", own.flatten(2).gather(2, places[:, None].expand(-1, 12, -1)), rows)
        dropped.append(~stays)
    assert torch.equal(maps[1] * dropped[0], maps[0] * dropped[0])
    assert torch.equal(maps[2] * dropped[1], maps[1] * dropped[1])
    found = network.dependencies(x, 2)
    assert found.mask.shape == (2, 6, 6)
    assert found.size == (4, 3)
    assert torch.equal(found.places, places)


def test_nothing_dropped_is_the_whole_network():
    x = image(64, 48)
    close(lite(prune_ratio=0.0, num_classes=5)(x), lite(prune_blocks=(), num_classes=5)(x), 1e-6)


def test_images_are_pruned_by_themselves():
    network, x = small_lite(num_classes=5), picture(32, 24)
    assert_agree("logits", network(x), torch.cat([network(x[:1]), network(x[1:])]))


def test_pruned_networks_train():
    """With and without checkpointing the gradients are the same, and none is missing but by the head's classes."""
    x, gradients = image(64, 48), []
    for enable in (False, True):
        network = lite(num_classes=5, layer_scale=None).train()
        network.set_grad_checkpointing(enable)
        network(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        close(gradients[1][name], gradient, 1e-4)


@pytest.mark.slow
def test_a_pruned_network_is_one_graph():
    torch.compiler.reset()
    network, x = lite(num_classes=5), image(64, 48)
    close(torch.compile(network, backend="eager", fullgraph=True)(x), network(x))
    program = torch.export.export(network, (x,))
    close(program.module()(x), network(x))
    close(program.run_decompositions(decompositions()).module()(x), network(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prune_blocks=(2, 1)), r"prune_blocks=\(2, 1\) must be blocks of 0 to 2, in rising order"),
        (dict(prune_blocks=(1, 1)), "in rising order"),
        (dict(prune_blocks=(3,)), r"prune_blocks=\(3,\) must be blocks of 0 to 2"),
        (dict(prune_blocks=1), "prune_blocks=1 must be blocks of 0 to 2"),
        (dict(prune_ratio=0.5), r"prune_ratio=0\.5 must be at least 0, and below 1 / 2 for 2 blocks"),
        (dict(prune_blocks=(True,)), r"prune_blocks=\(True,\) must be blocks of 0 to 2"),
        *(
            (dict(prune_ratio=rate), "prune_ratio must be a number in \\[0, 1\\]")
            for rate in (-0.1, 1.5, math.nan, True, "a")
        ),
        (dict(prune_score="mass"), "prune_score='mass' must be one of 'message', 'received', 'both'"),
        (dict(fill="mean"), "fill='mean' must be one of 'last', 'zero'"),
        (dict(join="never"), "join='never' must be one of 'after', 'before'"),
        (dict(temperature=0), r"temperature=0 must be a number above 0"),
        (dict(temperature=math.nan), r"temperature=nan must be a number above 0"),
        (dict(plugins="ELA"), r"plugins see whole maps, and prune_blocks=\(0, 1\) leaves parts of them"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DependencyViT(**{"dim": 24, "depth": 3, "prune_blocks": (0, 1), **options})


def test_bad_block():
    with pytest.raises(ValueError, match="block=2: there are 2 blocks"):
        build("DependencyViT", patch_size=8).dependencies(image(16, 16), 2)


# --- trees -----------------------------------------------------------------------------------------------------------


def depth_of(parents):
    """Steps from every token to the root; fails on a cycle."""
    steps = []
    for node in range(len(parents)):
        count = 0
        while parents[node] >= 0:
            node, count = parents[node], count + 1
            assert count < len(parents)
        steps.append(count)
    return steps


def total(mask, parents):
    return sum(mask[parent, child].item() for child, parent in enumerate(parents) if parent >= 0)


def test_a_cycle_is_resolved():
    """1 and 2 are each other's strongest parents, and 0 receives most; the weaker edge of the cycle gives way."""
    mask = torch.tensor([[9.0, 4, 3, 5], [0, 0, 8, 0], [0, 8, 0, 0], [0, 0, 0, 0]])
    assert dependency_tree(mask, "argmax").tolist() == [-1, 2, 1, 0]
    assert dependency_tree(mask).tolist() == [-1, 0, 1, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_no_tree_is_larger(size):
    """Among all trees to the root; also with many ties."""
    random = np.random.default_rng(size)
    for number in range(12):
        values = random.random((size, size)) if number % 2 else random.integers(0, 4, (size, size))
        mask = torch.from_numpy(values.astype(float))
        parents = dependency_tree(mask).tolist()
        depth_of(parents)
        root = (mask.sum(1) - mask.diagonal()).argmax().item()
        assert [node for node, parent in enumerate(parents) if parent < 0] == [root]
        best = 0 if size == 1 else -1
        children = [node for node in range(size) if node != root]
        for others in itertools.product(range(size), repeat=size - 1):
            tried = [-1] * size
            for child, parent in zip(children, others):
                tried[child] = parent
            try:
                depth_of(tried)
            except AssertionError:
                continue
            best = max(best, total(mask, tried))
        assert total(mask, parents) == pytest.approx(best)


def test_nested_cycles():
    """Tokens on a line depend on the nearest: cycles of cycles; and a batch is its masks one by one."""
    place = torch.tensor([[0.0, 1, 3, 7, 15, 31, 63, 64, 66, 70], [5, 4, 9, 1, 0, 17, 33, 34, 90, 91]]).double()
    mask = 1 / (1 + (place[:, :, None] - place[:, None]).square())
    parents = dependency_tree(mask)
    strongest = dependency_tree(mask, "argmax")
    for one, tree, first in zip(mask, parents, strongest):
        depth_of(tree.tolist())
        assert torch.equal(dependency_tree(one), tree)
        bound = total(one, first.tolist())
        assert 0.5 * bound < total(one, tree.tolist()) < bound
    # the edges of the smallest spanning tree, which here is the same up to direction: neighbors on the line
    assert sorted(tuple(sorted((i, p))) for i, p in enumerate(parents[0].tolist()) if p >= 0) == [
        (i, i + 1) for i in range(9)
    ]


def test_branches():
    """Larger ones first; a token without a way to the root has none."""
    parents = np.array([3, 3, 1, -1, 2, 0, 7, 6, 6])
    assert branches(parents).tolist() == [1, 0, 0, -1, 0, 1, -1, -1, -1]
    assert branches(np.array([-1])).tolist() == [-1]


def test_bad_masks():
    with pytest.raises(ValueError, match="method='best' must be one of 'argmax', 'arborescence'"):
        dependency_tree(torch.ones(2, 2), "best")
    for shape in ((2, 3), (4,), (0, 0)):
        with pytest.raises(ValueError, match=r"mask must have shape \(N, N\) or \(B, N, N\) of at least one token"):
            dependency_tree(torch.ones(shape))
    with pytest.raises(ValueError, match="mask must be finite"):
        dependency_tree(torch.tensor([[0.0, float("nan")], [1, 1]]))
    assert dependency_tree(torch.ones(0, 3, 3)).shape == (0, 3)
