"""The residual local cross-attention, and the neck: the definition, both modes of levels, FPN at the start."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.necks import FPN
from mmengine.registry import DefaultScope

from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.data import fill_classes
from attlas.dense.layers import LocalResample, VisionRememberNeck
from attlas.registry import MODELS


def awake(module):
    """The module with an output projection that is not zero."""
    for part in module.modules():
        if isinstance(part, LocalResample):
            torch.nn.init.normal_(part.out_proj.weight, std=0.1)
            torch.nn.init.normal_(part.out_proj.bias, std=0.1)
            torch.nn.init.normal_(part.norm_kv.weight)
            torch.nn.init.normal_(part.norm_kv.bias)
    return module


def maps(sizes=(4, 6), batch=2, grid=(6, 7)):
    return [torch.randn(batch, *grid, channels) for channels in sizes]


def test_one_token_is_global_cross_attention():
    module, features, tokens = awake(LocalResample(8, (4, 6), 2)), maps(), torch.randn(2, 1, 1, 8)
    fine = module.norm_kv(torch.cat(features, -1)).flatten(1, 2)
    q, k, v = module.q_proj(module.norm_q(tokens)).flatten(1, 2), module.k_proj(fine), module.v_proj(fine)
    heads = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v))
    full = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    expected = tokens + module.out_proj(full).view_as(tokens)
    torch.testing.assert_close(module.resample(tokens, *module.read(features)), expected, rtol=1e-5, atol=1e-5)


def test_one_cell_is_its_own_value():
    module, features, tokens = awake(LocalResample(8, (4, 6), 2, inner=12)), maps(), torch.randn(2, 6, 7, 8)
    value = module.v_proj(module.norm_kv(torch.cat(features, -1)))
    found = module.resample(tokens, *module.read(features))
    torch.testing.assert_close(found, tokens + module.out_proj(value), rtol=1e-5, atol=1e-5)


def test_levels_one_by_one_are_the_levels_side_by_side():
    """Of the same weights, with gradients; levels of unlike size and mean."""
    both = [awake(LocalResample(8, (4, 6), 2, halo=1, levels_mode=mode)).double() for mode in ("concat", "sum")]
    both[1].load_state_dict(both[0].state_dict())
    features = [5 * x.double() + 3 for x in maps()[:1]] + [x.double() for x in maps()[1:]]
    tokens, results = torch.randn(2, 3, 2, 8, dtype=torch.float64), []
    for module in both:
        inputs = [x.clone().requires_grad_() for x in (tokens, *features)]
        out = module.resample(inputs[0], *module.read(inputs[1:]))
        grads = torch.autograd.grad(out.square().sum(), [*inputs, *module.parameters()])
        results.append([out, *grads])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["concat", "sum"])
def test_autocast(mode):
    module, features, tokens = awake(LocalResample(8, (4, 6), 2, levels_mode=mode)), maps(), torch.randn(2, 3, 2, 8)
    expected = module.resample(tokens, *module.read(features))
    with torch.autocast("cpu", torch.bfloat16):
        found = module.resample(tokens, *module.read(features))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_bad_arguments():
    with pytest.raises(ValueError, match="heads=3 must divide inner=8"):
        LocalResample(8, (4,), 3)
    with pytest.raises(ValueError, match="with one level at least"):
        LocalResample(8, (), 2)
    with pytest.raises(ValueError, match="halo=-1 at least 0"):
        LocalResample(8, (4,), 2, halo=-1)
    with pytest.raises(ValueError, match=r"levels_mode must be one of \('concat', 'sum'\), got 'mean'"):
        LocalResample(8, (4,), 2, levels_mode="mean")
    module = LocalResample(8, (4, 6), 2)
    with pytest.raises(ValueError, match=r"maps \(B, H, W, C\) with C = \(4, 6\), got \[\(2, 6, 7, 4\)\]"):
        module.read(maps((4,)))
    with pytest.raises(ValueError, match="features must be on one grid"):
        module.read([*maps((4,)), *maps((6,), grid=(6, 6))])


# --- the neck --------------------------------------------------------------------------------------------------------

CHANNELS = [8, 16, 24]


def pyramid(height=23, width=37):
    return [torch.randn(2, c, -(-height // 2**i), -(-width // 2**i)) for i, c in enumerate(CHANNELS)]


def test_the_neck_begins_as_mmdets_fpn():
    sizes = dict(in_channels=CHANNELS, out_channels=8, num_outs=4, head_dim=8)
    neck = MODELS.build(dict(type="attlas.VisionRememberNeck", **sizes))
    fpn = FPN(CHANNELS, 8, 4)
    fpn.load_state_dict({n: x for n, x in neck.state_dict().items() if not n.startswith("remember.")})
    inputs = pyramid()
    for one, other in zip(neck(inputs), fpn(inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("levels", [1, 2])
def test_a_map_reads_its_region_of_finer_maps(levels):
    """A pixel of the finest map is seen by the coarsest map where two levels are read, at one pixel of 16 x 16."""
    neck = awake(VisionRememberNeck(CHANNELS, 8, 3, levels, 8)).eval()
    read = {}
    for i, module in enumerate(neck.remember, 1):
        own = module.resample
        module.resample = lambda *x, i=i, own=own: read.setdefault(i, []).append(own(*x)) or read[i][-1]
    inputs = pyramid(16, 32)
    neck(inputs)
    inputs[0][:, :, 9, 18] += 1
    neck(inputs)
    changed = {i: (one != other).any(-1)[0].nonzero().tolist() for i, (one, other) in read.items()}
    assert changed == {1: [[4, 9]], 2: [[2, 4]] if levels == 2 else []}


def test_every_parameter_of_the_neck_learns():
    neck = awake(VisionRememberNeck(CHANNELS, 8, 4, head_dim=8, halo=1))
    sum(x.square().sum() for x in neck(pyramid())).backward()
    unused = [n for n, p in neck.named_parameters() if p.grad is None]
    assert unused == []


def test_bad_arguments_of_the_neck():
    with pytest.raises(ValueError, match=r"in_channels=\[8\] must be of two maps"):
        VisionRememberNeck([8], 8, 1)
    with pytest.raises(ValueError, match=r"head_dim=32 must divide the channels \[16, 24\] of the coarser maps"):
        VisionRememberNeck(CHANNELS, 8, 3)
    with pytest.raises(ValueError, match=r"the maps have \[8, 16\] channels, and in_channels=\[8, 16, 24\]"):
        VisionRememberNeck(CHANNELS, 8, 3, head_dim=8)(pyramid()[:2])


@pytest.mark.parametrize("task", ["retinanet", "semantic_fpn"])
def test_configs(task):
    """Both build, give the maps that their heads expect, and every module of the neck learns."""
    path = Path(__file__).parents[3] / f"configs/vision_remember/vision_remember_{task}_rooms.py"
    config = load_config(path, dict(pretrained="None"))
    fill_channels(config.model)
    fill_classes(config.model, lambda: 3)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = awake(MODELS.build(config.model)).train()
    found = model.extract_feat(torch.randn(1, 3, 96, 128))
    first = dict(retinanet=(64, 12, 16), semantic_fpn=(64, 24, 32))[task]
    assert [tuple(x.shape[1:]) for x in found] == [(64, -(-first[1] // 2**i), -(-first[2] // 2**i)) for i in range(4)]
    sum(x.square().sum() for x in found).backward()
    assert len(model.neck.remember) == len(config.model.neck.in_channels) - 1
    assert all(module.q_proj.weight.grad.any() for module in model.neck.remember)
