import math

import pytest
import torch
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.roi_pool import roi_pool, roi_pool_backward_op, roi_pool_op

# outside on one or all sides, of one pixel, of no width, turned around, larger than the map
BOXES = [
    [0, 1.3, 2.1, 17.7, 13.2], [1, -3.2, -4.6, 9.1, 6.3], [0, 4, 5, 4, 5], [1, 5.5, 6, 4.5, 9], [1, 30, 9.7, 2, 29.4],
    [0, 60, 50, 70, 61], [0, -7.3, 3.1, 41.9, 5.5],
]  # fmt: skip


def by_definition(features, rois, size, scale):
    """One bin after another."""
    (high, wide), (height, width) = size, features.shape[2:]
    out = []
    for box in rois.double().tolist():
        left, top, right, bottom = (edge * scale for edge in (*box[1:3], box[3] + 1, box[4] + 1))
        size_y, size_x = (bottom - top) / high, (right - left) / wide
        for plane in features[int(box[0])]:
            for p in range(high):
                for q in range(wide):
                    i, j = max(0, math.floor(p * size_y + top)), max(0, math.floor(q * size_x + left))
                    end_i, end_j = math.ceil((p + 1) * size_y + top), math.ceil((q + 1) * size_x + left)
                    end_i, end_j = max(0, min(end_i, height)), max(0, min(end_j, width))
                    pixels = plane[i:end_i, j:end_j] if bottom > top and right > left else plane[:0]
                    out.append(pixels.max() if pixels.numel() else plane.sum() * 0)
    return torch.stack(out).view(len(rois), features.shape[1], high, wide)


def make(device="cpu", dtype=torch.float64, channels=3):
    features = torch.randn(2, channels, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rois = torch.tensor(BOXES, dtype=torch.float64)
    return features.to(device, dtype).requires_grad_(), rois.to(device, torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("size", [(3, 2), (1, 5)])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_equals_the_definition(path, device, size, scale):
    def expected(features, rois):
        return by_definition(features.cpu(), rois, size, scale).to(device)

    features, rois = make(device)
    last = features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    for maps in (features, last):
        assert_gradients_agree(lambda *x: roi_pool(*x, size, scale), expected, (maps, rois))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    features, rois = make(device, dtype)
    wide = features.detach().to(rois.dtype).requires_grad_()
    out, expected = roi_pool(features, rois, 2, 0.5), roi_pool(wide, rois, 2, 0.5)
    assert torch.equal(out.to(rois.dtype), expected)
    grads = [torch.autograd.grad(x.square().sum(), leaf)[0] for x, leaf in ((out, features), (expected, wide))]
    assert_agree("gradient", grads[0], grads[1].to(dtype))


def test_tiles_and_blocks(device, monkeypatch):
    features, rois = make(device, channels=150)
    out = roi_pool(features, rois.repeat(5, 1), (7, 5), 0.5)
    monkeypatch.setenv("ATTLAS_KERNELS", "reference")
    assert torch.equal(out, roi_pool(features, rois.repeat(5, 1), (7, 5), 0.5))


def test_tiles_of_bins_and_channels(triton_path, device):
    features, rois = make(device, channels=67)
    out = roi_pool(features, rois[:2], (7, 5), 0.5)
    assert torch.equal(out.detach().cpu(), by_definition(features.detach().cpu(), rois[:2], (7, 5), 0.5))


def test_the_first_of_equals(path, device):
    flat = torch.zeros(1, 1, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    box = torch.tensor([[0, 1.0, 1, 3, 2]], dtype=torch.float64, device=device)
    (grad,) = torch.autograd.grad(roi_pool(flat, box, 1).sum(), flat)
    assert grad.nonzero().tolist() == [[0, 0, 1, 1]]


def test_a_nan_is_not_passed_over(path, device):
    features, rois = make(device)
    spoiled = features.detach().clone()
    spoiled[0, 0, 3, 4] = torch.nan
    out = roi_pool(spoiled, rois, 1, 0.5)
    assert out[[0, 6], 0].isnan().all()
    assert out.isnan().sum() == 2


def test_enormous_boxes(device):
    features, _ = make(device)
    box = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30]], dtype=torch.float64, device=device)
    assert torch.equal(roi_pool(features, box, 1)[0, :, 0, 0], features[0].amax((1, 2)))


def test_deterministic_gradient(path, device):
    features, rois = make(device, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(roi_pool(features, rois, 3).sum(), features)[0] for _ in "12")
        assert torch.equal(first, second)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, kernels):
    monkeypatch.setenv("ATTLAS_KERNELS", kernels)
    features, rois = make(device, channels=1)
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, rois, 2, 0.3), (features,))


def test_operators(path, device):
    features, rois = make(device, channels=2)
    arguments = (features, rois[:2], 1, 2, 0.3)
    torch.library.opcheck(roi_pool_op, arguments)
    out, pixel = roi_pool_op(*arguments)
    torch.library.opcheck(roi_pool_backward_op, (torch.randn_like(out), rois[:2], pixel, list(features.shape)))


def test_compiles_to_one_graph(device):
    inputs = make(device)
    compiled = torch.compile(lambda *x: roi_pool(*x, 2, 0.5) * 2, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda *x: roi_pool(*x, 2, 0.5) * 2, inputs)


@pytest.mark.parametrize("empty", ["boxes", "channels", "images"])
def test_empty(path, device, empty):
    features, rois = make(device)
    features = {"channels": features[:, :0], "images": features[:0]}.get(empty, features).detach().requires_grad_()
    rois = rois if empty == "channels" else rois[:0]
    out = roi_pool(features, rois, (3, 2))
    assert out.shape == (len(rois), features.shape[1], 3, 2)
    assert torch.autograd.grad(out.sum(), features)[0].eq(0).all()


def test_bad_arguments():
    features, rois = make()
    for bad, message in [
        ((features[0], rois, 2), r"features must have shape \(B, C, H, W\) with pixels, got \(3, 9, 11\)"),
        ((features, rois[:, 1:], 2), r"rois must have shape \(R, 5\).* got \(7, 4\)"),
        ((features, rois, 2, -1), r"spatial_scale must be positive and finite, got -1"),
        ((features, rois / 0, 2), r"rois must be finite: 7 are not, the first is \[nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            roi_pool(*bad)
    with pytest.raises(IndexError, match=r"rois must name images 0\.\.0 in their first column, got 0 to 1"):
        roi_pool(features[:1], rois, 2)
