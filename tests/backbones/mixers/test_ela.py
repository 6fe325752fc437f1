"""What characterizes ELA and its relatives: gates that know the place, serve both axes, and look at one image alone."""

import pytest
import torch
from networks import fill
from torch import nn

from attlas import checkpoint
from attlas.backbones.mixers.ela import CBAM, ELA, FORMS, SE, CoordinateAttention
from attlas.registry import MIXERS, MODELS

PLUGINS = {"ELA": ELA, "CoordinateAttention": CoordinateAttention, "SE": SE, "CBAM": CBAM}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(mixer):
    return fill(mixer).double()


def swapped(x):
    return x.transpose(2, 3)


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        ("T", (448, 1_792, 7_168)),
        ("B", (576, 2_304, 9_216)),
        ("S", (2_688, 10_752, 43_008)),
        ("L", (3_712, 14_848, 59_392)),
    ],
)
def test_parameters_of_the_variants(variant, sizes):
    assert tuple(sum(p.numel() for p in ELA(dim, variant).parameters()) for dim in (64, 256, 1024)) == sizes


def test_worked_example():
    mixer = ELA(2, kernel_size=3, num_groups=1)
    with torch.no_grad():
        mixer.conv.weight.copy_(torch.tensor([0.0, 1, 0]))
    x = torch.tensor([[[[1.0, 2], [3, 4]], [[0, 0], [0, 2]]]])
    rows, columns = mixer.gates(x)
    expected = [[0.50000, 0.82764], [0.23565, 0.40318]], [[0.60998, 0.79278], [0.20722, 0.39002]]
    torch.testing.assert_close(rows[0], torch.tensor(expected[0]), atol=3e-4, rtol=0)
    torch.testing.assert_close(columns[0], torch.tensor(expected[1]), atol=3e-4, rtol=0)
    out = torch.tensor([[[[0.30499, 0.79278], [1.51450, 2.6244]], [[0, 0], [0, 0.31450]]]])
    torch.testing.assert_close(mixer(x), out, atol=3e-4, rtol=0)


@pytest.mark.parametrize("variant", FORMS)
@pytest.mark.parametrize("size", [(7, 9), (1, 1), (3, 1), (2, 20)])
def test_gates_only_weaken(variant, size):
    mixer, x = filled(ELA(64, variant)), normal(2, 64, *size)
    for gate in mixer.gates(x):
        assert ((gate > 0) & (gate < 1)).all()
    assert (mixer(x).abs() <= x.abs()).all()


@pytest.mark.parametrize("variant", FORMS)
def test_ela_commutes_with_the_swap_of_height_and_width(variant):
    mixer, x = filled(ELA(64, variant)), normal(2, 64, 7, 10)
    torch.testing.assert_close(mixer(swapped(x)), swapped(mixer(x)))


def test_coordinate_attention_tells_height_from_width():
    mixer, x = filled(CoordinateAttention(64)), normal(2, 64, 7, 10)
    assert (mixer(swapped(x)) - swapped(mixer(x))).abs().max() > 0.01
    mixer.columns.load_state_dict(mixer.rows.state_dict())
    torch.testing.assert_close(mixer(swapped(x)), swapped(mixer(x)))


def test_a_mirrored_image_needs_a_mirrored_kernel():
    """ELA convolves: a mirrored map has mirrored gates with symmetric kernels alone."""
    mixer, x = filled(ELA(32)), normal(2, 32, 9, 6)
    assert (mixer(x.flip(2)) - mixer(x).flip(2)).abs().max() > 0.01
    with torch.no_grad():
        mixer.conv.weight.add_(mixer.conv.weight.flip(2))
    torch.testing.assert_close(mixer(x.flip(2)), mixer(x).flip(2))
    torch.testing.assert_close(mixer(x.flip(3)), mixer(x).flip(3))


@pytest.mark.parametrize("name", PLUGINS)
def test_what_depends_on_the_batch(name):
    """ELA and SE look at one image alone, in training too; those with batch norms only in inference."""
    mixer = filled(PLUGINS[name](32))
    x = normal(4, 32, 6, 5)
    for training in (False, True):
        mixer.train(training)
        alone, among = mixer(x[:1]), mixer(x)[:1]
        if training and name in ("CoordinateAttention", "CBAM"):
            assert (alone - among).abs().max() > 1e-3
        else:
            torch.testing.assert_close(alone, among)
    assert ELA(16).train()(torch.randn(1, 16, 1, 1)).shape == (1, 16, 1, 1)  # each group of the norm has one value


def test_the_place_counts_for_strips_alone():
    """SE gives a pixel what it is worth anywhere; strips and CBAM look at where it is."""
    x = normal(1, 32, 6, 5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))

    def shuffled(x):
        return x.flatten(2)[..., order].view_as(x)

    for name, cls in PLUGINS.items():
        mixer = filled(cls(32))
        same = torch.allclose(mixer(shuffled(x)), shuffled(mixer(x)))
        assert same == (name == "SE")


def test_maps_are_the_gates():
    x = normal(2, 32, 6, 5)
    for cls in PLUGINS.values():
        mixer = filled(cls(32))
        maps = mixer.attention_maps(x, (0, 0))
        assert maps.shape == (2, 1, 6, 5)
        if cls is not CBAM:  # whose maps are the second of two gates
            torch.testing.assert_close(maps, (mixer(x) / x).mean(1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PLUGINS)
def test_half_types_stay(name, dtype):
    mixer, x = fill(PLUGINS[name](32)), torch.randn(2, 32, 14, 9)
    expected = mixer(x)
    got = mixer.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", dtype):
        assert mixer.float()(x.to(dtype)).dtype == dtype


def test_gradients():
    for cls in PLUGINS.values():
        mixer, x = filled(cls(16)), normal(2, 16, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(mixer, (x,))


def test_names_of_others():
    mixer, again = filled(ELA(32)), ELA(32).double()
    state = {n.replace("conv", "con1").replace("gn", "GN"): v for n, v in mixer.state_dict().items()}
    assert checkpoint.load(again, state).complete
    mixer, again = filled(CoordinateAttention(32)), CoordinateAttention(32).double()
    names = {"reduce.conv": "conv1", "reduce.norm": "bn1", "rows": "conv2", "columns": "conv3"}
    state = {names[n.rpartition(".")[0]] + "." + n.rpartition(".")[2]: v for n, v in mixer.state_dict().items()}
    assert checkpoint.load(again, state).complete
    mixer, again = filled(SE(32, bias=False)), SE(32, bias=False).double()
    state = {f"fc.{2 * int(n[2]) - 2}.weight": v[..., 0, 0] for n, v in mixer.state_dict().items()}
    assert checkpoint.load(again, state).complete


def test_groups_are_checked_when_built():
    with pytest.raises(
        ValueError, match=r"dim=144 .* variant T: groups=144, num_groups=32\. Give groups=144, num_groups=24"
    ):
        ELA(144, "T")
    with pytest.raises(ValueError, match=r"dim=36 .* groups=4.5, num_groups=16\. Give groups=4, num_groups=12"):
        ELA(36, "S")
    with pytest.raises(ValueError, match=r"groups=5, num_groups=16\. Give groups=4, num_groups=16, or fit=True"):
        ELA(32, groups=5)
    fitted = ELA(36, "S", fit=True)
    assert (fitted.conv.groups, fitted.gn.num_groups) == (4, 12)
    assert ELA(3, "L", fit=True)(torch.randn(1, 3, 4, 4)).shape == (1, 3, 4, 4)
    assert str(ELA(64, "S", fit=True)) == str(ELA(64, "S"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ELA(64, "X"), "ELA: variant='X' must be one of T, B, S, L"),
        (lambda: ELA(64, kernel_size=4), "ELA: kernel_size=4 must be odd"),
        (lambda: CBAM(64, kernel_size=2), "CBAM: kernel_size=2 must be odd"),
        (lambda: CoordinateAttention(4, 8, least=0), "dim=4 channels over reduction=8 leave none; least=1 keeps one"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", PLUGINS)
def test_one_name_two_spellings_of_the_width(name):
    """MIXERS calls it dim, mm's networks in_channels; the plug-in of mm is the mixer."""
    mixer, plugin = MIXERS.build(dict(type=name, dim=32)), MODELS.build(dict(type=name, in_channels=32))
    assert isinstance(plugin, type(mixer))
    assert plugin.load_state_dict(mixer.state_dict()).missing_keys == []
    assert type(plugin).__name__ == name


@pytest.mark.parametrize("name", PLUGINS)
def test_exports(name, tmp_path):
    """No adaptive pooling: a free height and width go through torch.export, and ONNX takes it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    mixer, x = fill(PLUGINS[name](32)), torch.randn(1, 32, 14, 9)
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(mixer, (x,), dynamic_shapes=[{2: free, 3: free}])
    other = torch.randn(1, 32, 8, 12)
    torch.testing.assert_close(program.module()(other), mixer(other))
    torch.onnx.export(program, (x,), tmp_path / "mixer.onnx", dynamo=True, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "mixer.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), mixer(other), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
@pytest.mark.parametrize(
    "cfg", [dict(type="attlas.ELA", variant="S"), dict(type="attlas.CBAM"), dict(type="attlas.SE")]
)
def test_plugins_of_mm(scope, cfg):
    """In mm's ResNet: behind the last convolution of every block of the marked stages."""
    from mmengine.registry import DefaultScope, init_default_scope

    pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        init_default_scope(scope)
        found = MODELS.parent.build(
            dict(
                type=f"{scope}.ResNet",
                depth=50,
                base_channels=8,
                stem_channels=8,
                plugins=[dict(cfg=cfg, stages=(False, True, True, True), position="after_conv3")],
                norm_cfg=dict(type="BN"),
            )
        )
    kind = PLUGINS[cfg["type"].removeprefix("attlas.")]
    places = [name for name, part in found.named_modules() if isinstance(part, kind)]
    assert len(places) == 4 + 6 + 3
    assert all(name.startswith(("layer2", "layer3", "layer4")) for name in places)
    block = found.layer2[1]
    x, given = torch.randn(2, 64, 9, 6), {}
    block.get_submodule(block.after_conv3_plugin_names[0]).register_forward_hook(
        lambda module, args, y: given.update(x=args[0].clone(), y=y.clone())  # which the block adds to in place
    )
    out = block.eval()(x)
    torch.testing.assert_close(out, torch.relu(given["y"] + x))
    assert not torch.equal(given["x"], given["y"])
    found.train()
    sum(y.sum() for y in found(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in found.parameters())


def test_a_fused_relative_is_the_same():
    from attlas.backbones.layers import fuse

    x = normal(2, 32, 6, 5)
    for mixer in (filled(CoordinateAttention(32)), filled(CBAM(32))):
        expected = mixer(x)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in fuse(mixer).modules())
        torch.testing.assert_close(mixer(x), expected)
