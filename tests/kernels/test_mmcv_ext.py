"""The stand-in for mmcv's compiled extension: when it is used, and that mmcv's own operators work on it."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from golden_records import Record

import attlas  # noqa: F401  before mmcv
from attlas.kernels import mmcv_ext

pytest.importorskip("mmcv")  # the machine of `make gpu` has none


def run(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_name_can_be_imported():
    """mmcv asks for its 113 names when it is imported."""
    importlib.import_module("mmcv.ops")
    extension = importlib.import_module("mmcv._ext")
    assert importlib.util.find_spec("mmcv._ext") is not None
    for name in mmcv_ext.__all__:
        assert getattr(extension, name) is getattr(mmcv_ext, name)
    with pytest.raises(AttributeError, match="no attribute '__wrapped__'"):
        extension.__wrapped__  # noqa: B018


def test_a_missing_operator_says_what_to_do():
    extension = importlib.import_module("mmcv._ext")
    with pytest.raises(RuntimeError, match=r"operator upfirdn2d needs mmcv's compiled extension.*pip install"):
        extension.upfirdn2d(1, 2)


def test_a_compiled_extension_comes_first(tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    (tmp_path / "mmcv/_ext.py").write_text("compiled = True")
    find = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    assert run(f"{find}; import attlas, mmcv._ext; print(vars(mmcv._ext).get('compiled'))") == "True"


def test_importing_attlas_imports_nothing_else():
    assert run("import attlas, sys; print({'torch', 'numpy', 'mmcv', 'mmengine'} & set(sys.modules))") == "set()"


# --- carafe ----------------------------------------------------------------------------------------------------------


def test_carafe_of_mmcv():
    ops = importlib.import_module("mmcv.ops")
    features = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(2, 18, 6, 10, dtype=torch.float64, requires_grad=True)
    settings = 3, 2, 2  # kernel size, groups, scale
    assert torch.autograd.gradcheck(lambda *x: ops.carafe(*x, *settings), (features, masks))
    naive, out = ops.carafe_naive(features, masks, *settings), ops.carafe(features, masks, *settings)
    assert torch.equal(naive, out)
    expected = torch.autograd.grad(out.sum(), [features, masks])
    given = torch.ones_like(out), features, masks
    got = [torch.zeros_like(features), torch.zeros_like(masks)]
    mmcv_ext.carafe_naive_backward(*given, *got, *settings)  # mmcv's own function wants a GPU here
    torch.testing.assert_close(got, [*expected])
    with pytest.raises(ValueError, match=r"masks must have shape \(2, 9, 6, 10\), got \(2, 18, 6, 10\)"):
        mmcv_ext.carafe_naive_forward(features, masks, out, 3, 1, 2)


# --- deformable_convolution ------------------------------------------------------------------------------------------


def convolution_of_mmcv(record):
    """mmcv's function, and its differentiable arguments in order."""
    ops, inputs = importlib.import_module("mmcv.ops"), record.inputs
    inputs["offset"] *= record.config["offset_scale"]
    steps = tuple(record.config["steps"].values())
    kernel = inputs["weight"].shape[2:]
    offset_groups = inputs["offset"].shape[1] // (2 * kernel.numel())
    names = ("x", "offset", "mask", "weight", "bias") if "mask" in inputs else ("x", "offset", "weight")
    function = ops.modulated_deform_conv2d if "mask" in inputs else ops.deform_conv2d
    leaves = {name: inputs[name].requires_grad_() for name in names}
    return lambda *tensors: function(*tensors, *steps, offset_groups), leaves, inputs["grad"]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    "case", ["deform_conv", "deform_conv_groups", "modulated_deform_conv_groups", "modulated_deform_conv_larger"]
)
def test_deformable_convolutions_of_mmcv(case, traced):
    """They equal the compiled extension, and go through torch.compile in one graph. In the last case offsets and masks
    are of a larger map, as mmdet's DyHead passes them."""
    record = Record(f"mmcv/{case}")
    function, leaves, grad = convolution_of_mmcv(record)
    out = (torch.compile(function, fullgraph=True, backend="aot_eager") if traced else function)(*leaves.values())
    names = record.config["gradients"]
    gradients = torch.autograd.grad(out, [leaves[name] for name in names], grad)
    for number, got in enumerate((out, *gradients)):
        torch.testing.assert_close(got.float(), record.output(number), rtol=1e-5, atol=1e-5)


def test_a_deformable_convolution_of_several_steps_and_none_of_a_bias():
    """mmcv's `im2col_step`, the images at a time, changes nothing; without a bias it passes an empty one."""
    ops = importlib.import_module("mmcv.ops")
    x, offset = torch.randn(4, 2, 5, 6), torch.randn(4, 18, 5, 6)
    weight, ones = torch.randn(3, 2, 3, 3, requires_grad=True), torch.ones(4, 9, 5, 6)
    whole, by_one = (ops.deform_conv2d(x, offset, weight, 1, 1, 1, 1, 1, False, step) for step in (32, 1))
    assert torch.equal(whole, by_one)
    out = ops.modulated_deform_conv2d(x, offset, ones, weight, None, 1, 1)
    torch.testing.assert_close(out, whole)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    torch.testing.assert_close(grad, torch.autograd.grad(whole.sum(), weight)[0])


def test_offsets_of_a_smaller_map_are_refused():
    ops = importlib.import_module("mmcv.ops")
    x, offset, mask, weight = (
        torch.randn(1, 4, 5, 6),
        torch.randn(1, 18, 5, 5),
        torch.ones(1, 9, 5, 6),
        torch.randn(3, 4, 3, 3),
    )
    with pytest.raises(ValueError, match=r"offset and mask must have at least the 5 x 6 pixels .* got 5 x 5"):
        ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)


def test_offsets_of_other_groups_than_named_are_refused():
    ops = importlib.import_module("mmcv.ops")
    x, offset, weight = torch.randn(1, 4, 5, 6), torch.randn(1, 36, 5, 6), torch.randn(3, 4, 3, 3)
    with pytest.raises(ValueError, match=r"offset must have 18 channels, for 1 deformable groups .* got 36"):
        ops.deform_conv2d(x, offset, weight, 1, 1)


# --- masked_conv -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_masked_convolution_of_mmcv(share):
    """It is the convolution where the mask is positive, and zero elsewhere."""
    layer = importlib.import_module("mmcv.ops").MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    x, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) - 1 + share
    with torch.no_grad():
        got, expected = layer(x, mask), layer(x).where(mask > 0, 0)
    torch.testing.assert_close(got, expected)


# --- psa_mask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["collect", "distribute"])
def test_psa_mask_of_mmcv(mode):
    ops, record = importlib.import_module("mmcv.ops"), Record(f"mmcv/psamask_{mode}")
    x, grad = (record.input(f"psamask_{mode}.{name}", torch.float32) for name in ("x", "grad"))
    out = ops.PSAMask(mode, tuple(record.config["kernel_size"]))(x.requires_grad_())
    assert torch.equal(out, record.output(0))
    assert torch.equal(torch.autograd.grad(out, x, grad)[0], record.output(1))
