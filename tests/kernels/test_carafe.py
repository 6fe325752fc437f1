import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels import carafe
from attlas.kernels.carafe import carafe_gradients


def by_unfold(features, masks, k):
    """By definition: the k² copies of the map, enlarged by repetition, times the masks."""
    (batch, channels, height, width), scale = features.shape, masks.shape[-1] // features.shape[-1]
    wide = torch.promote_types(torch.promote_types(features.dtype, torch.float32), masks.dtype)
    copies = F.unfold(features.to(wide), k, padding=k // 2).view(batch, -1, height, width)
    copies = copies.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    copies = copies.view(batch, channels, k * k, *masks.shape[2:])
    masks = masks.to(wide).unflatten(1, (-1, k * k))
    masks = masks.repeat_interleave(channels // masks.shape[1], 1)
    return (copies * masks).sum(2).to(features.dtype)


def tensors(shape, groups, k, scale, dtype=torch.float64, device="cpu"):
    batch, _, height, width = shape
    features = torch.randn(shape, dtype=torch.float64)
    masks = torch.randn(batch, groups * k * k, scale * height, scale * width, dtype=torch.float64)
    return [x.to(device, dtype).requires_grad_() for x in (features, masks)]


CASES = [((2, 6, 5, 4), 2, 3, 2), ((1, 4, 3, 7), 1, 5, 3), ((1, 3, 4, 1), 3, 1, 2), ((2, 2, 1, 3), 1, 3, 1)]


@pytest.mark.parametrize(("shape", "groups", "k", "scale"), CASES)
def test_equals_unfold(path, device, shape, groups, k, scale):
    inputs = tensors(shape, groups, k, scale, device=device)
    assert_gradients_agree(lambda *x: carafe(*x, k), lambda *x: by_unfold(*x, k), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    inputs = tensors((1, 6, 3, 5), 2, 3, 2, dtype, device)
    assert_gradients_agree(lambda *x: carafe(*x, 3), lambda *x: by_unfold(*x, 3), inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_without_autograd(path, device, dtype):
    features, masks = tensors((2, 6, 5, 4), 2, 3, 2, dtype, device)
    grad = torch.randn(2, 6, 10, 8, device=device, dtype=dtype)
    got = carafe_gradients(grad, features.detach(), masks.detach(), 3)
    expected = torch.autograd.grad(by_unfold(features, masks, 3), [features, masks], grad)
    for name, x, y in zip(("features", "masks"), got, expected):
        assert_agree(name, x, y)


def test_the_center_tap_repeats_pixels(path, device):
    features, masks = tensors((1, 4, 3, 5), 2, 3, 2, device=device)
    center = torch.zeros_like(masks)
    center[:, 4::9] = 1
    assert torch.equal(carafe(features, center, 3), F.interpolate(features, scale_factor=2))


def test_masks_of_bilinear_interpolation(path, device):
    """Two new pixels on each old one, a quarter to its left and to its right."""
    features = torch.randn(1, 2, 4, 6, dtype=torch.float64, device=device)
    along = torch.tensor([[0.25, 0.75, 0], [0, 0.75, 0.25]], dtype=torch.float64, device=device)
    masks = torch.einsum("yi,xj->ijyx", along, along).reshape(1, 9, 2, 2).repeat(1, 1, 4, 6)
    inner = (..., slice(2, -2), slice(2, -2))  # bilinear interpolation repeats the border, where CARAFE reads zero
    expected = F.interpolate(features, scale_factor=2, mode="bilinear")
    assert_agree("out", carafe(features, masks, 3)[inner], expected[inner])


@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, mode):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    assert torch.autograd.gradcheck(lambda *x: carafe(*x, 3), tensors((1, 4, 3, 2), 2, 3, 2, device=device))


def test_one_graph(device):
    inputs = tensors((1, 4, 3, 2), 2, 3, 2, device=device)
    compiled = torch.compile(lambda *x: carafe(*x, 3) * 2, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda *x: by_unfold(*x, 3) * 2, inputs)


def test_strided(path, device):
    inputs = [
        x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        for x in tensors((2, 6, 5, 4), 2, 3, 2, device=device)
    ]
    assert_gradients_agree(lambda *x: carafe(*x, 3), lambda *x: by_unfold(*x, 3), inputs)


def test_empty(path, device):
    inputs = tensors((0, 4, 3, 5), 2, 3, 2, device=device)
    out = carafe(*inputs, 3)
    assert out.shape == (0, 4, 6, 10)
    assert [g.shape for g in torch.autograd.grad(out.sum(), inputs)] == [x.shape for x in inputs]


def test_bad_arguments():
    features, masks = tensors((2, 4, 3, 5), 2, 3, 2)
    for bad, message in [
        ((features[0], masks, 3), r"features must have shape \(B, C, H, W\) .* got \(4, 3, 5\)"),
        ((features, masks, 2), r"kernel_size must be odd, got 2"),
        ((features, masks[..., 1:], 3), r"masks must have shape .* H, W = 3, 5 and a whole s, got \(2, 18, 6, 9\)"),
        ((features, masks[..., :3], 3), r"masks must have shape .* got \(2, 18, 6, 3\)"),
        ((features, masks, 5), r"masks must have G 5² channels, where G divides the 4 channels of features, got 18"),
        ((features[:, :3], masks, 3), r"where G divides the 3 channels of features, got 18"),
    ]:
        with pytest.raises(ValueError, match=message):
            carafe(*bad)
    with pytest.raises(TypeError, match=r"masks must be floating point \(float16 to float64\), got torch\.int64"):
        carafe(features, masks.long(), 3)
    with pytest.raises(TypeError, match=r"kernel_size must be an integer, got 3\.0"):
        carafe(features, masks, 3.0)
