import importlib

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree
from golden_records import Record

from attlas.kernels.deformable_convolution import (
    deformable_convolution,
    deformable_convolution_backward_op,
    deformable_convolution_op,
    deformable_convolution_weight_backward_op,
)


def by_grid_sample(x, offset, weight, bias=None, mask=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """By definition: all columns, read tap by tap with PyTorch's bilinear interpolation."""
    (batch, _, height, width), kernel, size = x.shape, weight.shape[2:], offset.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    taps, columns = kernel[0] * kernel[1], []
    offset = offset.to(wide).reshape(batch, -1, taps, 2, *size)
    mask = torch.ones_like(offset[:, :, :, 0]) if mask is None else mask.to(wide).reshape(batch, -1, taps, *size)
    rows, cols = (torch.arange(n, device=x.device).to(wide) for n in size)
    for tap in range(taps):
        y = (rows * stride[0] - padding[0] + tap // kernel[1] * dilation[0])[:, None] + offset[:, :, tap, 0]
        z = (cols * stride[1] - padding[1] + tap % kernel[1] * dilation[1]) + offset[:, :, tap, 1]
        # a border of zeros, so that no length is one, for which align_corners is not defined
        place = torch.stack([2 * (z + 1) / (width + 1) - 1, 2 * (y + 1) / (height + 1) - 1], -1).flatten(0, 1)
        maps = F.pad(x.to(wide), (1, 1, 1, 1)).reshape(len(place), -1, height + 2, width + 2)
        read = F.grid_sample(maps, place, align_corners=True)
        columns.append(read * mask[:, :, tap].reshape(len(place), 1, *size))
    columns = torch.stack(columns, 2).reshape(batch, groups, -1, size.numel())  # B groups Cg K P
    out = weight.to(wide).reshape(groups, -1, weight[0].numel()) @ columns
    out = out.reshape(batch, -1, *size)
    return (out if bias is None else out + bias.to(wide)[:, None, None]).to(x.dtype)


def tensors(shape, out, kernel, offset_groups=1, spread=2.0, dtype=torch.float64, device="cpu", seed=0, **steps):
    """x, offset, weight, bias, mask as leaves, and the other arguments."""
    generator = torch.Generator().manual_seed(seed)
    steps = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1} | steps
    weight = (out, shape[1] // steps["groups"], *kernel)
    sizes = F.conv2d(torch.empty(shape, device="meta"), torch.empty(weight, device="meta"), None, **steps).shape[2:]
    taps = offset_groups * kernel[0] * kernel[1]

    def leaf(*shape, scale=1.0):
        values = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(device, dtype).requires_grad_()

    moves = leaf(shape[0], 2 * taps, *sizes, scale=spread)
    return [leaf(*shape), moves, leaf(*weight), leaf(out), leaf(shape[0], taps, *sizes)], steps


CASES = [
    (((2, 4, 5, 7), 3, (3, 3)), {}),
    (((1, 6, 6, 4), 4, (2, 3), 2), {"stride": (2, 1), "padding": (2, 0), "groups": 2}),
    (((2, 6, 4, 5), 6, (3, 2), 3), {"dilation": (1, 2), "padding": (0, 2), "groups": 6}),
    (((1, 3, 1, 5), 2, (1, 1)), {"padding": (0, 0), "spread": 0.5}),
]


@pytest.mark.parametrize(("sizes", "steps"), CASES)
def test_equals_the_definition(path, device, sizes, steps):
    inputs, steps = tensors(*sizes, **steps, device=device)
    for given in (inputs, inputs[:4], inputs[:3]):
        assert_gradients_agree(
            lambda *x, steps=steps: deformable_convolution(*x, **steps),
            lambda *x, steps=steps: by_grid_sample(*x, **steps),
            given,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    inputs, steps = tensors((1, 6, 5, 4), 4, (3, 3), 2, dtype=dtype, device=device)
    assert_gradients_agree(
        lambda *x: deformable_convolution(*x, **steps), lambda *x: by_grid_sample(*x, **steps), inputs
    )


def test_mixed_dtypes(path, device):
    """As under autocast: convolutions give offsets and masks in a half type, for a map in float32."""
    (x, offset, weight, bias, mask), steps = tensors((1, 6, 5, 4), 4, (3, 3), dtype=torch.float32, device=device)
    offset, mask = (tensor.detach().half().requires_grad_() for tensor in (offset, mask))
    inputs = [x, offset, weight, bias, mask]
    out = deformable_convolution(*inputs, **steps)
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert [out.dtype, *(g.dtype for g in gradients)] == [torch.float32, *(tensor.dtype for tensor in inputs)]
    assert_agree("out", out.detach(), by_grid_sample(*inputs, **steps).detach())


def in_parts(monkeypatch, **sizes):
    module = importlib.import_module(deformable_convolution.__module__)
    for name, value in sizes.items():
        monkeypatch.setattr(module, name, value)


def test_blocks_of_pixels_and_pieces_of_channels(device, monkeypatch):
    in_parts(monkeypatch, ROWS=7, CHANNELS=2, RUNS=2)
    inputs, steps = tensors((2, 12, 4, 5), 4, (3, 3), 2, device=device, groups=2)
    assert_gradients_agree(
        lambda *x: deformable_convolution(*x, **steps), lambda *x: by_grid_sample(*x, **steps), inputs
    )


def test_blocks_and_tiles_of_triton(triton_path, device, monkeypatch):
    in_parts(monkeypatch, COLUMNS=2 * 130 * 7, ELEMENTS=256)  # blocks of 7 pixels, tiles of 4 by 64 channels
    inputs, steps = tensors((2, 130, 2, 3), 4, (1, 2), 2, device=device, groups=2, padding=(0, 0))
    assert_gradients_agree(
        lambda *x: deformable_convolution(*x, **steps), lambda *x: by_grid_sample(*x, **steps), inputs
    )


def test_without_offsets_it_is_a_convolution(path, device):
    (x, offset, weight, bias, mask), steps = tensors(
        (2, 6, 7, 5), 4, (2, 3), stride=(2, 1), dilation=(2, 1), groups=2, device=device
    )
    ones = torch.ones_like(mask)
    assert_gradients_agree(
        lambda x, weight, bias: deformable_convolution(x, torch.zeros_like(offset), weight, bias, ones, **steps),
        lambda x, weight, bias: F.conv2d(x, weight, bias, **steps),
        [x, weight, bias],
    )


def test_an_offset_of_whole_pixels_moves_the_map(path, device):
    """y stands before x: one row down and two columns to the left."""
    (x, offset, weight, _, _), steps = tensors((1, 2, 6, 7), 3, (3, 3), device=device)
    moves = torch.tensor([1.0, -2.0], dtype=x.dtype, device=device).repeat(9)[None, :, None, None].expand_as(offset)
    moved = F.pad(x, (2, 0, 0, 1))[:, :, 1:, :-2]
    out = deformable_convolution(x, moves, weight, **steps)
    expected = F.conv2d(moved, weight, padding=1)
    inner = (..., slice(1, -1), slice(1, -1))  # where the shifted map's own padding is not read
    assert_agree("out", out[inner].detach(), expected[inner].detach())


def test_a_place_outside_the_map_reads_zero_and_has_no_gradient(path, device):
    x = torch.full((1, 1, 2, 3), 5.0, device=device, requires_grad=True)
    weight = torch.ones(1, 1, 1, 1, device=device)
    places = [(-1, 0), (2, 0), (0, -1), (0, 3), (1e30, 0), (-torch.inf, 0), (0, torch.inf), (torch.nan, 0), (-0.5, 2.5)]
    for y, z in places:
        offset = torch.zeros(1, 2, 2, 3, device=device)
        offset[0, :, 0, 0] = torch.tensor([y, z])
        offset.requires_grad_()
        out = deformable_convolution(x, offset, weight)
        grad_x, grad_offset = torch.autograd.grad(out[0, 0, 0, 0], [x, offset])
        inside = (y, z) == (-0.5, 2.5)  # half outside on both sides
        assert out[0, 0, 0, 0] == (1.25 if inside else 0)
        assert grad_x.sum() == (0.25 if inside else 0)
        assert grad_offset[0, :, 0, 0].tolist() == ([2.5, -2.5] if inside else [0, 0])
        assert out.flatten()[1:].tolist() == [5] * 5


def test_on_a_pixel_the_gradient_is_that_to_higher_coordinates(path, device):
    x = torch.tensor([[1.0, 2, 4], [8, 16, 32], [64, 128, 256]], device=device).view(1, 1, 3, 3)
    offset = torch.zeros(1, 2, 3, 3, device=device, requires_grad=True)
    out = deformable_convolution(x, offset, torch.ones(1, 1, 1, 1, device=device))
    (grad,) = torch.autograd.grad(out.sum(), offset)
    assert grad[0, 0].tolist() == [[7, 14, 28], [56, 112, 224], [-64, -128, -256]]
    assert grad[0, 1].tolist() == [[1, 2, -4], [8, 16, -32], [64, 128, -256]]


@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, mode):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    inputs, steps = tensors((1, 4, 3, 4), 2, (2, 2), 2, groups=2, device=device)
    assert torch.autograd.gradcheck(lambda *x: deformable_convolution(*x, **steps), inputs)


def test_operators(path, device):
    inputs, steps = tensors((1, 2, 3, 2), 2, (1, 2), padding=(0, 1), device=device)
    settings = list(steps.values())
    torch.library.opcheck(deformable_convolution_op, (*inputs, *settings))
    torch.library.opcheck(deformable_convolution_op, (*inputs[:3], None, None, *settings))
    x, offset, weight, _, mask = (tensor.detach() for tensor in inputs)
    grad = torch.randn(1, 2, *offset.shape[2:], dtype=x.dtype, device=device)
    for factors in (mask, None):
        arguments = grad, x, offset, weight, factors, *settings
        torch.library.opcheck(deformable_convolution_backward_op, arguments)
        torch.library.opcheck(deformable_convolution_weight_backward_op, arguments)


def test_one_graph(device):
    inputs, steps = tensors((1, 4, 5, 4), 2, (3, 3), device=device)
    compiled = torch.compile(
        lambda *x: deformable_convolution(*x, **steps) * 2, fullgraph=True, backend="aot_eager", dynamic=True
    )
    assert_gradients_agree(compiled, lambda *x: by_grid_sample(*x, **steps) * 2, inputs)


def test_strided(path, device):
    inputs, steps = tensors((2, 4, 5, 4), 4, (3, 3), device=device)
    odd = [tensor.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for tensor in inputs]
    odd[0] = inputs[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert_gradients_agree(lambda *x: deformable_convolution(*x, **steps), lambda *x: by_grid_sample(*x, **steps), odd)
    out = deformable_convolution(*inputs, **steps)  # a gradient that is one number, expanded
    for got, expected in zip(
        torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(by_grid_sample(*inputs, **steps).sum(), inputs)
    ):
        assert_agree("gradient", got, expected)


def test_only_what_is_asked_for_is_computed(path, device):
    (x, offset, weight, bias, mask), steps = tensors((1, 4, 5, 4), 2, (3, 3), device=device)
    fixed = [tensor.detach() for tensor in (x, offset, weight, bias, mask)]
    for i, tensor in enumerate((x, offset, weight, bias, mask)):
        given = [*fixed[:i], tensor, *fixed[i + 1 :]]
        assert_gradients_agree(
            lambda *a: deformable_convolution(*a, **steps), lambda *a: by_grid_sample(*a, **steps), given
        )


def test_deterministic(triton_path, device):
    inputs, steps = tensors((1, 4, 5, 4), 2, (3, 3), device=device)
    torch.use_deterministic_algorithms(True)
    try:
        assert_gradients_agree(
            lambda *x: deformable_convolution(*x, **steps), lambda *x: by_grid_sample(*x, **steps), inputs
        )
    finally:
        torch.use_deterministic_algorithms(False)


def test_empty(path, device):
    inputs, steps = tensors((0, 4, 5, 4), 2, (3, 3), device=device)
    out = deformable_convolution(*inputs, **steps)
    assert out.shape == (0, 2, 5, 4)
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert [g.shape for g in gradients] == [tensor.shape for tensor in inputs]
    assert not gradients[2].any()


def test_memory_of_one_block_of_columns():
    """The columns of the whole batch would be 9 times the map; on a CPU more than 3 of its size never exist."""
    inputs, steps = tensors((8, 64, 40, 40), 8, (3, 3), dtype=torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
        deformable_convolution(*inputs, **steps)
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 0 < most < 3 * inputs[0].nbytes


@pytest.mark.parametrize(
    "case",
    [
        "deform_conv",
        "deform_conv_groups",
        "modulated_deform_conv",
        "modulated_deform_conv_groups",
        "modulated_deform_conv_outside",
    ],
)
def test_equals_the_compiled_extension(path, device, case):
    record = Record(f"mmcv/{case}")
    inputs = {name: tensor.to(device) for name, tensor in record.inputs.items()}
    inputs["offset"] *= record.config["offset_scale"]
    grad, names = inputs.pop("grad"), record.config["gradients"]
    out = deformable_convolution(**{n: x.requires_grad_() for n, x in inputs.items()}, **record.config["steps"])
    gradients = torch.autograd.grad(out, [inputs[name] for name in names], grad)
    for number, (name, got) in enumerate(zip(("out", *names), (out.detach(), *gradients))):
        assert_agree(name, got, record.output(number).to(got), torch.float32)


def test_bad_arguments():
    (x, offset, weight, bias, mask), _ = tensors((2, 4, 5, 6), 6, (3, 3), 2)
    wrong = [
        (dict(x=x[0]), r"x must have shape \(B, C, H, W\) with C, H, W of at least 1, got \(4, 5, 6\)"),
        (dict(groups=3), r"groups must divide the 4 channels of x, got 3"),
        (dict(weight=weight[:, :3]), r"weight must have shape \(O, 4, kh, kw\), where 1 groups .* got \(6, 3, 3, 3\)"),
        (dict(weight=weight[:5, :2], groups=2), r"weight must have shape \(O, 2, kh, kw\), where 2 groups divide O"),
        (dict(padding=0, dilation=3), r"x must be as large as the kernel: the output would be of -1 x 0 pixels"),
        (dict(offset=offset[:, :35]), r"offset must have shape .* got \(2, 35, 5, 6\)"),
        (dict(offset=offset[..., 1:]), r"H', W' = 5, 6, got \(2, 36, 5, 5\)"),
        (dict(offset=offset.repeat(1, 2, 1, 1)[:, :54]), r"G divides the 4 channels of x, got 54 channels, so G = 3"),
        (dict(bias=bias[:5]), r"bias must have shape \(6,\) of weight, got \(5,\)"),
        (
            dict(mask=mask[:, :9]),
            r"mask must have shape \(2, 18, 5, 6\), half the channels of offset, got \(2, 9, 5, 6\)",
        ),
        (dict(stride=0), r"stride must lie in 1\.\.1048576, got 0"),
        (dict(stride=(1, 2, 3)), r"stride must be one integer, or one for rows and one for columns, got \(1, 2, 3\)"),
        (dict(mask=mask.to("meta")), r"mask must be on the device of x, cpu, got meta"),
    ]
    good = dict(x=x, offset=offset, weight=weight, bias=bias, mask=mask, padding=1)
    for keywords, message in wrong:
        with pytest.raises(ValueError, match=message):
            deformable_convolution(**good | keywords)
    for keywords, message in [
        (dict(padding=1.0), r"padding must be an integer, got 1.0"),
        (dict(offset=offset.long()), r"offset must be floating point \(float16 to float64\), got torch.int64"),
        (dict(x=None), r"x must be a tensor, got None"),
    ]:
        with pytest.raises(TypeError, match=message):
            deformable_convolution(**good | keywords)
