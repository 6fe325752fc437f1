"""What characterizes TCPA: attention to picked prompts without a mask, keys that learn from distances, a frozen ViT."""

import pytest
import torch
from agreement import assert_agree
from networks import fill
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones import tcpa
from attlas.backbones.classification.model import ImageClassifier
from attlas.backbones.inspection.attention_maps import look
from attlas.backbones.tcpa import TCPA, Pools, coordinated_attention

SMALL = dict(dim=48, depth=3, heads=4, img_size=64, class_pool=5, image_pool=6, class_topk=2, image_topk=3)


def small(**options):
    torch.manual_seed(0)
    return fill(TCPA(**{**SMALL, "num_classes": 5, **options})).double()


def images(*size, batch=2):
    return torch.randn(batch, 3, *(size or (64, 64)), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def parts(queries=10, tokens=10, prompts=7, dim=6):
    torch.manual_seed(0)
    sizes = (queries, tokens, tokens, prompts, prompts)
    found = [torch.randn(2, 3, n, dim, dtype=torch.float64, requires_grad=True) for n in sizes]
    return found, torch.rand(2, queries, prompts) > 0.5


def by_definition(q, k, v, prompt_k, prompt_v, allowed, mask):
    """With every weight and the whole mask."""
    logits = q @ torch.cat([prompt_k, k], 2).mT * q.shape[-1] ** -0.5
    whole = torch.cat([allowed, torch.ones(2, q.shape[2], k.shape[2], dtype=torch.bool)], -1).unsqueeze(1)
    after, before = logits.softmax(-1) * whole, logits.masked_fill(~whole, -torch.inf).softmax(-1)
    return (before if mask == "logits" else after) @ torch.cat([prompt_v, v], 2)


@pytest.mark.parametrize("path", ["sums", "channel"])
@pytest.mark.parametrize("mask", ["weights", "logits"])
@pytest.mark.parametrize("sizes", [dict(), dict(dim=8), dict(queries=1, prompts=1), dict(prompts=0)])
def test_attention_by_definition(path, mask, sizes, monkeypatch):
    """With its gradients, also of one that is the same in all channels."""
    if path == "channel":
        monkeypatch.setattr(tcpa, "_tells_sums", lambda *inputs: False)
    inputs, allowed = parts(**sizes)
    got, expected = coordinated_attention(*inputs, allowed, mask), by_definition(*inputs, allowed, mask)
    assert_agree("attention", got, expected)
    for pull in (torch.randn_like(got), torch.ones(1, dtype=torch.float64).expand_as(got)):
        grads = [torch.autograd.grad(y, inputs, pull, retain_graph=True) for y in (got, expected)]
        for one, other in zip(*grads):
            if other.numel():
                assert_agree("gradient", one, other)


@torch.no_grad()
def test_rows_sum_to_at_most_one():
    (q, k, v, prompt_k, prompt_v), allowed = parts()
    allowed[0, 0] = True
    sums = coordinated_attention(q, k, torch.ones_like(v), prompt_k, torch.ones_like(prompt_v), allowed)
    whole = allowed.all(-1)[:, None, :, None].expand_as(sums)
    assert torch.allclose(sums[whole], torch.ones(int(whole.sum()), dtype=torch.float64))
    assert (sums[~whole] < 1 - 1e-4).all()
    sums = coordinated_attention(q, k, torch.ones_like(v), prompt_k, torch.ones_like(prompt_v), allowed, "logits")
    assert torch.allclose(sums, torch.ones_like(sums))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_low_precision(dtype, monkeypatch):
    """In both forms, with gradients."""
    inputs, allowed = parts(queries=40, tokens=40, dim=16)
    low = [x.detach().to(dtype).requires_grad_() for x in inputs]
    inputs = [x.detach().double().requires_grad_() for x in low]
    exact = coordinated_attention(*inputs, allowed)
    exact = [exact, *torch.autograd.grad(exact.square().sum(), inputs)]
    for form in ("sums", "channel"):
        if form == "channel":
            monkeypatch.setattr(tcpa, "_tells_sums", lambda *inputs: False)
        found = coordinated_attention(*low, allowed)
        assert found.dtype == dtype
        for got, expected in zip((found, *torch.autograd.grad(found.square().sum(), low)), exact):
            error = (got.double() - expected).abs().max() / expected.abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 3e-2)


def test_bad_masks():
    inputs, allowed = parts()
    with pytest.raises(ValueError, match="mask='rows' must be one of 'weights', 'logits'"):
        coordinated_attention(*inputs, allowed, "rows")
    with pytest.raises(ValueError, match=r"allowed must have shape \(B, Q, P\) = \(2, 10, 7\), got \(2, 10, 6\)"):
        coordinated_attention(*inputs, allowed[..., :6])


@torch.no_grad()
def test_each_token_sees_its_own_prompts():
    """By definition: those with the largest cosines, class prompts first."""
    pools = Pools(3, 16, (4, 6), (2, 3), (2, 1)).double()
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    allowed, distance = pools(1, x[:, :1], x[:, 1:])
    assert allowed.shape == (2, 10, 8 + 18)
    expected = []
    for pool, rows, columns, topk in (
        (pools.of_class, x[:, :1], slice(0, 8), 2),
        (pools.of_image, x[:, 1:], slice(8, 26), 1),
    ):
        cosine = torch.cosine_similarity(rows[:, :, None], pool.keys[1], dim=-1)
        best = cosine.sort(dim=-1, descending=True)
        expected.append((1 - best.values[..., :topk]).mean())
        rows = allowed[:, :1] if topk == 2 else allowed[:, 1:]
        groups = rows[..., columns].unflatten(-1, (-1, pool.length))
        assert torch.equal(groups.all(-1), groups.any(-1))
        assert torch.equal(
            groups.all(-1), torch.zeros_like(cosine, dtype=torch.bool).scatter(-1, best.indices[..., :topk], True)
        )
        assert rows.sum() == groups.sum()  # nothing of the other pool
    assert_agree("distance", distance, sum(expected))
    roles, nothing = Pools(3, 16, (4, 6), (2, 3), coordination="roles")(1, x[:, :1], x[:, 1:])
    assert nothing is None
    assert roles[:, 0, :8].all()
    assert roles[:, 1:, 8:].all()
    assert roles.sum() == 2 * (8 + 9 * 18)


@torch.no_grad()
def test_random_picks():
    """As many as else, without repetition, others every time; the distance is theirs."""
    pools = Pools(1, 16, (8, 8), (1, 1), (3, 4))
    x = torch.randn(4, 30, 16)
    (one, far), (other, _), (_, near) = (pools(0, x[:, :1], x[:, 1:], random) for random in (True, True, False))
    assert (one[:, 0].sum(-1) == 3).all()
    assert (one[:, 1:].sum(-1) == 4).all()
    assert not torch.equal(one, other)
    assert far > near + 0.1
    network = small(num_classes=5).train()
    for random in (False, True):
        network.random_picks = random
        seen = [({}, torch.manual_seed(seed))[0] for seed in (0, 1)]
        for seed, notes in enumerate(seen):
            torch.manual_seed(seed)
            network.dropout.p = 0.0
            network.forward_features(images(), notes)
        assert torch.equal(seen[0]["allowed"], seen[1]["allowed"]) != random


@torch.no_grad()
def test_distances():
    """0 where every token is a key but for its scale, 2 in a block where picks are orthogonal to their tokens."""
    pools = Pools(1, 8, (2, 2), (1, 1), (1, 1))
    x = torch.zeros(1, 3, 8)
    x[0, :, 0] = torch.tensor([1.0, 3.0, 0.2])
    for place, expected in ((0, 0.0), (1, 2.0)):
        for pool in (pools.of_class, pools.of_image):
            pool.keys.zero_()[..., place] = 0.5
        assert pools(0, x[:, :1], x[:, 1:])[1].item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("options", [dict(), dict(fourier=False, mask="logits"), dict(base="shallow", class_length=2)])
def test_all_groups_is_no_matching(options):
    options |= dict(class_topk=5, image_topk=6)
    network, roles = small(**options), small(**options, coordination="roles")
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("keys")}
    roles.load_state_dict(state)
    assert_agree("logits", network(images(50, 75)), roles(images(50, 75)))
    assert (small(**options, coordination="none")(images()) - roles(images())).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("base", ["deep", "shallow"])
def test_no_prompts_is_the_plain_transformer(base):
    network = small(class_pool=0, image_pool=0, base=base, registers=2)
    size = dict(dim=48, depth=3, heads=4, img_size=64, registers=2, num_classes=5)
    plain = backbones.systems()["ViT"](**size).double().eval()
    plain.load_state_dict(network.state_dict())
    assert_agree("logits", network(images(50, 75)), plain(images(50, 75)))
    alone = small(class_pool=0)
    assert not {name for name in alone.state_dict() if "of_class" in name}
    notes = {}
    alone.forward_features(images(), notes)
    assert not notes["allowed"][:, 0].any()


@torch.no_grad()
@pytest.mark.parametrize("base", ["deep", "shallow"])
def test_visual_prompts_by_definition(base):
    """VPT: prompts are tokens of a plain transformer, new ones in every block, or those of the first."""
    network = small(base=base, coordination="none", fourier=False, registers=1)
    plain = backbones.Isotropic(48, 3, dict(type="Attention", heads=4), class_position=True, img_size=64, registers=1)
    blocks = torch.nn.ModuleList(plain.blocks).double().eval()
    blocks.load_state_dict(network.blocks.state_dict())
    x = network.embed(images())
    tokens = network.joining(2)
    for index, block in enumerate(blocks):
        if base == "deep" or index == 0:
            prompts = network.pools.prompts(index).expand(2, -1, -1)
            tokens = torch.cat([tokens[:, :2], prompts], dim=1)
        x, tokens = block(x, tokens)
    notes = {}
    got = network.forward_features(images(), notes)
    rows = torch.cat([tokens[:, :2], x.flatten(2).mT], dim=1)
    assert_agree("tokens and pixels", got, network.norm(rows))


@torch.no_grad()
def test_fourier_transform_of_prompts():
    """Over channels, then over prompts, by definition: the real part of the sum of all waves."""
    network = small()
    z = network.pools.prompts(1)[0].double()
    waves = [
        torch.exp(-2j * torch.pi * torch.outer(n, n) / len(n))
        for n in (torch.arange(len(z)).double(), torch.arange(48).double())
    ]
    expected = (waves[0] @ z.to(torch.complex128) @ waves[1]).real
    assert_agree("prompts", network._prompts(1, z)[0], expected)


@torch.no_grad()
def test_options_of_values_and_images():
    network = small(value_affine=True, image_prompt=True)
    assert network.value_scale.shape == network.value_shift.shape == (1, 11, 48)
    fresh = TCPA(**SMALL, value_affine=True)
    assert fresh.value_scale.mean().item() == pytest.approx(1.0, abs=1e-2)
    assert 0 < fresh.value_shift.std() < 0.1
    assert [tuple(part.weight.shape) for part in network.image_prompt] == [(9, 3, 11, 11), (1,), (3, 9, 11, 11)]
    plain = small()
    plain.load_state_dict({n: v for n, v in network.state_dict().items() if n in plain.state_dict()})
    x = images()
    network.value_scale.fill_(1.0)
    network.value_shift.zero_()
    assert_agree("logits", network(x), plain(x + network.image_prompt(x)))
    network.value_scale.zero_()  # what is left of prompts is their place in the sum
    for pool in (network.pools.of_class, network.pools.of_image):
        assert pool.prompts.abs().max() > 0.1
    network.value_shift.fill_(0.3)
    assert (network(x) - plain(x + network.image_prompt(x))).abs().max() > 1e-4


def test_what_learns():
    """Prompts, keys and head; the rest has no gradient and stays in inference mode, dropout of blocks too."""
    model = ImageClassifier(dict(type="TCPA", **SMALL, num_classes=5, value_affine=True, image_prompt=True)).train()
    network, labels = model.backbone, torch.tensor([0, 3])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    losses = model(images().float(), labels, mode="loss")
    assert {"loss", "accuracy", "distance"} == losses.keys()
    assert 0 < losses["distance"] < 6 * 2
    losses["loss"].backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    learned = {name for name, p in network.named_parameters() if p.grad is not None}
    assert changed == learned == {n for n in before if n.startswith(("pools.", "value_", "image_prompt.", "head."))}
    assert not any(part.training for part in network.blocks)
    assert network.dropout.training
    assert network.blocks.training  # it checkpoints
    assert network.distance is None
    network.freeze(1)
    assert not any(p.requires_grad for n, p in network.named_parameters() if n.startswith("blocks."))
    free = TCPA(**SMALL, num_classes=5, frozen=False)
    assert all(p.requires_grad for p in free.parameters())


def test_keys_learn_from_distances_alone():
    network = small(distance_weight=0.5).train()
    logits, labels = network(images()), torch.tensor([0, 3])
    logits.square().sum().backward(retain_graph=True)
    keys = [network.pools.of_class.keys, network.pools.of_image.keys]
    assert all(key.grad is None for key in keys)
    assert all(pool.prompts.grad.abs().sum(-1).gt(0).all() for pool in (network.pools.of_class, network.pools.of_image))
    distance = network.distance
    said = network.feedback(logits, labels)
    assert said["loss"].item() == pytest.approx(0.5 * distance.item())
    said["loss"].backward()
    assert all(key.grad.abs().max() > 0 for key in keys)
    assert network.feedback(logits, labels) == {}
    assert not any(n.endswith("keys") for n, p in TCPA(**SMALL).named_parameters() if p.requires_grad)


def test_counts():
    """Of the published setting."""
    with torch.device("meta"):
        network, other = (backbones.create(f"tcpa_{name}_base", num_classes=0) for name in ("vfpt", "vpt"))
        parser = backbones.create("tcpa_vfpt_base_pool20", num_classes=10)
    assert network.counts() == other.counts() == dict(prompts=663_552, head=0, backbone=0, frozen=85_798_656)
    assert parser.counts() == dict(prompts=12 * 20 * 768 * 5 * 2, head=7_690, backbone=0, frozen=85_798_656)
    assert "663,552 of prompts, 85,798,656 of frozen" in str(network)


@torch.no_grad()
def test_a_plain_file_loads(tmp_path):
    """And the account says that the prompts are missing; maps hold pixels alone."""
    plain = fill(backbones.systems()["ViT"](dim=48, depth=3, heads=4, img_size=64, num_classes=5))
    network = TCPA(**SMALL, num_classes=5)
    account = backbones.load(network, plain.state_dict())
    assert set(account.missing) == {name for name in network.state_dict() if name.startswith("pools.")}
    assert not account.unexpected
    dense = TCPA(**SMALL, registers=2)
    assert [tuple(x.shape[1:]) for x in dense(torch.randn(1, 3, 50, 75))] == [(48, 4, 5)] * len(dense.out_channels)


def test_a_file_of_the_authors_loads_whole():
    network = small(value_affine=True, image_prompt=True)
    names = [(r"pools.of_", "Pool.Pool_"), ("Pool_class", "Pool_cls"), ("stem.", "backbone.patch_embed.proj.")]
    names += [("position.weight", "backbone.pos_embed"), ("cls_token.weight", "backbone.cls_token"), ("mixer", "attn")]
    names += [("head.fc", "backbone.head"), ("image_prompt", "Prompter.Prompter")]
    names += [("value_scale", "ADVP_w"), ("value_shift", "ADVP_b")]
    state = {}
    for name, value in network.state_dict().items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        state[f"backbone.{name}" if name.startswith(("blocks", "norm")) else name] = value
    again = TCPA(**SMALL, num_classes=5, value_affine=True, image_prompt=True).double()
    account = backbones.load(again, state)
    assert account.complete, str(account)
    assert len(account.loaded) == len(state)


def test_no_dense_attention():
    """Counted: products of attention are those of one fused attention, and of all tokens with the prompts."""
    network = small(class_pool=0, image_pool=4, patch_size=8).float()
    x = images(128, 128).float()
    with FlopCounterMode(display=False) as counter:
        network(x)
    plain = backbones.systems()["ViT"](dim=48, depth=3, heads=4, img_size=64, patch_size=8, num_classes=5).eval()
    with FlopCounterMode(display=False) as dense:
        plain(x)
    assert counter.get_total_flops() < 1.6 * dense.get_total_flops()
    biggest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal biggest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                biggest = max(biggest, out.numel())
            return out

    with torch.no_grad(), Watch():
        network(x)
    assert biggest < 2 * 4 * 257 * 257 / 2


@torch.no_grad()
def test_what_is_looked_at():
    network = small().float()
    (found,) = look(network, images(batch=1).float(), (0.5, 0.5))
    assert found.maps.shape == (4, 4, 4)
    assert (found.maps.sum((1, 2)) < 1).all()


def test_bad_options():
    for options, message in (
        (dict(base="wide"), "base='wide' must be one of 'deep', 'shallow'"),
        (dict(coordination="free"), "coordination='free' must be one of 'matched', 'roles', 'none'"),
        (dict(mask="rows"), "mask='rows' must be one of"),
        (dict(class_topk=6), "class_topk=6 must be at most class_pool=5, the groups that there are"),
        (dict(image_topk=7), "image_topk=7 must be at most image_pool=6"),
        (dict(image_topk=0), "image_topk must be whole, at least 1, got 0"),
        (dict(class_pool=-1), "class_pool must be whole, at least 0, got -1"),
        (dict(class_length=0), "class_length must be whole, at least 1"),
        (dict(dropout=1.0), r"dropout=1\.0 must be at least 0 and below 1"),
        (dict(distance_weight=-1.0), r"distance_weight=-1\.0 must be a number of at least 0"),
        (dict(class_pool=0, image_pool=0, value_affine=True), "leave none"),
        (dict(heads=7), "dim=48 is not divisible by heads=7"),
        (dict(plugins="SE"), "does not use the option 'plugins'"),
    ):
        with pytest.raises(ValueError, match=message):
            TCPA(**{**SMALL, **options})
