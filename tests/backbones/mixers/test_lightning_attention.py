"""What characterizes the modules of lightning attention: order, a state that continues, and where a pixel looks."""

import pytest
import torch
from networks import fill

from attlas import checkpoint
from attlas.backbones.mixers.lightning_attention import (
    LRPE,
    LightningAttention,
    TNLAttention,
    TransNormerAttention,
    layer_decay,
    srms_norm,
)

MODULES = {
    "tnl": lambda **options: TNLAttention(24, 3, **options),
    "transnormer": lambda **options: TransNormerAttention(24, 3, **options),
    "lrpe": lambda **options: TransNormerAttention(24, 3, lrpe=True, **options),
}


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("form", MODULES)
def test_a_state_continues_the_sequence(form):
    """Of blocks, of the recurrent step without gradients, and of both in turn."""
    module, x = fill(MODULES[form]()).double(), normal(2, 75, 24)
    expected, last = module(x)
    rows, state = [], None
    for part in (slice(0, 70), slice(70, 71), slice(71, 75)):
        with torch.set_grad_enabled(part.start == 0):
            y, state = module(x[:, part], state, part.start)
        rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), expected)
    torch.testing.assert_close(state, last)
    assert state.shape == (2, 3, 16 if form == "lrpe" else 8, 8)


@pytest.mark.parametrize("form", MODULES)
def test_causality(form):
    module, x = fill(MODULES[form]()).double(), normal(1, 70, 24)
    changed = x.clone()
    changed[:, 40] += 1
    difference = (module(changed)[0] - module(x)[0]).abs().sum(-1)[0]
    assert not difference[:40].any()
    assert (difference[40:45] > 0).all()


@pytest.mark.parametrize("form", ["tnl", "transnormer"])
def test_where_a_pixel_looks(form):
    """One way: to the pixels before it in the order of reading. Both ways: to all, and a turned map gives turned."""
    x = normal(1, 24, 4, 5)
    changed = x.clone()
    changed[:, :, 2, 1] += 1
    for ways in (1, 2):
        mixer = fill(LightningAttention(24, 3, form, ways)).double()
        seen = ((mixer(changed) - mixer(x)).abs().sum(1)[0] > 1e-12).flatten()
        assert seen.tolist() == [ways == 2 or place >= 2 * 5 + 1 for place in range(20)]
        turned = mixer(x.flip(2, 3)).flip(2, 3)
        assert torch.allclose(turned, mixer(x)) == (ways == 2)


def test_distances_alone_count_for_lrpe():
    turn = LRPE(2, 4).double()
    q, k = normal(1, 2, 5, 4), normal(1, 2, 5, 4).flip(2)
    near, far = (q @ k.mT for q, k in (turn(q, k, start) for start in (0, 900)))
    torch.testing.assert_close(near, far)
    assert (near - q @ k.mT).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_at_64k_tokens(dtype):
    """Neighbors keep their own angles, and slopes their digits in a network of half precision."""
    turn, x = LRPE(2, 8), normal(1, 2, 40, 8).float()
    (got, _), (expected, _) = turn(x.to(dtype), x.to(dtype), 65_500), turn(x, x, 65_500)
    error = (got.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.01
    module = TNLAttention(16, 2, decay=layer_decay(1, 24))
    slopes = list(module.slopes)
    out, state = module.to(dtype)(normal(1, 40, 16).to(dtype))
    assert (out.dtype, state.dtype, module.slopes) == (dtype, torch.float32, slopes)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("form", [TNLAttention, TransNormerAttention])
def test_sums_beyond_float16_until_the_norm(form, autocast):
    """As 64k tokens without decay have them."""
    module = fill(form(16, 2, decay=0.0))
    x = 40 + normal(1, 80, 16).float()
    expected, after = module(x)
    assert after.abs().max() > 65504
    if autocast:
        with torch.autocast("cpu", torch.float16):
            out, state = module(x)
    else:
        out, state = module.half()(x.half())
    assert (out.dtype, state.dtype) == (torch.float16, torch.float32)
    assert (out.float() - expected).norm() < 0.02 * expected.norm()


def test_srms_norm():
    x = normal(3, 8)
    torch.testing.assert_close(srms_norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    assert srms_norm(torch.full((4,), 300.0, dtype=torch.float16)).tolist() == [1.0] * 4  # whose squares overflow


def test_the_authors_module_loads_into_the_mixer():
    module, mixer = fill(TNLAttention(24, 3, both_ways=True)), LightningAttention(24, 3)
    assert checkpoint.load(mixer, module.state_dict()).complete
    x = normal(1, 24, 3, 4).float()
    torch.testing.assert_close(mixer(x).flatten(2).mT, module(x.flatten(2).mT)[0])


def test_decay_of_layers():
    assert [layer_decay(i, 3) for i in range(3)] == pytest.approx([1.00001, 0.50001, 0.00001])
    assert layer_decay(0, 1) == pytest.approx(1.00001)


def test_bad_arguments():
    for options, message in [
        (dict(heads=5), "LightningAttention: dim=24 is not divisible by heads=5"),
        (dict(form="tln"), r"form is 'tln'; it may be 'tnl', 'transnormer'\. Did you mean 'tnl'"),
        (dict(ways=3), "ways=3 must be 1 or 2"),
        (dict(ways=True), "ways=True must be 1 or 2"),
        (dict(decay=-1.0), "decay=-1.0 must be at least 0 and finite"),
        (dict(lrpe=True), "lrpe=True belongs to form='transnormer', not 'tnl'"),
    ]:
        with pytest.raises(ValueError, match=message):
            LightningAttention(24, **options)
    module, x = TNLAttention(24, 3), torch.zeros(1, 2, 24)
    with pytest.raises(ValueError, match=r"state must have shape \(B, heads, d, e\), here \(1, 3, 8, 8\)"):
        module(x, torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="state must be None with both_ways=True"):
        TNLAttention(24, 3, both_ways=True)(x, torch.zeros(1, 3, 8, 8))
