import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.deformable_attention import (
    deformable_attention,
    deformable_attention_backward_op,
    deformable_attention_op,
    deformable_attention_reference,
)
from attlas.kernels.dispatch import decompositions

# B, Q, H, D, P and sizes of the levels: no tile divides them; one pixel, one row, one channel; wider than a tile
CASES = [
    (2, 7, 3, 5, 2, [(4, 3), (2, 5), (1, 1)]),
    (1, 5, 2, 33, 3, [(1, 7), (3, 1)]),
    (2, 3, 1, 1, 1, [(2, 2)]),
    (1, 5, 1, 1030, 2, [(3, 3)]),
]


def by_grid_sample(value, sizes, locations, weights):
    """By definition: the maps of all heads as images, from which PyTorch samples what all places read."""
    wide = torch.promote_types(value.dtype, torch.float32)
    batch, _, heads, channels = value.shape
    total = 0
    for level, maps in enumerate(value.to(wide).split([high * low for high, low in sizes.tolist()], dim=1)):
        maps = maps.permute(0, 2, 3, 1).reshape(batch * heads, channels, *sizes[level].tolist())
        grid = 2 * locations[:, :, :, level].to(wide).transpose(1, 2).flatten(0, 1) - 1
        seen = F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)  # B H, D, Q, P
        factor = weights[:, :, :, level].to(wide).transpose(1, 2).flatten(0, 1).unsqueeze(1)
        total = total + (seen * factor).sum(-1)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2).to(value.dtype)


def make(case, device="cpu", dtype=torch.float64, places_dtype=None):
    batch, queries, heads, channels, places, sizes = case
    generator = torch.Generator().manual_seed(0)
    places_dtype = places_dtype or dtype
    shape = batch, queries, heads, len(sizes), places
    value = torch.randn(batch, sum(h * w for h, w in sizes), heads, channels, generator=generator, dtype=torch.float64)
    locations = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 1.8 - 0.4  # some outside
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [
        value.to(device, dtype).requires_grad_(),
        torch.tensor(sizes, device=device),
        locations.to(device, places_dtype).requires_grad_(),
        weights.to(device, places_dtype).requires_grad_(),
    ]


@pytest.mark.parametrize("case", CASES)
def test_equals_grid_sample(path, device, case):
    assert_gradients_agree(deformable_attention, by_grid_sample, make(case, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    """Half values with places in float32, as autocast gives them; and all in one dtype."""
    assert_gradients_agree(deformable_attention, by_grid_sample, make(CASES[0], device, dtype, torch.float32), dtype)
    inputs = make(CASES[0], device, dtype)
    assert_gradients_agree(deformable_attention, by_grid_sample, inputs, dtype)
    grads = torch.autograd.grad(deformable_attention(*inputs).sum(), [inputs[0], *inputs[2:]])
    assert [grad.dtype for grad in grads] == [dtype] * 3


def test_equals_mmcvs_python_form(path, device):
    mmcv = pytest.importorskip("mmcv.ops.multi_scale_deform_attn")
    inputs = make(CASES[0], device)
    assert_gradients_agree(deformable_attention, mmcv.multi_scale_deformable_attn_pytorch, inputs)


def test_queries_of_several_blocks(device):
    assert_gradients_agree(deformable_attention, by_grid_sample, make((2, 601, 2, 8, 2, [(9, 7), (3, 4)]), device))


def test_centers_of_pixels(path, device):
    """A place at the center of a pixel takes that pixel alone."""
    value, sizes, _, _ = make((2, 1, 2, 3, 1, [(3, 4)]), device)
    y, x = torch.meshgrid(torch.arange(0.5, 3).double() / 3, torch.arange(0.5, 4).double() / 4, indexing="ij")
    centers = torch.stack([x, y], -1).to(device).view(1, 12, 1, 1, 1, 2)
    weights = torch.ones(2, 12, 2, 1, 1, dtype=torch.float64, device=device)
    out = deformable_attention(value, sizes, centers.expand(2, -1, 2, -1, -1, -1), weights)
    assert_agree("out", out.detach(), value.detach().flatten(2))


def test_a_ramp_is_interpolated_exactly(path, device):
    """Inside, the value of a linear map is linear in the location, and its gradient the slope of the map."""
    high, wide = 5, 6
    y, x = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    value = (2 * x - 3 * y).double().to(device).view(1, -1, 1, 1)
    inner = torch.rand(1, 20, 1, 1, 1, 2, dtype=torch.float64, device=device) * 0.6 + 0.2
    inner.requires_grad_()
    weights = torch.ones(1, 20, 1, 1, 1, dtype=torch.float64, device=device)
    out = deformable_attention(value, torch.tensor([(high, wide)], device=device), inner, weights)
    at = inner.detach().view(20, 2) * torch.tensor([wide, high], device=device) - 0.5
    assert_agree("out", out.detach().view(20), 2 * at[:, 0] - 3 * at[:, 1])
    (grad,) = torch.autograd.grad(out.sum(), inner)
    slope = torch.tensor([2.0 * wide, -3.0 * high], dtype=torch.float64, device=device)
    assert_agree("gradient", grad.view(20, 2), slope.expand(20, 2))


@pytest.mark.parametrize("nowhere", [-5.0, 1e30, float("inf"), float("nan")])
def test_a_place_outside_adds_nothing(path, device, nowhere):
    """Whatever its weight; nor does it get a gradient."""
    value, sizes, locations, weights = (x.detach() for x in make((1, 2, 1, 3, 2, [(3, 4)]), device))
    locations[0, 0, 0, 0, 0] = nowhere
    weights[0, 0, 0, 0, 0] = torch.inf
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    out = deformable_attention(value, sizes, locations, weights)
    alone = deformable_attention(value, sizes, locations[:, :, :, :, 1:], weights[:, :, :, :, 1:])
    assert_agree("out", out[:, 0].detach(), alone[:, 0].detach())
    grad_value, grad_locations, grad_weights = torch.autograd.grad(out.sum(), leaves)
    assert torch.isfinite(grad_value).all()
    assert grad_locations[0, 0, 0, 0, 0].tolist() == [0, 0]
    assert grad_weights[0, 0, 0, 0, 0] == 0


def test_levels_of_no_pixel(path, device):
    inputs = make((1, 5, 2, 3, 2, [(2, 3), (0, 4), (3, 0), (1, 2)]), device)
    out = deformable_attention(*inputs)
    keep = [0, 3]
    value, sizes, locations, weights = (x.detach() for x in inputs)
    expected = by_grid_sample(value, sizes[keep], locations[:, :, :, keep], weights[:, :, :, keep])
    assert_agree("out", out.detach(), expected)
    _, grad_locations, grad_weights = torch.autograd.grad(out.sum(), [inputs[0], *inputs[2:]])
    assert grad_locations[:, :, :, 1:3].eq(0).all()
    assert grad_weights[:, :, :, 1:3].eq(0).all()


def test_deterministic_gradient(path, device):
    inputs = make((1, 60, 2, 5, 4, [(2, 2)]), device, torch.float32)

    def deterministic(*inputs):
        torch.use_deterministic_algorithms(True)
        return deformable_attention(*inputs)

    def random(*inputs):  # PyTorch's grid_sample has no deterministic gradient on a GPU
        torch.use_deterministic_algorithms(False)
        return by_grid_sample(*inputs)

    try:
        assert_gradients_agree(deterministic, random, inputs)
        torch.use_deterministic_algorithms(True)
        first, second = (torch.autograd.grad(deformable_attention(*inputs).sum(), inputs[0])[0] for _ in "12")
        assert torch.equal(first, second)
    finally:
        torch.use_deterministic_algorithms(False)


def test_strided(path, device):
    inputs = make(CASES[0], device)
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    strided = [x.requires_grad_() if x.is_floating_point() else x for x in strided]
    assert_gradients_agree(deformable_attention, by_grid_sample, strided)
    out, expected = deformable_attention(*inputs), by_grid_sample(*inputs)  # a gradient that is one number, expanded
    leaves = [inputs[0], *inputs[2:]]
    torch.testing.assert_close(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves))


@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, mode):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    value, sizes, locations, weights = make((1, 2, 2, 2, 2, [(3, 2), (2, 2)]), device)
    attend = lambda value, locations, weights: deformable_attention(value, sizes, locations, weights)  # noqa: E731
    assert torch.autograd.gradcheck(attend, (value, locations, weights))


def test_operators(path, device):
    inputs = make((1, 2, 2, 3, 1, [(2, 3), (1, 2)]), device)
    torch.library.opcheck(deformable_attention_op, inputs)
    arguments = [x.detach() for x in (deformable_attention(*inputs), *inputs)]
    torch.library.opcheck(deformable_attention_backward_op, arguments)


def test_compiles_to_one_graph(device):
    inputs = make(CASES[0], device)
    compiled = torch.compile(lambda *x: deformable_attention(*x) * 2, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda *x: by_grid_sample(*x) * 2, inputs)


def test_autocast(device):
    inputs = make(CASES[0], device, torch.bfloat16, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert_agree("out", deformable_attention(*inputs).detach(), by_grid_sample(*inputs).detach())


def test_exports_by_its_reference():
    """What an exporter takes in place of the operator has no loop over levels, whose sizes are values."""
    inputs = [x.detach() for x in make(CASES[0])]

    class Attention(torch.nn.Module):
        def forward(self, *inputs):
            return deformable_attention(*inputs)

    program = torch.export.export(Attention(), tuple(inputs)).run_decompositions(decompositions())
    assert "attlas" not in str(program.graph)
    assert_agree("out", program.module()(*inputs), deformable_attention_reference(*inputs))


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "channels", "places"])
def test_empty(path, device, empty):
    names = ("batch", "queries", "heads", "channels", "places")
    case = [0 if name == empty else number for name, number in zip(names, CASES[0])]
    inputs = make((*case, CASES[0][-1]), device)
    out = deformable_attention(*inputs)
    assert out.shape == (case[0], case[1], case[2] * case[3])
    assert out.eq(0).all()
    leaves = [inputs[0], *inputs[2:]]
    grads = torch.autograd.grad(out.sum(), leaves)
    assert all(grad.shape == leaf.shape and grad.eq(0).all() for grad, leaf in zip(grads, leaves))


def test_bad_arguments():
    value, sizes, locations, weights = make(CASES[0])
    for bad, message in [
        ((value[0], sizes, locations, weights), r"value must have shape \(B, S, H, D\).*got \(23, 3, 5\)"),
        ((value[:, :0], sizes, locations, weights), r"value must have .* S of at least 1, got \(2, 0, 3, 5\)"),
        ((value[:, 1:], sizes, locations, weights), r"spatial_shapes must have .* sum S = 22, got \[\[4, 3\]"),
        ((value, -sizes, locations, weights), r"spatial_shapes must have .* got \[\[-4, -3\]"),
        ((value, sizes.int(), locations, weights), r"spatial_shapes must be int64 of shape \(L, 2\), got torch\.int32"),
        ((value, sizes[0], locations, weights), r"spatial_shapes must be int64 of shape \(L, 2\), .* \(2,\)"),
        ((value, sizes, locations, weights[:, :, :2]), r"weights must have .* B, H, L = 2, 3, 3 of value and"),
        ((value, sizes[:2], locations, weights), r"weights must have .* B, H, L = 2, 3, 2 of value and"),
        ((value, sizes, locations[..., :1], weights), r"locations must have the shape of weights and .* of 2, \(2, 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            deformable_attention(*bad)
    with pytest.raises(TypeError, match=r"weights must be floating point \(float16 to float64\), got torch\.int64"):
        deformable_attention(value, sizes, locations, weights.long())
    with pytest.raises(TypeError, match=r"spatial_shapes must be a tensor, got \[\(4, 3\)"):
        deformable_attention(value, [(4, 3), (2, 5), (1, 1)], locations, weights)
