"""Layer-wise decay, LAMB, Kar3, adaptive clipping and repeated augmentation, each against its definition."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from attlas import optim
from attlas.optim import LAMB, WITH_PREVIOUS, AdaptiveClipHook, Kar3, RepeatedAugmentSampler, layer_groups


class Stages(nn.Module):
    """Stem, two stages of two blocks with a transition, a norm, and a head that no group claims."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.stages = nn.ModuleList(
            nn.ModuleDict(dict(downsample=nn.Linear(4, 4), blocks=nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])))
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(4)
        self.table = nn.Parameter(torch.zeros(2, 2))
        self.head = nn.Linear(4, 2)

    def group_matcher(self, coarse=False):
        if coarse:
            return dict(stem=r"^(stem|table)", blocks=[(r"^stages\.(\d+)", None), (r"^(norm)", (WITH_PREVIOUS,))])
        return dict(
            stem=r"^(stem|table)",
            blocks=[
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (WITH_PREVIOUS,)),
            ],
        )

    def no_weight_decay(self):
        return {"table"}


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.neck = backbone, nn.Linear(4, 4)


def build(model, **paramwise):
    config = dict(
        constructor="LayerDecayConstructor",
        paramwise_cfg=paramwise or None,
        optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.5),
    )
    wrapper = build_optim_wrapper(model, config)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name_of[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups  # without the one that MMEngine logs
        for parameter in group["params"]
    }


def test_depths_of_a_hierarchy():
    model = Stages()
    found = layer_groups((name for name, _ in model.named_parameters()), model.group_matcher())
    assert {name.removesuffix(".weight"): depth for name, depth in found.items() if not name.endswith("bias")} == {
        "stem": 0,
        "table": 0,
        "stages.0.downsample": 1,  # with the block that follows it
        "stages.0.blocks.0": 1,
        "stages.0.blocks.1": 2,
        "stages.1.downsample": 3,
        "stages.1.blocks.0": 3,
        "stages.1.blocks.1": 4,
        "norm": 4,  # with what is before it
        "head": None,
    }


def test_numbers_are_sorted_as_numbers():
    names = [f"blocks.{i}.weight" for i in (10, 2, 1)]
    assert list(layer_groups(names, dict(blocks=r"^blocks\.(\d+)")).values()) == [2, 1, 0]


@pytest.mark.parametrize("inside", [False, True])
def test_rates_fall_from_the_head_to_the_stem(inside):
    model = Detector(Stages()) if inside else Stages()
    prefix = "backbone." if inside else ""
    found = build(model, layer_decay=0.5)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    rates = {name.removeprefix(prefix): rate for name, (rate, _) in found.items()}
    assert rates["head.weight"] == 1
    assert rates["norm.weight"] == rates["stages.1.blocks.1.weight"] == 0.5
    assert rates["stages.1.blocks.0.bias"] == rates["stages.1.downsample.bias"] == 0.25
    assert rates["stages.0.blocks.1.weight"] == 0.125
    assert rates["stem.weight"] == rates["table"] == 0.5**5
    if inside:
        assert rates["neck.weight"] == 1
    coarse = build(model, layer_decay=0.5, coarse=True)
    assert coarse[f"{prefix}stages.1.blocks.0.weight"][0] == coarse[f"{prefix}norm.weight"][0] == 0.5
    assert coarse[f"{prefix}stem.weight"][0] == 0.125


def test_the_last_layer_has_the_full_rate_where_nothing_is_behind_it():
    model = Stages()
    del model.head
    assert build(model, layer_decay=0.5)["norm.weight"][0] == 1
    assert build(model, layer_decay=0.5)["stem.weight"][0] == 0.5**4


def test_frozen_layers_are_left_out_and_still_count():
    model = Stages()
    wanted = build(model, layer_decay=0.5)
    model.stem.requires_grad_(False)
    model.stages[1].requires_grad_(False)
    found = build(model, layer_decay=0.5)
    assert found == {name: wanted[name] for name, p in model.named_parameters() if p.requires_grad}


def test_what_decays():
    model = Detector(Stages())
    decayed = {name for name, (_, decay) in build(model).items() if decay}
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    assert decayed == matrices - {"backbone.table"}
    assert set(build(model).values()) == {(1.0, 0.5), (1.0, 0.0)}
    found = build(model, norm_decay=0.5, bias_decay=0.1, no_decay=[r"stages\.0"])
    assert found["backbone.norm.weight"][1] == 0.25
    assert found["backbone.norm.bias"][1] == found["neck.bias"][1] == 0.05
    assert found["backbone.stages.0.blocks.0.weight"][1] == 0


def test_the_table_of_groups_is_logged():
    log = []
    MMLogger.get_current_instance()
    original, optim.print_log = optim.print_log, lambda text, **_: log.append(text)
    try:
        build(Stages(), layer_decay=0.5)
    finally:
        optim.print_log = original
    lines = log[0].splitlines()
    assert lines[0] == "12 groups of parameters, 5 layers with layer_decay"
    assert lines[2].split() == ["0.0312", "0", "2", "8", "table"]  # the bias of the stem, and what may not decay
    assert len(lines) == 14


def test_layer_decay_says_what_does_not_fit():
    for options, message in (
        (dict(layer_decay=1.5), r"layer_decay must lie in \(0, 1\].*1.5"),
        (dict(norm_decay_mult=0.0), "key of paramwise_cfg is 'norm_decay_mult'.*Did you mean 'norm_decay'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(Stages(), **options)
    with pytest.raises(ValueError, match="no part of Linear has a group_matcher"):
        build(nn.Linear(2, 2), layer_decay=0.9)
    model = Stages()
    model.group_matcher = lambda coarse: dict(stem=r"^stm", blocks=r"^block\.(\d+)")
    with pytest.raises(ValueError, match=r"matches none of its parameters, such as \['table'"):
        build(model, layer_decay=0.9)


# --- LAMB


def test_lamb_by_definition():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(*shape, generator=generator).double() for shape in ((4, 3), (5,), (2, 2))]
    start[2].zero_()  # has no length to keep
    weights = [nn.Parameter(w.clone()) for w in start]
    groups = [dict(params=weights[::2]), dict(params=weights[1:2], weight_decay=0.0, lr=0.02)]
    optimizer = LAMB(groups, lr=0.1, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.3)
    expected = [w.clone() for w in start]
    m, v = ([torch.zeros_like(w) for w in start] for _ in range(2))
    for t in range(1, 5):
        for i, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=generator).double()
            m[i] = 0.8 * m[i] + 0.2 * weight.grad
            v[i] = 0.9 * v[i] + 0.1 * weight.grad**2
            decay, lr = (0.0, 0.02) if i == 1 else (0.3, 0.1)
            update = m[i] / (1 - 0.8**t) / ((v[i] / (1 - 0.9**t)).sqrt() + 1e-4) + decay * expected[i]
            ratio = expected[i].norm() / update.norm() if decay and expected[i].norm() > 0 else 1.0
            expected[i] = expected[i] - lr * ratio * update
        optimizer.step()
        torch.testing.assert_close([w.data for w in weights], expected)


def test_lamb_steps_of_a_late_parameter_and_resumption():
    def gradients(weights, step):
        for i, weight in enumerate(weights):
            weight.grad = None if (i, step) == (1, 0) else torch.full_like(weight, 1.0 + i + step)

    def run(resume):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(3, 2)) for _ in range(2)]
        optimizer = LAMB(weights)
        for step in range(4):
            if resume and step == 2:
                state = optimizer.state_dict()
                optimizer = LAMB(weights)
                optimizer.load_state_dict(state)
            gradients(weights, step)
            optimizer.step()
        assert [optimizer.state[weight]["step"] for weight in weights] == [4, 3]
        return torch.stack([weight.data for weight in weights])

    assert torch.equal(run(False), run(True))
    with pytest.raises(ValueError, match="betas"):
        LAMB([nn.Parameter(torch.zeros(1))], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="lr=-1"):
        LAMB([nn.Parameter(torch.zeros(1))], lr=-1)


def test_lamb_minimizes():
    torch.manual_seed(0)
    target, weight = torch.randn(8, 8), nn.Parameter(torch.randn(8, 8))
    optimizer = LAMB([weight], lr=0.02, weight_decay=1e-4)
    for _ in range(300):
        loss = optimizer.step(lambda: ((weight - target) ** 2).sum())
        optimizer.zero_grad()
        ((weight - target) ** 2).sum().backward()
    assert loss < 0.1


# --- Kar3


def test_kar3_by_definition():
    """Of each step's gradient and of two averages of those before it, the signs alone; also after a resumption."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(*shape, generator=generator) for shape in ((4, 3), (5,))]
    weights = [nn.Parameter(w.clone()) for w in start]
    groups = [dict(params=weights[:1]), dict(params=weights[1:], lr=0.5)]
    optimizer = Kar3(groups, lr=0.25, betas=(0.5, 0.9))
    first, second = ([torch.zeros_like(w) for w in start] for _ in range(2))
    for step in range(5):
        if step == 2:
            state = optimizer.state_dict()
            optimizer = Kar3(groups, lr=0.25, betas=(0.5, 0.9))
            optimizer.load_state_dict(state)
        for i, (weight, lr) in enumerate(zip(weights, (0.25, 0.5))):
            weight.grad = torch.randn(weight.shape, generator=generator)
            start[i] = start[i] - lr * (weight.grad.sign() + first[i].sign() + second[i].sign())
            first[i] = 0.5 * first[i] + 0.5 * weight.grad
            second[i] = 0.9 * second[i] + 0.1 * weight.grad
        assert optimizer.step(lambda: 7.0) == 7.0
        torch.testing.assert_close([w.data for w in weights], start)


@pytest.mark.parametrize(
    "options",
    [dict(lr=value) for value in (-1, float("nan"), float("inf"), "1")]
    + [dict(betas=value) for value in ((0.9, 1.0), (0.9,), 0.5, ("a", 0.5), (float("nan"), 0.5))],
)
def test_kar3_refuses(options):
    with pytest.raises(ValueError, match=f"Kar3: {next(iter(options))}="):
        Kar3([nn.Parameter(torch.zeros(1))], **options)


# --- adaptive clipping


def clipped(model, gradients, scaler=None, **options):
    """What SGD with learning rate 1 takes off the weights under the hook."""
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    hook, runner = AdaptiveClipHook(**options), SimpleNamespace(model=model, optim_wrapper=wrapper)
    hook.before_train(runner)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = sum((parameter * gradients[name]).sum() for name, parameter in model.named_parameters())
    if scaler:
        scaler.scale(loss).backward()
        scaler.step(wrapper.optimizer)
    else:
        wrapper.update_params(loss)
    hook.after_train(runner)
    assert not wrapper.optimizer._optimizer_step_pre_hooks
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_is_unit_by_unit(scaled):
    model = nn.Sequential()
    model.conv, model.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
    with torch.no_grad():
        model.conv.weight[0] = 0  # as long as eps
    gradients = {name: torch.randn_like(p) * 0.05 for name, p in model.named_parameters()}
    gradients["conv.weight"][1] *= 1e-3  # short enough
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if scaled else None
    found = clipped(model, gradients, scaler, clip_factor=0.1, eps=0.01)
    for unit in range(4):
        weight, gradient = model.conv.weight[unit].detach() + found["conv.weight"][unit], gradients["conv.weight"][unit]
        limit = 0.1 * max(weight.norm().item(), 0.01)
        wanted = gradient * min(1.0, limit / gradient.norm().item())
        torch.testing.assert_close(found["conv.weight"][unit], wanted, rtol=1e-3, atol=1e-6)
        assert (wanted.norm() < 0.99 * gradient.norm()) == (unit != 1)
    bias = model.conv.bias.detach() + found["conv.bias"]
    limit = 0.1 * bias.norm() / gradients["conv.bias"].norm()
    torch.testing.assert_close(found["conv.bias"], gradients["conv.bias"] * limit.clamp(max=1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found["head.weight"], gradients["head.weight"], rtol=1e-4, atol=1e-6)  # excluded


def test_clipping_leaves_zero_gradients_and_says_what_does_not_fit():
    model = nn.Linear(2, 2)
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert all((step == 0).all() for step in clipped(model, zeros, exclude=[]).values())
    with pytest.raises(ValueError, match=r"head.*found in no parameter of Linear; the last ones are weight, bias"):
        clipped(model, zeros)
    with pytest.raises(ValueError, match="clip_factor=0"):
        AdaptiveClipHook(clip_factor=0)


# --- repeated augmentation


@pytest.mark.parametrize(("world", "repeats"), [(1, 3), (3, 3), (4, 3), (2, 1)])
def test_repeats_are_other_draws_in_other_processes(monkeypatch, world, repeats):
    size, drawn = 23, set()
    for epoch in range(3):
        shares = []
        for rank in range(world):
            monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, world))
            sampler = RepeatedAugmentSampler(range(size), repeats, seed=5)
            sampler.set_epoch(epoch)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler) == -(-size // world)
        draws = [index for share in shares for index in share]
        items = [index % size for index in draws]
        if repeats > 1:
            assert len(set(draws)) == len(draws)  # every repeat is an augmentation of its own
            assert not drawn & set(draws)  # in every epoch
        drawn |= set(draws)
        counts = sorted(items.count(item) for item in set(items))
        assert counts[1:] == [repeats] * (len(counts) - 1) or repeats == 1
        if world >= repeats > 1:
            for share in shares:
                assert len({index % size for index in share}) == len(share)  # another image in each process


def test_repeats_in_order_without_shuffle():
    sampler = RepeatedAugmentSampler(range(4), repeats=2, shuffle=False, seed=0)
    assert list(sampler) == [0, 4, 1, 5]
    sampler.set_epoch(1)
    assert list(sampler) == [8, 12, 9, 13]
    with pytest.raises(ValueError, match="repeats is 0"):
        RepeatedAugmentSampler(range(4), repeats=0)
