import pytest
import torch
from agreement import assert_agree
from levels import norms_reach
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones import rala
from attlas.backbones.rala import RALA, RAVLT, RALASoftmax


def mixer(cls=RALA, dim=16, heads=2, bare=False, dtype=torch.float64):
    """`bare`: without local position, with gates of one and without projection, the attention is all there is."""
    torch.manual_seed(0)
    built = cls(dim, heads).to(dtype).requires_grad_(False)
    if bare:
        for part in (built.lepe, built.proj):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        nn.init.eye_(built.proj.weight)
        built.qkvo.weight[-dim:] = 0
        built.qkvo.bias[-dim:] = 1
    return built


def maps(*size, dim=16):
    return torch.randn(2, dim, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def qkv(built, x):
    """(B, heads, N, d) each."""
    return [built._split(y).flatten(2, 3) for y in built.qkvo(x).chunk(4, 1)[:3]]


def test_importance_has_mean_one():
    """α = N p, and p is the softmax of how the mean query looks at the keys."""
    q, k = (nn.functional.elu(y) + 1 for y in qkv(mixer(), maps(5, 7))[:2])
    alpha = 35 * rala.importance(q, k)
    assert_agree("mean", alpha.mean(2), torch.ones(2, 2, 1, dtype=torch.float64))
    logits = torch.einsum("bhd,bhnd->bhn", q.mean(2), k) / 8**0.5
    assert_agree("alpha", alpha[..., 0], 35 * logits.softmax(-1))


def test_without_its_parts_it_is_plain_linear_attention(monkeypatch):
    built, x = mixer(bare=True), maps(4, 5)
    monkeypatch.setattr(rala, "importance", lambda q, k: torch.full_like(q[..., :1], 1 / q.shape[2]))
    monkeypatch.setattr(rala, "rotate", lambda x: x)
    q, k, v = qkv(built, x)
    q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
    weights = q @ k.mT
    weights = weights / weights.sum(-1, keepdim=True)
    seen = torch.stack([built.attention_maps(x, (i // 5, i % 5)).flatten(2) for i in range(20)], 2)
    assert (seen.sum(-1) - 1).abs().max() < 1e-5  # the denominator has 1e-6 more
    expected = (weights @ v).transpose(1, 2).flatten(2).mT.unflatten(-1, (4, 5))
    assert (built(x) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("cls", [RALA, RALASoftmax])
def test_sums_in_another_order(cls):
    """The output equals the values under the weights of all pairs, which are never built."""
    built, x = mixer(cls, bare=True), maps(5, 3)
    v = qkv(built, x)[2]
    seen = torch.stack([built.attention_maps(x, (i // 3, i % 3)).flatten(2) for i in range(15)], 2)
    assert_agree("output", built(x), (seen @ v).transpose(1, 2).flatten(2).mT.unflatten(-1, (5, 3)))


def test_rotation_knows_only_differences():
    """Products of turned channels depend on how far two pixels lie apart, and a turn keeps their length."""
    q, k = torch.randn(2, 1, 1, 1, 1, 8, dtype=torch.float64)
    turned_q, turned_k = rala.rotate(q.expand(1, 1, 6, 5, 8)), rala.rotate(k.expand(1, 1, 6, 5, 8))
    products = torch.einsum("...ijd,...kld->...ijkl", turned_q, turned_k)[0, 0]
    assert_agree("products", products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2])
    assert_agree("lengths", turned_q.norm(dim=-1), q.norm(dim=-1).expand(1, 1, 6, 5))
    assert torch.equal(turned_q[0, 0, 0, 0], q[0, 0, 0, 0])


def test_gate_and_local_position_raise_the_rank():
    """The weights of linear attention, N x N, have a rank of at most d; what makes the output of them has more."""
    built, x = mixer(), maps(8, 8)[:1]
    weights = torch.stack([built.attention_maps(x, (i // 8, i % 8))[0, 0].flatten() for i in range(64)])
    assert torch.linalg.matrix_rank(weights) <= 8
    gates = built.qkvo(x)[0, -16:-8].flatten(1)  # of the first head, (d, N)
    assert torch.linalg.matrix_rank((gates[..., None] * weights).transpose(0, 1).flatten(1)) > 32
    pixels = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8).expand(-1, 16, -1, -1)
    local = (built.lepe(pixels) - built.lepe.bias.view(-1, 1, 1))[:, 0].flatten(1).mT  # of the first channel, (N, N)
    assert torch.linalg.matrix_rank(weights + local) > 32


def test_cost():
    """Operations grow as the pixels for the linear attention, and as their square for its twin."""

    def operations(cls, height):
        built, x = mixer(cls, dtype=torch.float32), torch.randn(1, 16, height, 16)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            built.attend(*(built._split(y) for y in built.qkvo(x).chunk(4, 1)[:3]))
        outside = 2 * 4 * 16 * 16 * height * 16  # qkvo
        return counter.get_total_flops() - outside

    assert operations(RALA, 32) == 2 * operations(RALA, 16) > 0
    assert operations(RALASoftmax, 32) == 4 * operations(RALASoftmax, 16) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_pixels_in_half_precision(dtype):
    """Finite and right where N exceeds what float16 can hold, also when one pixel has all the weight."""
    built = mixer(dim=8, heads=1, dtype=dtype)
    x = torch.randn(1, 8, 256, 256, generator=torch.Generator().manual_seed(1))
    x[..., 100, 100] *= 50
    got = built(x.to(dtype)).float()
    expected = built.double()(x.to(dtype).double()).float()
    assert torch.isfinite(got).all()
    assert (got - expected).norm() < {torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype] * expected.norm()


def test_the_dense_form():
    """Norms are of the outputs alone, strides round up; the rotation counts pixels from the corner at any size."""
    network = RAVLT((16, 32, 32), (1, 1, 1), heads=(1, 2, 2), flags=("l", "l", "v"), layer_scale=(1, 1, None))
    network, x = network.double().eval(), torch.randn(1, 3, 75, 50, dtype=torch.float64)
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2]}
    assert [tuple(y.shape[-2:]) for y in network(x)] == [(19, 13), (10, 7), (5, 4)]
    assert {norm.eps for norm in network.norms.values()} == {1e-6}
    # what the authors' files have beside the weights, in either form
    state = network.state_dict() | {f"layers.{i}.RoPE.angle": torch.ones(8) for i in range(3)}
    account = backbones.load(network, state)
    assert account.complete, str(account)
    assert sorted(account.ignored) == [f"layers.{i}.RoPE.angle" for i in range(3)]


def test_parameters_of_the_dense_form():
    counts = {"ravlt_t": 13_347_328, "ravlt_s": 24_040_896, "ravlt_b": 46_691_296, "ravlt_l": 93_561_760}
    with torch.device("meta"):
        for name, count in counts.items():
            network = backbones.create(name, out_indices=(0, 1, 2, 3))
            assert sum(p.numel() for p in network.parameters()) == count


def test_flags():
    network = RAVLT((16, 32), (1, 3), heads=(1, 2), flags=("l", "lvl"), layer_scale=(1, None))
    kinds = [[type(block.mixer) for block in stage.blocks] for stage in network.stages]
    assert kinds == [[RALA], [RALA, RALASoftmax, RALA]]
    for flags in (("l", "lv"), ("l", "x"), ("", "v")):
        with pytest.raises(ValueError, match=r"flags=.*take 'l' or 'v'"):
            RAVLT((16, 32), (1, 3), heads=(1, 2), flags=flags, layer_scale=(1, 1))
    with pytest.raises(ValueError, match="heads must have one entry for each of the 2 stages"):
        RAVLT((16, 32), (1, 3))
    with pytest.raises(ValueError, match=r"RALA: dim / heads = 12 / 2 = 6 must be divisible by 4"):
        RALA(12, 2)
