"""What skeleton and base add: strides, notes from stem to head, auxiliary logits, heads that have blocks."""

import weakref

import pytest
import torch
from networks import close, image
from torch import nn

from attlas import backbones, checkpoint
from attlas.backbones.inspection.attention_maps import look
from attlas.backbones.layers import ClassAttention, ClassBlock, ClassHead, Head, Mlp, PositionTable
from attlas.backbones.skeletons.pyramid import Stage
from attlas.optim import layer_groups


class Late(backbones.Pyramid):
    """One resolution after the first stage, a table of positions there, and class attention in the head. In training,
    the stem marks images for an auxiliary head, which sees the marks."""

    def __init__(self, dims=(8, 16, 16), depths=(1, 2, 1), **common):
        super().__init__(dims, depths, dict(type="Attention", heads=2), (8, 16, 16), **common)

    def make_downsample(self, stage, in_dim, dim):
        return nn.Sequential(super().make_downsample(stage, in_dim, dim), PositionTable(dim, (3, 4)))

    def embed(self, image, notes):
        x = super().embed(image, notes)
        notes["marks"] = image.mean((1, 2, 3), keepdim=True)
        notes["auxiliary"] = notes["marks"].expand(-1, 6, 2, 2)
        return x

    def make_head(self, dim, num_classes):
        blocks = [ClassBlock(dim, ClassAttention(dim, 2), Mlp(dim, 2)) for _ in range(2)]
        return MarkedHead(dim, num_classes, blocks, auxiliary=Head(6, num_classes))


class MarkedHead(ClassHead):
    def forward(self, x, pre_logits=False, notes=None):
        found = super().forward(x, pre_logits, notes)
        return found if notes is None or not self.training else (*found, notes["marks"])


def late(**options):
    torch.manual_seed(0)
    return Late(**options)


def test_strides():
    network = late()
    assert network.out_strides == (8, 16, 16)
    assert (
        [tuple(y.shape[2:]) for y in network(image(75, 50))] == network.map_sizes(75, 50) == [(10, 7), (5, 4), (5, 4)]
    )
    assert network.ratios == [8, 2, 1]
    assert isinstance(network.stages[2].downsample, nn.Identity)
    for strides, dims in (((1, 1, 3), (8, 8, 16)), ((2, 8, 8), (8, 8, 8)), ((4, 4, 4), (8, 16, 24))):
        network = backbones.Pyramid(dims, (1, 1, 1), dict(type="GnConv", order=2), strides)
        assert [tuple(y.shape[2:]) for y in network(image(31, 18))] == network.map_sizes(31, 18)
    for strides in ((4, 8), (4, 6, 12), (8, 4, 4), (0, 0, 0)):
        with pytest.raises(ValueError, match=r"must be 3, each a multiple of the one before"):
            backbones.Pyramid((8, 8, 8), (1, 1, 1), strides=strides)


def test_plugins_weigh_what_blocks_add():
    """One for all stages or one for each; what stochastic depth drops stays dropped."""
    one = backbones.Pyramid((16, 16), (2, 1), plugins=[dict(type="ELA", variant="T", fit=True), None])
    assert [hasattr(block, "plugin") for stage in one.stages for block in stage.blocks] == [True, True, False]
    blocks, x = one.stages[0].blocks.eval(), torch.randn(2, 16, 6, 5)
    first = blocks[0](x)
    first = x + blocks[0].plugin(first - x)
    close(blocks(x), first + blocks[1].plugin(blocks[1](first) - first), 1e-6)
    every = backbones.Pyramid((16, 16), (2, 1), plugins="SE", drop_path_rate=0.6)
    assert all(hasattr(block, "plugin") for stage in every.stages for block in stage.blocks)
    block = every.stages[1].blocks.train()
    torch.manual_seed(0)
    outputs = torch.stack([block(x) for _ in range(8)])
    assert 0.1 < (outputs == x).flatten(2).all(2).float().mean() < 1
    for plugins, message in (
        (["SE"], "plugins must have one entry for each of the 2 stages"),
        (dict(variant="T"), "plugins: {'variant': 'T'} does not say its type"),
        ("ELA", r"ELA: dim=8 channels must be divisible"),
    ):
        with pytest.raises(ValueError, match=message):
            backbones.Pyramid((8, 16), (1, 1), plugins=plugins)
    with pytest.raises(KeyError, match="CBAM"):
        backbones.Pyramid((8, 16), (1, 1), plugins="CBAN")


def test_notes_go_from_the_stem_to_the_head():
    network, x = late(num_classes=3).train(), image(48, 64)
    logits, auxiliary, marks = network(x)
    close(marks, x.mean((1, 2, 3), keepdim=True))
    close(auxiliary, network.head.auxiliary(marks.expand(-1, 6, 2, 2)))
    assert not torch.equal(marks[0], marks[1])
    features = network.forward_features(x, notes := {})
    assert torch.equal(notes["marks"], marks)
    close(network.forward_head(features), logits)
    network.eval()
    assert network(x).shape == (2, 3)
    assert network.forward_head(network.forward_features(x), pre_logits=True).shape == (2, network.num_features)


def test_one_graph_with_notes():
    network, x = late(num_classes=3).train(), image(48, 64)
    torch.compiler.reset()
    for got, expected in zip(torch.compile(network, backend="eager", fullgraph=True)(x), network(x)):
        close(got, expected)
    program = torch.export.export(network.eval(), (x,))
    close(program.module()(x), network(x))


def test_the_classifier_is_all_final_layers():
    network = late(num_classes=3)
    assert network.classifier_names() == ["head.fc", "head.auxiliary.fc"]
    assert network.get_classifier() is network.head.fc
    network.bfloat16().reset_classifier(7)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    network.float().train()
    assert [y.shape[1] for y in network(image(48, 64))[:2]] == [7, 7]
    headless = late(num_classes=0)
    account = backbones.load(headless, network.state_dict())
    assert sorted(account.ignored) == [f"head.{n}.{p}" for n in ("auxiliary.fc", "fc") for p in ("bias", "weight")]
    other = late(num_classes=2)
    account = backbones.load(other, network.state_dict())
    assert {name.rpartition(".")[0] for name in account.mismatched} == {"head.fc", "head.auxiliary.fc"}


def test_blocks_of_a_head_have_a_depth():
    network = late(num_classes=3)
    depths = layer_groups([name for name, _ in network.named_parameters()], network.group_matcher())
    blocks = [depths[f"head.blocks.{i}.norm1.weight"] for i in range(2)]
    last = max(depth for name, depth in depths.items() if name.startswith("stages"))
    assert blocks == [last + 1, last + 2]
    assert depths["head.cls_token.weight"] == last + 1
    assert depths["head.fc.weight"] is depths["head.auxiliary.fc.weight"] is None
    coarse = layer_groups(depths, network.group_matcher(coarse=True))
    assert coarse["head.blocks.1.norm1.weight"] == max(d for d in coarse.values() if d is not None)
    assert network.no_weight_decay() == {"stages.1.downsample.1.weight", "head.cls_token.weight"}


def test_blocks_of_a_head_can_be_frozen():
    """One more than there are stages; what remains is a linear probe."""
    network = late(num_classes=3, frozen_stages=4).train()
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert all(name.startswith(("head.fc", "head.auxiliary")) for name in learning)
    assert not network.head.blocks.training
    network.freeze(3)
    assert all(p.requires_grad for p in network.head.parameters())
    assert not any(p.requires_grad for p in network.stages.parameters())
    network.freeze(-1)
    assert all(p.requires_grad for p in network.parameters())
    with pytest.raises(
        ValueError, match=r"from -1 .* to 4, the number of stages and one more for the blocks of the head"
    ):
        network.freeze(5)
    with pytest.raises(ValueError, match=r"from -1 \(none\) to 3, the number of stages$"):
        late(frozen_stages=4)


def test_blocks_of_a_head_are_checkpointed():
    """Nothing but their inputs is kept: the MLP of the head runs again in the backward pass."""
    calls, results = [], []
    for enable in (False, True):
        network = late(num_classes=3, grad_checkpointing=enable).train()
        network.head.blocks[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        sum(y.square().sum() for y in network(image(48, 64))[:2]).backward()
        results.append([p.grad for p in network.parameters()])
        calls.append(0)
    assert calls == [1, 0, 1, 1, 0]
    for one, other in zip(*results):
        close(one, other)
    network.set_grad_checkpointing(False)
    assert not network.head.blocks.checkpointing


def test_where_a_class_token_looks():
    """Class attention is found, and says how the token looks at the pixels."""
    network = late(num_classes=3).eval()
    seen = {found.name: found for found in look(network, image(48, 64, batch=1), (0.5, 0.5))}
    last = seen["head.blocks.1.mixer"]
    assert (last.mixer, last.kind, last.maps.shape) == ("ClassAttention", "head", (2, 3, 4))
    assert (last.maps.sum((1, 2)) < 1).all()


def test_positions_at_a_stage_load():
    network = late(num_classes=3)
    state = network.state_dict()
    name = "stages.1.downsample.1.weight"
    file = {**state, name: state[name].permute(0, 2, 3, 1)}  # (1, h, w, C)
    again = late(num_classes=3)
    nn.init.zeros_(again.stages[1].downsample[1].weight)
    assert checkpoint.load(again, file).complete
    assert torch.equal(again.state_dict()[name], state[name])


def test_a_stage_of_ones_own():
    """A stage may read what an earlier one noted."""

    class Reading(Stage):
        def forward(self, x, notes):
            notes.setdefault("sizes", []).append(tuple(x.shape[2:]))
            return super().forward(x, notes)

    class Network(backbones.Pyramid):
        def make_stage(self, stage, rates):
            made = super().make_stage(stage, rates)
            return Reading(made.downsample, made.blocks, made.norm)

    network = Network((8, 16), (1, 1), dict(type="Attention", heads=2), num_classes=2).eval()
    network.forward_features(image(32, 48), notes := {})
    assert notes["sizes"] == [(8, 12), (8, 12)]


@torch.no_grad()
def test_the_copy_of_an_image_is_gone_behind_the_stem():
    """The channels-last one, which `check` makes; in inference it would stand beside the largest maps."""
    network, copies, left = backbones.Pyramid((16, 32), (1, 1), num_classes=5), [], []
    network.stem.register_forward_pre_hook(lambda _, inputs: copies.append(weakref.ref(inputs[0])))
    network.stages[0].register_forward_pre_hook(lambda _, inputs: left.append(copies[-1]()))
    x = image(64, 64)
    for form in (network, lambda x: network.forward_intermediates(x, intermediates_only=True)):
        form(x)
    assert len(copies) == 2
    assert left == [None, None]
