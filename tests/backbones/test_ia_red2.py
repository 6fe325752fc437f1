"""What characterizes IA-RED²: nested sets of tokens, gathered as masked, and interpreters that learn from rewards."""

import copy
import math
import pickle

import pytest
import torch
from agreement import assert_agree
from networks import fill
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones, checkpoint
from attlas.backbones.classification.model import ImageClassifier
from attlas.backbones.ia_red2 import (
    IARED2,
    GatheredRows,
    Interpreter,
    PackedAttention,
    policy_gradient_loss,
    reward,
    sample,
)
from attlas.backbones.inspection.attention_maps import look

LIKE_CLIP = dict(registers=2, pre_norm=True, mlp="quick_gelu", projection=24, layer_scale=0.5, class_position=False)
SMALL = dict(dim=48, groups=(2, 1, 1), heads=3, img_size=64, patch_size=8)


def small(**options):
    torch.manual_seed(0)
    return fill(IARED2(**{**SMALL, "num_classes": 5, **options})).double()


def images(*size, batch=4):
    return torch.randn(batch, 3, *(size or (64, 64)), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_kept_sets_are_nested():
    network = small()
    for x in (images(), images(50, 75), images(3, 8)):
        found = network.interpret(x)
        before = torch.ones_like(found.kept[0])
        for scores, kept in zip(found.scores, found.kept):
            assert kept[:, 0].all()
            assert (before | ~kept).all()
            assert torch.equal(kept[:, 1:], (scores > 0.5)[:, 1:])
            assert not scores[~before].any()
            before = kept
    kept = network.interpret(images()).kept
    assert len({*kept[0].sum(1).tolist()}) > 1  # images differ
    assert 1 < kept[2].sum(1).min() < kept[2].sum(1).max() < kept[0].sum(1).max() < 65


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (50, 75)])
@pytest.mark.parametrize("options", [dict(), dict(last_group=0), dict(threshold=0.0), LIKE_CLIP])
def test_gathered_is_masked(size, options):
    x = images(*size)
    gathered, masked = (small(execution=execution, **options) for execution in ("gathered", "masked"))
    one, other = gathered.interpret(x), masked.interpret(x)
    assert_agree("logits", one.logits, other.logits)
    assert_agree("cost", one.cost, other.cost)
    for got, expected in zip((*one.scores, *one.kept), (*other.scores, *other.kept)):
        assert_agree("tokens", got.double(), expected.double())
    for i in range(len(x)):  # an image does not depend on the others of its batch
        assert_agree("logits", gathered(x[i : i + 1]), one.logits[i : i + 1])
    dense, like = (small(execution=e, num_classes=None, **options) for e in ("gathered", "masked"))
    for got, expected in zip(dense(x), like(x)):
        assert_agree("maps", got, expected)
    error = (gathered.float()(x.float()) - masked.float()(x.float())).abs().max()
    assert error < 1e-5 * one.logits.abs().max()


@torch.no_grad()
def test_all_above_the_threshold_is_the_plain_network():
    network = small(threshold=0.0)
    vit = dict(class_token=0, class_position=True, img_size=64, patch_size=8, num_classes=5)
    plain = backbones.Isotropic(48, 4, dict(type="Attention", heads=3), **vit).double().eval()
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("interpreters.")}
    plain.load_state_dict(state)
    assert torch.equal(network.interpret(images()).cost, torch.ones(4))
    assert_agree("logits", network(images(50, 75)), plain(images(50, 75)))


@torch.no_grad()
def test_dropped_pixels_keep_their_last_value():
    network = small(num_classes=None, out_indices=(0, 1, 2, 3))
    x = images()
    kept = network.interpret(x).kept
    _, maps = network.forward_intermediates(x)
    for block, group in ((2, 1), (3, 2)):
        gone = ~kept[group][:, 1:].unflatten(1, (8, 8))
        for before, after in zip(maps[block - 1], maps[block]):
            changed = (before != after).any(0)
            assert not changed[gone[0]].any()
            gone = gone[1:]


def test_cost_falls_with_the_tokens():
    """Counted: multiplications follow the tool's relative cost, but for the square in attention and what is not in the
    blocks; no token that was dropped is computed."""
    x, costs, flops = images(batch=1), [], []
    for threshold in (0.0, 0.45, 0.5, 0.55):
        network = small(threshold=threshold)
        with FlopCounterMode(display=False) as counter:
            found = network.interpret(x)
        costs.append(found.cost.item())
        flops.append(counter.get_total_flops())
    assert costs[0] == 1 > costs[1] > costs[2] > costs[3]
    assert flops[0] > flops[1] > flops[2] > flops[3]
    for cost, count in zip(costs, flops):
        assert 0.85 * cost < count / flops[0] < cost + 0.2


@torch.no_grad()
def test_registers_stay():
    """Beside the class token, and out of the maps of scores."""
    network = small(**LIKE_CLIP, threshold=0.6)
    found = network.interpret(images())
    for kept in found.kept:
        assert kept.shape == (4, 3 + 64)
        assert kept[:, :3].all()
    assert found.kept[2].sum(1).min() < 30
    assert torch.equal(found.heat_map(0, least=0.0), found.scores[0][:, 3:].unflatten(1, (8, 8)))
    kept, log_probability = sample(torch.full((50, 6), 0.1), torch.ones(50, 6, dtype=torch.bool), tokens=3)
    assert kept[:, :3].all()
    assert not kept[:, 3:].all()
    dropped = (~kept[:, 3:]).sum(1)
    expected = dropped * torch.tensor(0.9).log() + (3 - dropped) * torch.tensor(0.1).log()
    assert torch.allclose(log_probability, expected)


def test_cost_of_the_tool():
    network = small()
    kept = [torch.tensor([[1, 1, 1, 0]]), torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 0]])]
    assert network.cost([part.bool() for part in kept]).item() == pytest.approx((2 * 0.75 + 0.5 + 0.25) / 4)


def test_packed_attention():
    attention = PackedAttention(24, 3).double()
    rows = torch.randn(1, 12, 24, dtype=torch.float64)
    packed = attention(rows, [5, 1, 6])
    for part, alone in zip(packed.split([5, 1, 6], dim=1), rows.split([5, 1, 6], dim=1)):
        assert_agree("rows", part, attention(alone))


def test_scores_by_definition():
    torch.manual_seed(0)
    interpreter, rows = Interpreter(24, 6).double(), torch.randn(2, 7, 24, dtype=torch.float64)
    normed = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    qkv = interpreter.qk(normed).unflatten(-1, (3, 6, 4))
    logits = torch.einsum("bhd,bnhd->bnh", qkv[:, 0, 0], qkv[:, :, 1]) / 2
    assert_agree("scores", interpreter(rows, rows[:, :1]), torch.sigmoid(logits).mean(-1))


@torch.no_grad()
@pytest.mark.parametrize(("dim", "heads"), [(48, 6), (384, 6), (64, 4)])
def test_a_new_network_keeps_all_tokens(dim, heads):
    """An interpreter begins with the accuracy of the network that it is given, and not with a random half of tokens."""
    torch.manual_seed(0)
    network = IARED2(**{**SMALL, "dim": dim, "heads": 1}, interpreter_heads=heads, num_classes=5).eval()
    found = network.interpret(images().float())
    assert all(kept.all() for kept in found.kept)
    assert all(0.55 < scores.min() < 0.73 < scores.max() < 0.85 for scores in found.scores)


@torch.no_grad()
def test_the_curriculum_switch():
    """Later groups take over what is left, and are scored all the same."""
    network, x = small(last_group=0), images()
    found, all_groups = network.interpret(x), small().interpret(x)
    assert torch.equal(found.kept[1], found.kept[0])
    assert torch.equal(found.kept[0], all_groups.kept[0])
    assert torch.equal(found.scores[1], all_groups.scores[1])
    assert (found.scores[2][found.kept[0]] > 0).all()


def test_both_spellings_of_the_blocks():
    """Files of the tool have the weights of blocks twice; either name is enough."""
    network = small()
    own = network.state_dict()
    theirs, twins = {}, {}
    for name, value in own.items():
        name = name.replace("stem.", "patch_embed.proj.").replace(".mixer.", ".attn.").replace("head.fc.", "head.")
        name = name.replace("interpreters.", "groups.").replace(".qk.", ".agent.qk.")
        name = {"position.weight": "pos_embed", "cls_token.weight": "cls_token"}.get(name, name)
        theirs[name] = value
        for block, twin in enumerate(("groups.0.block_list.0", "groups.0.block_list.1", "groups.1.block_list.0")):
            if name.startswith(f"blocks.{block}."):
                twins[name] = name.replace(f"blocks.{block}.", f"{twin}.")
        if name.startswith("blocks.3."):
            twins[name] = name.replace("blocks.3.", "groups.2.block_list.0.")
    second = {new: theirs[name] for name, new in twins.items()}
    rest = {name: value for name, value in theirs.items() if name not in twins}
    for state in (theirs, theirs | second, rest | second):
        again = IARED2(**SMALL, num_classes=5)
        account = backbones.load(again, state)
        assert account.complete, str(account)
        assert all(torch.equal(value.double(), own[name]) for name, value in again.state_dict().items())
    dense = IARED2(**SMALL, out_indices=(1,))
    assert backbones.load(dense, rest | second).complete
    assert len(dense.interpreters) == 1


def test_weights_of_a_plain_network():
    """Those of a DeiT begin a training; the interpreters are new, and reported."""
    state = backbones.create("deit_tiny", num_classes=5).state_dict()
    network = backbones.create("ia_red2_deit_tiny", num_classes=5)
    account = backbones.load(network, state)
    assert account.missing == [f"interpreters.{g}.qk.{kind}" for g in range(3) for kind in ("weight", "bias")]
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())


def test_heat_map():
    found = small().interpret(images(64, 80))
    heat = found.heat_map(group=2)
    assert heat.shape == (4, 8, 10)
    gone = ~found.kept[1][:, 1:].unflatten(1, (8, 10))
    assert (heat[gone] == 0.48).all()
    assert heat.min() == 0.48 < heat.max() < 1
    maps = small().attention_maps(images(64, 80), (0, 0))
    assert torch.equal(maps[:, 2].clamp(0.48, 1), heat)
    (seen,) = look(small().float(), images(64, 80, batch=1).float(), (0.5, 0.5))
    assert seen.maps.shape == (3, 8, 10)
    assert (seen.mixer, seen.kind) == ("IARED2", "group")


# --- learning --------------------------------------------------------------------------------------------------------


def test_a_draw():
    torch.manual_seed(0)
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.5, 1.0]]).repeat(20_000, 1).requires_grad_()
    before = torch.tensor([[1, 1, 1, 0, 1]]).bool().expand(20_000, -1)
    kept, log_probability = sample(scores, before, bound=0.8)
    assert kept[:, 0].all()
    assert not kept[:, 3].any()
    chances = torch.tensor([0.74, 0.32, 0.8])
    assert (kept[:, [1, 2, 4]].float().mean(0) - chances).abs().max() < 0.01
    drawn = kept[:, [1, 2, 4]]
    expected = torch.where(drawn, chances, 1 - chances).log().sum(1)
    assert torch.allclose(log_probability, expected, atol=1e-5)
    log_probability.sum().backward()
    assert not scores.grad[:, [0, 3]].any()


def test_rewards():
    right, share = torch.tensor([True, True, False]), torch.tensor([1.0, 0.5, 0.1])
    assert reward(right, share, 3.0).tolist() == [0, 0.75, -3]
    log_probability = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    policy_gradient_loss(log_probability, torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 3])).backward()
    assert torch.allclose(log_probability.grad, torch.tensor([-1 / 3, 0, 1]))


def test_the_policy_gradient_raises_a_reward():
    """Of a toy: half of the tokens are of a kind to keep, half of one to drop."""
    torch.manual_seed(0)
    interpreter, kinds = Interpreter(16, 2), torch.randn(2, 16)
    optimizer = torch.optim.Adam(interpreter.parameters(), lr=3e-3)
    everything = torch.ones(16, 21, dtype=torch.bool)

    def batch():
        kind = torch.randint(2, (16, 20))
        rows = torch.cat([torch.ones(16, 1, 16).cumsum(-1), kinds[kind] + 0.3 * torch.randn(16, 20, 16)], dim=1)
        return rows, kind

    def gain(kept, kind):
        return torch.where(kind == 0, kept[:, 1:], ~kept[:, 1:]).float().mean(1)

    rewards = []
    for _ in range(250):
        rows, kind = batch()
        scores = interpreter(rows, rows[:, :1])
        kept, log_probability = sample(scores, everything, 0.8)
        greedy = gain(scores > 0.5, kind)
        rewards.append(greedy.mean())
        optimizer.zero_grad()
        policy_gradient_loss(log_probability, gain(kept, kind), greedy).backward()
        optimizer.step()
    assert sum(rewards[:3]) / 3 < 0.3
    assert sum(rewards[-20:]) / 20 > 0.95


def learning(network):
    return {".".join(name.split(".")[:2]) for name, p in network.named_parameters() if p.requires_grad}


def test_what_learns():
    network = IARED2(**SMALL, num_classes=5, frozen_stages=1).train()
    everything = {"blocks.1", "blocks.2", "blocks.3", "norm.weight", "norm.bias", "head.fc"}
    assert learning(network) == everything
    network.learn("interpreter", 1)
    assert learning(network) == {"interpreters.1"}
    assert learning(IARED2(**SMALL, num_classes=5, learns=("interpreter", 1))) == {"interpreters.1"}
    network.learn("blocks", 1)
    assert learning(network) == {"blocks.2", "norm.weight", "norm.bias", "head.fc"}
    assert network.last_group == 1
    network.learn()
    assert learning(network) == everything
    for options, message in (
        (dict(part="heads"), "part='heads' must be 'interpreter', 'blocks' or None"),
        (dict(part="blocks", group=3), "group=3 must be from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            network.learn(**options)
    with pytest.raises(ValueError, match="the dense form makes none"):
        IARED2(**SMALL).learn("interpreter")


def test_an_interpreter_learns_in_a_classifier():
    """By ImageClassifier's own loss: only its weights change, and fewer tokens are kept where every prediction is
    right."""
    torch.manual_seed(0)
    model = ImageClassifier(dict(type="IARED2", **SMALL, num_classes=5)).train()
    network, x, labels = model.backbone, torch.randn(8, 3, 64, 64), torch.zeros(8, dtype=torch.int64)
    network.head.fc.bias.data[0] = 50.0  # class 0, whatever is left
    torch.nn.init.normal_(network.interpreters[0].qk.weight, std=0.05)
    network.learn("interpreter", 0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kept = network.interpret(x).kept[0].float().mean()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(40):
        losses = model(x, labels, mode="loss")
        assert {"loss", "accuracy", "reward", "kept"} == losses.keys()
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert network.interpret(x).kept[0].float().mean() < 0.6 * kept
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"interpreters.0.qk.weight", "interpreters.0.qk.bias"}
    network.learn("blocks", 0)
    model(x, labels, mode="loss")["loss"].backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} >= {"blocks.0.mlp.fc1.weight"}
    assert network.trial is None


def test_an_interpreter_learns_without_dropped_branches():
    """The baseline of a batch is one number, and the blocks that learn next drop branches again."""
    network = IARED2(**SMALL, num_classes=5, drop_path_rate=0.9, learns=("interpreter", 0)).train()
    x, baselines = images(64, 64).float(), []
    for _ in range(2):
        network(x)
        baselines.append(network.trial.greedy_logits)
    assert torch.equal(*baselines)
    torch.testing.assert_close(baselines[0], network.eval()(x))
    network.train().learn("blocks", 0)
    assert not torch.equal(network(x), network(x))


def test_copies_and_files():
    """Behind a training forward without feedback, too."""
    network = IARED2(**SMALL, num_classes=5, learns=("interpreter", 0)).train()
    network(images(64, 64).float())
    assert network.trial.log_probability.requires_grad
    x = images(64, 64).float()
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other.trial is None
        assert torch.equal(other.eval()(x), network.eval()(x))
        name = "groups.1.block_list.0.norm1.weight"
        assert checkpoint.rename(name, other.checkpoint_rules) == checkpoint.rename(name, network.checkpoint_rules)
    network.learn()
    assert network.trial is None


def test_bad_options():
    for options, message in (
        (dict(execution="packed"), "execution='packed' must be one of"),
        (dict(threshold=1.0), r"threshold=1\.0 must be at least 0 and below 1"),
        *(
            (dict(threshold=rate), r"threshold must be a number in \[0, 1\]")
            for rate in (-0.1, 1.5, math.nan, None, "a")
        ),
        *((dict(bound=rate), r"bound must be a number in \[0, 1\]") for rate in (-0.1, 1.5, math.nan, True, "a")),
        (dict(last_group=3), "last_group=3 must be -1, or from 0 to 2"),
        (dict(penalties=(3,)), r"penalties=\(3,\) must have one entry for each of 3 groups"),
        (dict(penalties=(3, 5, math.nan)), "penalties=.* must be numbers of at least 0, got nan"),
        (dict(penalties=(-1, 5, 8)), "penalties=.* must be numbers of at least 0, got -1"),
        (dict(power=0), "power=0 must be a number above 0"),
        (dict(power=-1.0), r"power=-1\.0 must be a number above 0"),
        (dict(power=math.nan), "power=nan must be a number above 0"),
        (dict(groups=()), "groups must have the number of blocks of each group"),
        (dict(groups=(2, 0)), "groups must be whole, at least 1, got 0"),
        (dict(bound=0.5), r"bound=0\.5 must be above 0\.5 and at most 1"),
        (dict(interpreter_heads=7), "Interpreter: dim=48 is not divisible by heads=7"),
        (dict(plugins="SE"), "does not use the option 'plugins'"),
    ):
        with pytest.raises(ValueError, match=message):
            IARED2(**{**SMALL, **options})


def test_nothing_to_drop():
    """Rows stay a batch, and are not copied."""
    rows = torch.randn(2, 5, 4)
    state = GatheredRows(rows)
    state.drop(torch.ones(2, 5, dtype=torch.bool))
    assert state.rows is state.grid() is rows
    state.drop(torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]).bool())
    assert torch.equal(state.rows, torch.stack([rows[0, [0, 2]], rows[1, [0, 1]]]))
    state.drop(torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]).bool())
    assert state.lengths == [1, 2]
    assert torch.equal(state.classes(), rows[:, :1])
    assert torch.equal(state.grid(), rows)
