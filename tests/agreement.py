"""How far two implementations of an operator may differ: one table for all of them."""

import torch

# Relative error, root mean square over the tensor, by the dtype that the operator computed in.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_agree(name, got, expected, dtype=None):
    """Same shape and dtype, finite, and equal up to the tolerance of `dtype` (that of `got` by default)."""
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{name}: {got.dtype} instead of {expected.dtype}"
    assert torch.isfinite(got).all(), f"{name}: NaN or infinity"
    if not got.numel():
        return
    got, expected, tolerance = got.double(), expected.double(), TOLERANCE[dtype or got.dtype]
    error = (got - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-30)
    assert error <= tolerance, f"{name}: relative RMS error {error:.1e} > {tolerance:.0e}"


def assert_gradients_agree(function, reference, inputs, dtype=None):
    """Outputs and all gradients of `function(*inputs)` and `reference(*inputs)` agree; no gradient is silently zero.

    Inputs that require gradients are leaves; every output that is differentiable gets a random gradient.
    """
    results = []
    for call in (function, reference):
        outputs = call(*inputs)
        outputs = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x.requires_grad]
        generator = torch.Generator().manual_seed(0)
        grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
        leaves = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
        results.append((outputs, torch.autograd.grad(outputs, leaves, grads)))
    (outputs, gradients), (expected_outputs, expected_gradients) = results
    for i, (got, expected) in enumerate(zip(outputs, expected_outputs)):
        assert_agree(f"output {i}", got.detach(), expected.detach(), dtype)
    for i, (got, expected) in enumerate(zip(gradients, expected_gradients)):
        assert_agree(f"gradient {i}", got, expected, dtype)
        assert not expected.numel() or got.ne(0).any(), f"gradient {i} is zero everywhere"
