import importlib

import pytest
import torch
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.gather_max import gather_max, gather_max_backward_op, gather_max_op

# B, N, C, S, K, D: no tile divides them; wider than a block of channels; K = N; one point; a group of all
SHAPES = [(2, 11, 5, 37, 4, 3), (1, 20, 70, 19, 5, 20), (2, 6, 3, 2, 6, 1), (3, 1, 4, 2, 1, 2)]
NAMES = ("features", "index", "shift", "local", "weight")
FORMS = [
    NAMES,
    ("features", "index"),
    ("features", "index", "shift"),
    ("local", "weight"),
    NAMES[2:],
    NAMES[:2] + NAMES[3:],
]


def by_definition(features, index, shift=None, local=None, weight=None, relu=True):
    """As a network would write it; the sums in float32 at least."""
    dtype = (features if features is not None else local).dtype
    sum_dtype = torch.promote_types(dtype, torch.float32)
    value = 0
    if features is not None:
        value = value + torch.stack([cloud[rows] for cloud, rows in zip(features, index)]).to(sum_dtype)
    if local is not None:
        value = value + torch.einsum("bskd,cd->bskc", local.to(sum_dtype), weight.to(sum_dtype))
    if shift is not None:
        value = value + shift.to(sum_dtype).unsqueeze(2)
    value = value.max(2).values
    return (value.relu() if relu else value).to(dtype)


def make(shape, device, dtype=torch.float64, form=NAMES, requires_grad=True):
    batch, size, channels, queries, k, depth = shape
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(requires_grad)

    tensors = {
        "features": rand(batch, size, channels),
        "index": torch.stack([torch.rand(queries, size, generator=generator).argsort(-1)[:, :k] for _ in range(batch)]),
        "shift": rand(batch, queries, channels),
        "local": rand(batch, queries, k, depth),
        "weight": rand(channels, depth),
    }
    tensors["index"] = tensors["index"].to(device)
    return [tensors[name] if name in form else None for name in NAMES]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_definition(path, device, shape, dtype):
    assert_gradients_agree(gather_max, by_definition, make(shape, device, dtype))


@pytest.mark.parametrize(
    ("form", "relu"), [(FORMS[0], False), (FORMS[1], False), *((form, True) for form in FORMS[2:])]
)
def test_summands(path, device, form, relu):
    inputs = make((2, 11, 5, 19, 4, 3), device, form=form)
    assert_gradients_agree(lambda *x: gather_max(*x, relu=relu), lambda *x: by_definition(*x, relu=relu), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(path, device, dtype):
    assert_gradients_agree(gather_max, by_definition, make(SHAPES[0], device, dtype), dtype)


@pytest.mark.parametrize("wanted", [("features",), ("shift",), ("local",), ("weight",)])
def test_one_of_the_gradients(path, device, wanted):
    inputs = [x if n in wanted or n == "index" else x.detach() for n, x in zip(NAMES, make(SHAPES[0], device))]
    assert_gradients_agree(gather_max, by_definition, inputs)


@pytest.mark.parametrize("k", [256, 257])
def test_many_neighbors(path, device, k):
    """The last k that a byte holds as the place of a maximum, and the first that it does not."""
    inputs = make((1, 300, 2, 9, k, 1), device, form=FORMS[1])
    inputs[0].data[0, inputs[1][0, :3, -1]] += 9  # the last neighbor is the largest
    assert_gradients_agree(gather_max, by_definition, inputs)


def test_depth_beyond_shared_memory(path, device):
    assert_gradients_agree(gather_max, by_definition, make((1, 7, 3, 4, 5, 150), device, torch.float32))


def test_deterministic_gradient(path, device):
    inputs = make((2, 4, 5, 20, 3, 2), device, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        assert_gradients_agree(gather_max, by_definition, inputs)
        leaves = [inputs[0], *inputs[2:]]
        first, second = (torch.autograd.grad(gather_max(*inputs).sin().sum(), leaves) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second))
    finally:
        torch.use_deterministic_algorithms(False)


def test_first_of_equals_gets_the_gradient(path, device):
    features = torch.tensor([[[1.0], [2], [2], [0]]], dtype=torch.float64, device=device, requires_grad=True)
    index = torch.tensor([[[0, 2, 1, 2], [3, 3, 0, 0]]], device=device)
    local = torch.zeros(1, 2, 4, 1, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.ones(1, 1, dtype=torch.float64, device=device)
    out = gather_max(features, index, None, local, weight)
    assert out.flatten().tolist() == [2, 1]
    out.sum().backward()
    assert features.grad.flatten().tolist() == [1, 0, 1, 0]
    assert local.grad.flatten().tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_negative_maxima(path, device):
    features = torch.tensor([[[-3.0], [-2]]], dtype=torch.float64, device=device, requires_grad=True)
    index = torch.tensor([[[0, 1]]], device=device)
    assert gather_max(features, index, relu=False).item() == -2
    out = gather_max(features, index)
    assert out.item() == 0
    out.backward()
    assert features.grad.eq(0).all()


def test_nan_is_not_hidden(path, device):
    features, index, *others = make(SHAPES[0], device, torch.float32, requires_grad=False)
    features[0, index[0, 5, 2], 1] = torch.nan
    assert gather_max(features, index, *others)[0, 5, 1].isnan()


def test_strided_inputs(path, device):
    inputs = []
    for x in make(SHAPES[0], device):
        inputs.append(x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_(x.requires_grad))
    assert_gradients_agree(gather_max, by_definition, inputs)
    leaves, ones = [inputs[0], *inputs[2:]], torch.ones((), dtype=torch.float64, device=device).expand(2, 37, 5)
    results = [torch.autograd.grad(f(*inputs, relu=False), leaves, ones) for f in (gather_max, by_definition)]
    for got, expected in zip(*results):
        assert_agree("gradient", got, expected)


def test_nothing_to_gather(path, device):
    features, index, shift, local, weight = make(SHAPES[0], device)
    out = gather_max(features, index[:, :0], shift[:, :0], local[:, :0], weight)
    assert out.shape == (2, 0, 5)
    gradients = torch.autograd.grad(out.sum(), (features, shift, local, weight), allow_unused=True)
    assert all(gradient.eq(0).all() for gradient in gradients if gradient is not None)
    assert gather_max(features[..., :0], index, shift[..., :0], local, weight[:0]).shape == (2, 37, 0)


def test_threads(monkeypatch):
    """The same bits whatever the number of threads, also where blocks and threads do not divide the queries."""
    inputs = make((3, 11, 5, 37, 4, 3), "cpu", torch.float32)
    monkeypatch.setattr(importlib.import_module("attlas.kernels.gather_max"), "BUFFER", 150)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out = gather_max(*inputs)
        results.append((out, *torch.autograd.grad(out.sin().sum(), [inputs[0], *inputs[2:]])))
    for one, three in zip(*results):
        assert_agree("threads", three.detach(), one.detach())
    assert_agree("definition", results[1][0].detach(), by_definition(*inputs).detach())


def test_autocast(device):
    features, index, shift, local, weight = make(SHAPES[0], device, torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        out = gather_max(features.bfloat16(), index, shift, local.bfloat16(), weight)
    assert out.dtype == torch.bfloat16
    assert_agree("out", out.detach().float(), by_definition(features, index, shift, local, weight).detach(), out.dtype)
    out.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_operators(path, device):
    inputs = make((2, 11, 5, 3, 4, 2), device, torch.float32)
    torch.library.opcheck(gather_max_op, (*inputs, True))
    torch.library.opcheck(gather_max_op, (None, None, *inputs[2:], False), test_utils="test_faketensor")
    queries = inputs[2].shape[1]
    grad = torch.randn(2, queries, 5, device=device)
    argmax = torch.randint(0, 4, grad.shape, device=device).byte()
    _, index, _, local, weight = (x.detach() for x in inputs)
    torch.library.opcheck(gather_max_backward_op, (grad, argmax, index, local, weight, 11, 4))
    torch.library.opcheck(
        gather_max_backward_op, (grad, argmax, None, None, weight, 0, 4), test_utils="test_faketensor"
    )


def test_gradcheck(path, device):
    inputs = make((2, 5, 3, 4, 3, 2), device)
    assert torch.autograd.gradcheck(gather_max, inputs, fast_mode=path == "triton", nondet_tol=1e-10)


def test_one_graph(device):
    inputs = make(SHAPES[0], device)
    compiled = torch.compile(lambda *x: gather_max(*x) * 2, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda *x: by_definition(*x) * 2, inputs)


def test_the_gradient_goes_to_the_first_nan(path, device):
    features = torch.tensor([1.0, torch.nan, 3.0, torch.nan], device=device).view(1, 4, 1).requires_grad_()
    out = gather_max(features, torch.arange(4, device=device).view(1, 1, 4), relu=False)
    assert out.isnan().all()
    assert torch.autograd.grad(out.sum(), features)[0].flatten().tolist() == [0, 1, 0, 0]


def test_bad_arguments():
    features, index, shift, local, weight = make(SHAPES[0], "cpu", requires_grad=False)
    with pytest.raises(ValueError, match="features and index must be given together"):
        gather_max(features, None, shift)
    with pytest.raises(ValueError, match="local and weight must be given together"):
        gather_max(features, index, shift, local)
    with pytest.raises(ValueError, match="got neither"):
        gather_max(None, None, shift)
    with pytest.raises(ValueError, match=r"index must have shape \(B, S, K\), K at least 1, got \(2, 37, 0\)"):
        gather_max(features, index[..., :0])
    with pytest.raises(ValueError, match=r"index must have shape \(B, S, K\), K at least 1, got \(2, 37\)"):
        gather_max(features, index[..., 0])
    with pytest.raises(ValueError, match=r"local must have shape \(\*\(2, 37, 4\), D\), got \(2, 36, 4, 3\)"):
        gather_max(features, index, shift, local[:, 1:], weight)
    with pytest.raises(ValueError, match=r"weight must have shape \(5, 3\), got \(4, 3\)"):
        gather_max(features, index, shift, local, weight[1:])
    with pytest.raises(ValueError, match=r"shift must have shape \(2, 37, 5\), got \(2, 37, 4\)"):
        gather_max(features, index, shift[..., 1:])
    with pytest.raises(
        TypeError, match=r"features and shift must be of one floating-point dtype, got torch.float64, torch.float32"
    ):
        gather_max(features, index, shift.float())
    with pytest.raises(TypeError, match=r"features must be of one floating-point dtype, got torch.int64"):
        gather_max(features.long(), index)
    with pytest.raises(IndexError, match=r"index must lie in 0..10, got values from 11 to 11"):
        gather_max(features, torch.full_like(index, 11))
