"""What every backbone and every mixer must do, driven by name: a new system is tested by being registered."""

import os
import re
import shutil

import pytest
import torch
from agreement import assert_agree
from networks import SYSTEMS, build, close, image, options_of, tensors

from attlas import backbones, checkpoint
from attlas.backbones.inspection.costs import analyze
from attlas.backbones.layers import Blocks, ClassAttention, ClassBlock, ClassHead, Mlp
from attlas.backbones.layers.blocks import statistics_kept
from attlas.backbones.mixers.ela import ELA
from attlas.kernels.dispatch import decompositions
from attlas.optim import layer_groups
from attlas.registry import MIXERS


@pytest.mark.parametrize("name", backbones.list())
def test_parameters(name):
    """Built without memory, each variant has the published number of parameters."""
    with torch.device("meta"):
        network = backbones.create(name)
    assert sum(p.numel() for p in network.parameters()) == backbones.variant(name)[1].params


@pytest.mark.parametrize("system", SYSTEMS)
def test_any_size(system):
    network = build(system)
    for height, width in ((64, 64), (75, 50), (33, 20), (7, 70)):
        maps = network(image(height, width))
        assert len(maps) == len(network.out_channels)
        for x, channels, size in zip(maps, network.out_channels, network.map_sizes(height, width)):
            assert x.shape == (2, channels, *size)
            assert torch.isfinite(x).all()


PLUGGED = [system for system in SYSTEMS if "plugins" in backbones.systems()[system].options()]


@pytest.mark.parametrize("system", PLUGGED)
def test_plugins(system):
    """Every block gets one, whose gates count; gates of one leave the network as it is, and fusing keeps them."""
    plain, x = build(system, num_classes=5, plugins=None), image(64, 96)
    network = build(system, num_classes=5, plugins=dict(type="ELA", fit=True))
    absent = network.load_state_dict(plain.state_dict(), strict=False)
    assert not absent.unexpected_keys
    gates = [part for part in network.modules() if isinstance(part, ELA)]
    assert len(absent.missing_keys) == 3 * len(gates)
    lists = [part for part in network.modules() if isinstance(part, Blocks)]
    blocks = sum(len(part) for part in lists if part is not getattr(network.head, "blocks", None))
    assert len(gates) == blocks - (system == "MobileNetV2")  # whose first block widens nothing
    expected = network(x)
    assert (expected - plain(x)).abs().max() > 1e-3 * expected.abs().max()
    for gate in gates:
        torch.nn.init.constant_(gate.gn.bias, 50.0)
    close(network(x), plain(x), 1e-3)
    for gate in gates:
        torch.nn.init.constant_(gate.gn.bias, 0.3)
    expected = network(x)
    close(network.fuse()(x), expected, 1e-3)


# Of a mask, and of what is picked, which have no gradients: they learn from losses of their own.
APART = re.compile(r"\.predictor\.|^pools\.of_\w+\.keys$")


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_parameter_learns(system):
    x = image(64, 96)
    for options in (dict(num_classes=5), dict()):
        network = build(system, **options).train()
        sum((y * torch.randn_like(y)).sum() for y in tensors(network(x))).backward()
        learning = [(name, p) for name, p in network.named_parameters() if p.requires_grad and not APART.search(name)]
        silent = [name for name, p in learning if p.grad is None or not torch.isfinite(p.grad).all()]
        assert silent == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_features(system):
    network, x = build(system, num_classes=5), image(64, 96)
    logits = network(x)
    features = network.forward_features(x)
    close(network.forward_head(features), logits)
    final, maps = network.forward_intermediates(x)
    close(final, features)
    assert len(maps) == network.num_levels
    close(network.forward_intermediates(x, indices=1, intermediates_only=True)[0], maps[-1])
    vector = network.forward_head(features, pre_logits=True)
    assert vector.shape == (2, network.num_features)
    network.reset_classifier(0)
    close(network(x), vector)
    network.reset_classifier(7)
    assert network(x).shape == (2, 7)
    dense = build(system)
    assert dense.num_features == dense.out_channels[-1]
    last = len(dense.out_indices) - 1
    close(dense.forward_intermediates(x, indices=dense.out_indices[-1:], norm=True)[1][0], dense(x)[last])
    part = build(system, out_indices=dense.out_indices[:2])
    assert len(part(x)) == len(part.out_channels) == 2


@pytest.mark.parametrize("system", SYSTEMS)
def test_feature_info(system):
    """It says of every map what it is, and names a module that gives the map before the norm of the output."""
    network = build(system)
    info, given = network.feature_info, {}
    for name in info.module_name():
        network.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: given.update({name: y}))
    maps = network(image(64, 96))
    assert info.channels() == [x.shape[1] for x in maps] == [level["num_chs"] for level in info]
    assert info.reduction() == list(network.out_strides)
    for name, x in zip(info.module_name(), maps):
        y = given[name][0] if isinstance(given[name], tuple) else given[name]
        assert y.shape == x.shape
    assert build(system, num_classes=5).feature_info.channels() == list(network.channels)


def test_features_only():
    """As timm's users know it."""
    with torch.device("meta"):
        network = backbones.create("shvit_s1", features_only=True)
        assert network.out_indices == (0, 1, 2)
        assert network.feature_info.reduction() == [16, 32, 64]
        network = backbones.create("shvit_s1", features_only=True, out_indices=(1,))
        assert network.feature_info == [dict(num_chs=224, reduction=32, module="stages.1")]
        assert backbones.create("shvit_s1", features_only=False).num_classes == 1000
    with pytest.raises(ValueError, match="features_only=True gives maps, num_classes=5 a classifier"):
        backbones.create("shvit_s1", features_only=True, num_classes=5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_checkpointing_changes_nothing(system):
    results = []
    for enable in (False, True):
        network = build(system, num_classes=5).train()
        network.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        loss = _first(network(image(64, 64))).square().mean()
        loss.backward()
        buffers = {name: b for name, b in network.named_buffers() if b.is_floating_point()}
        results.append((loss, {name: p.grad for name, p in network.named_parameters()}, buffers))
    (loss, grads, buffers), (other_loss, other_grads, other_buffers) = results
    close(other_loss, loss, 1e-6)
    for name, buffer in buffers.items():
        close(other_buffers[name], buffer, 1e-6)
    for name, grad in grads.items():
        if grad is not None:
            close(other_grads[name], grad, 1e-4)


def _first(outputs):
    """The logits; some systems give those of an auxiliary head beside them in training."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize("system", SYSTEMS)
def test_half_precision_and_memory_format(system):
    network, x = build(system, num_classes=5), image(64, 64)
    expected = network(x)
    close(network(x.contiguous(memory_format=torch.channels_last)), expected, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x)
    if system == "Terminator":  # refuses slow networks in half precision
        network.fuse()
    half = network.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    for got in (mixed, half):  # alike on the whole: which regions are routed to may hang on a rounding
        assert torch.isfinite(got).all()
        assert torch.cosine_similarity(got.float().flatten(), expected.flatten(), dim=0) > 0.95


@pytest.mark.parametrize(
    "system", [pytest.param(system, marks=[pytest.mark.slow] * (i % 6 > 0)) for i, system in enumerate(SYSTEMS)]
)
def test_compiles_in_one_graph(system):
    """Every sixth is one of the quick tests."""
    torch.compiler.reset()  # the networks share their forward, of which a process compiles eight forms
    network, x = build(system, num_classes=5), image(64, 96)
    # whether there is one graph is the tracer's to say; what backends make of it is theirs
    close(torch.compile(network, backend="eager", fullgraph=True)(x), network(x))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
def test_inductor(tmp_path, monkeypatch):
    """What PyTorch's own compiler makes of a network gives the same logits."""
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network, x = build("SHViT", num_classes=5, depths=(1, 1, 1)), image(64, 96)
    with torch.no_grad():
        close(torch.compile(network, fullgraph=True)(x), network(x))


@pytest.mark.parametrize("system", ["AttNet", "SHViT"])
def test_exports(system, tmp_path):
    """torch.export, and ONNX in onnxruntime, give the same logits; tests/tools/test_export.py has all systems."""
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = build(system, num_classes=5), image(64, 64)
    expected = network(x)
    program = torch.export.export(network, (x,))
    close(program.module()(x), expected)
    with torch.no_grad():
        torch.onnx.export(
            program.run_decompositions(decompositions()),
            (x,),
            tmp_path / "network.onnx",
            dynamo=True,
            optimize=False,  # half of the time
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(logits), expected, 1e-2)  # rounding may choose another region where a network routes


@pytest.mark.parametrize("system", SYSTEMS)
def test_state_comes_back(system, tmp_path):
    network, x = build(system, num_classes=5), image(64, 64)
    checkpoint.save(tmp_path / "network.safetensors", network.state_dict())
    again = build(system, filled=False, num_classes=5)
    account = backbones.load(again, tmp_path / "network.safetensors")
    assert account.complete, str(account)
    assert torch.equal(again(x), network(x))
    dense = build(system, filled=False)
    account = backbones.load(dense, network.state_dict())  # a head that a dense form has no use for is no surprise
    assert not account.unexpected
    other = build(system, filled=False, num_classes=3)
    account = backbones.load(other, network.state_dict())
    assert all("fc" in name for name in account.mismatched)


@pytest.mark.parametrize("system", SYSTEMS)
def test_files_of_the_other_form(system):
    """The account names every tensor that one form has and the other has not."""
    classifier, dense = build(system, num_classes=5), build(system)
    low = build(system, out_indices=dense.out_indices[:2])
    names, dense_names, low_names = (set(network.state_dict()) for network in (classifier, dense, low))
    counters = {name for name in names | dense_names if name.endswith("num_batches_tracked")}  # which no account misses

    account = backbones.load(build(system, filled=False), classifier.state_dict())
    assert set(account.ignored) == names - dense_names
    assert set(account.missing) == dense_names - names - counters
    assert not account.unexpected
    assert not account.mismatched

    account = backbones.load(build(system, filled=False, num_classes=5), dense.state_dict())
    assert set(account.unexpected) == dense_names - names
    assert set(account.missing) == names - dense_names - counters
    assert not account.complete

    account = backbones.load(build(system, filled=False, out_indices=dense.out_indices[:2]), dense.state_dict())
    assert account.complete, str(account)
    assert set(account.ignored) == dense_names - low_names


@pytest.mark.parametrize(
    ("system", "option"),
    [
        ("AttNet", "conv_bias"),
        ("ConViT", "qkv_bias"),
        ("DHVT", "qkv_bias"),
        ("DaViT", "qkv_bias"),
        ("DependencyViT", "controller_bias"),
        ("DependencyViT", "qkv_bias"),
        ("DependencyViT", "selector_bias"),
        ("DiNATs", "qkv_bias"),
        ("FAN", "qkv_bias"),
        ("NAT", "qkv_bias"),
        ("RVT", "qkv_bias"),
        ("TransNeXt", "qkv_bias"),
        ("VOLO", "qkv_bias"),
    ],
)
def test_without_biases(system, option):
    """It is the network whose biases are zero."""
    with_biases, without = (build(system, num_classes=5, **{option: has}) for has in (True, False))
    missing = with_biases.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert missing
    for name in missing:
        assert name.endswith("bias")
        torch.nn.init.zeros_(with_biases.get_parameter(name))
    close(without(image(64, 64)), with_biases(image(64, 64)), 1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_layers_for_decay(system):
    network = build(system, num_classes=5)
    depths = layer_groups([name for name, _ in network.named_parameters()], network.group_matcher())
    assert all(name.startswith("head") for name, depth in depths.items() if depth is None)
    numbers = {depth for depth in depths.values() if depth is not None}
    assert numbers == set(range(len(numbers)))  # no gaps
    assert len(numbers) > network.num_levels - (system == "PlainCNN")  # which has no stem
    coarse = layer_groups(depths, network.group_matcher(coarse=True))
    assert len(set(coarse.values())) <= len(set(depths.values()))
    assert network.no_weight_decay() <= set(depths)


@pytest.mark.parametrize("system", SYSTEMS)
def test_freezing(system):
    network = build(system, frozen_stages=1).train()
    for part in network.frozen_parts():
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
    assert any(p.requires_grad for p in network.parameters())
    network = build(system, norm_eval=True).train()
    assert not any(m.training for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("system", SYSTEMS)
def test_fused(system):
    network, x = build(system, num_classes=5), image(64, 96)
    expected = network(x)
    close(network.fuse()(x), expected, 1e-3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_bad_images(system):
    network = build(system)
    with pytest.raises(ValueError, match=r"image must have shape \(B, 3, H, W\)"):
        network(torch.zeros(2, 64, 64, 3))
    with pytest.raises(TypeError, match="floating point"):
        network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="empty"):
        network(torch.zeros(0, 3, 64, 64))
    with pytest.raises(ValueError, match="out_indices"):
        build(system, out_indices=(0, 99))


# --- on a GPU --------------------------------------------------------------------------------------------------------

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def exact_products():
    """Convolutions of float32 without TF32, which rounds to ten bits."""
    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
        yield


def gradients(module, x):
    """Tensors of a forward, and gradients of the input and of all parameters."""
    x = x.detach().clone().requires_grad_()
    outputs = tensors(module(x))
    generator = torch.Generator().manual_seed(2)
    loss = sum((y * torch.randn(y.shape, generator=generator).to(y)).sum() for y in outputs)
    learned = [p for p in module.parameters() if p.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, [x, *learned], allow_unused=True)]


def assert_same_on_a_gpu(module, x):
    expected = gradients(module, x)
    # a gradient that is zero but for rounding, as of a bias that softmax ignores, is compared with the others' size
    least = 1e-2 * max(z.abs().max() for z in expected if z is not None)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = gradients(module.cuda(), x.cuda().contiguous(memory_format=layout))
        for y, z in zip(got, expected):
            assert (y is None) == (z is None)
            if z is not None:
                assert (y.detach().cpu() - z).abs().max() <= 1e-3 * max(z.abs().max(), least)


@NEEDS_GPU
@pytest.mark.parametrize("size", [(64, 64), (75, 50), (7, 70)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_gpu_gives_what_the_cpu_gives(system, size, exact_products):
    assert_same_on_a_gpu(build(system), image(*size))


@NEEDS_GPU
@pytest.mark.parametrize("system", SYSTEMS)
def test_half_precision_on_a_gpu(system):
    network, x = build(system, num_classes=5).cuda().train(), image(64, 64).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        loss = sum(y.float().square().mean() for y in tensors(network(x)))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    if system in ("BiFormer", "Sparsifiner", "SparsifinerLVViT", "TCPA"):  # rounding sends them elsewhere
        return
    network.eval()
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cuda", torch.bfloat16):
            close(network(x), exact, 0.1)


@NEEDS_GPU
@pytest.mark.parametrize("name", sorted(MIXERS.module_dict))
def test_a_mixer_on_a_gpu_gives_what_the_cpu_gives(name, exact_products):
    mixer = MIXERS.build(dict(type=name, dim=64)).eval()
    for height, width in ((14, 14), (9, 5), (1, 1)):
        assert_same_on_a_gpu(mixer.cpu(), torch.randn(2, 64, height, width))


# --- mixers ----------------------------------------------------------------------------------------------------------

MIXER_NAMES = sorted(MIXERS.module_dict)
SIZES = ((56, 56), (28, 28), (14, 14), (7, 7), (9, 5), (2, 3), (1, 1))


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_mixer_at_any_size(name):
    mixer = MIXERS.build(dict(type=name, dim=64)).eval()
    for height, width in SIZES:
        x = torch.randn(1, 64, height, width).contiguous(memory_format=torch.channels_last)
        y = mixer(x)
        assert y.shape == x.shape
        assert torch.isfinite(y).all()
        if hasattr(mixer, "attention_maps"):
            maps = mixer.attention_maps(x, (height // 2, width // 2))
            assert maps.shape[0] == 1
            assert maps.shape[2:] == (height, width)


@pytest.mark.parametrize("dim", [64, 112, 128, 240, 256, 512])
@pytest.mark.parametrize("name", MIXER_NAMES)
def test_mixer_of_any_width(name, dim):
    """Its defaults fit widths that are no multiples of what a head has in the paper."""
    with torch.device("meta"):
        MIXERS.build(dict(type=name, dim=dim))


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_mixer_in_a_pyramid(name):
    network = backbones.Pyramid((64, 64), (1, 1), mixers=[name, "Attention"], num_classes=3, layer_scale=1.0)
    x = image(50, 70, batch=4)
    network(x).logsumexp(1).sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if not APART.search(name))


@pytest.mark.parametrize("name", ["ChannelAttention", "HybridAttention", "OverlappingAttention", "WindowAttention"])
def test_mixers_of_hat_in_an_isotropic_network(name):
    network = backbones.Isotropic(32, 2, mixers=name, img_size=64, patch_size=8, class_token=None, num_classes=3)
    for height, width in ((64, 64), (40, 72)):
        network(image(height, width)).logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_pyramid_of_mixers_takes_options():
    network = backbones.Pyramid((64, 128), (1, 1), mixers=["GnConv", dict(type="Attention", heads=2)])
    assert network.stages[1].blocks[0].mixer.heads == 2
    assert_agree("maps", network(image(32, 32))[1], network(image(32, 32))[1])
    with pytest.raises(ValueError, match="one entry for each of the 2 stages"):
        backbones.Pyramid((64, 128), (1, 1), mixers=["GnConv"] * 3)
    with pytest.raises(ValueError, match=r"Attention: dim=64 is not divisible by heads=7"):
        backbones.Pyramid((64, 128), (1, 1), mixers=dict(type="Attention", heads=7))
    with pytest.raises(KeyError, match="GnConv"):
        backbones.Pyramid((64, 128), (1, 1), mixers="GnCov")


# --- the zoo ---------------------------------------------------------------------------------------------------------


def test_names():
    assert "hornet_tiny_7x7" in backbones.list("hornet*")
    with pytest.raises(ValueError, match="hornet_tiny_7x7"):
        backbones.create("hornet_tiny")


def test_a_file_of_a_deeper_variant():
    """All that the network needs is in the file, and more."""
    with pytest.raises(ValueError, match=r"The file looks like lsnet_t_distill\.$"):
        backbones.create("lsnet_t", pretrained=backbones.create("lsnet_t_distill").state_dict())


def test_a_file_of_a_detector():
    state = build("HorNet", num_classes=5).state_dict()
    again = build("HorNet", filled=False, num_classes=5)
    larger = {f"backbone.{name}": value for name, value in state.items()} | {"neck.weight": torch.zeros(3)}
    assert backbones.load(again, larger).complete
    headless = build("HorNet", filled=False, num_classes=0)
    assert backbones.load(headless, state).complete


def test_odd_options():
    for options, message in (
        (dict(in_chans=1), "Near it: in_channels"),
        (dict(nun_classes=1), "Near it: num_classes"),
        (dict(num_classes=5, out_indices=(0, 1)), "give one of them"),
        (dict(frozen_stages=9), "from -1 .* to 4"),
        (dict(out_indices=1), "must be a tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            backbones.create("hornet_tiny_7x7", depths=(1, 1, 1, 1), **options)
    with pytest.raises(ValueError, match="the head would never see the image"):
        backbones.Isotropic(64, 2, mixers="GnConv", img_size=32, num_classes=4)
    with pytest.raises(ValueError, match="4 does not divide patch_size=14"):
        backbones.Isotropic(64, 4, patch_size=14, scales=(4, 2, 1, 0.5))
    with pytest.raises(ValueError, match="does not say its type"):
        backbones.Pyramid((64,), (1,), mixers=dict(heads=2))


def test_reset_classifier_as_timm_calls_it():
    vit = dict(dim=16, depth=2, mixers="Attention", img_size=32)
    for network, pooling in (
        (build("HorNet", num_classes=5), "avg"),
        (backbones.Isotropic(**vit, num_classes=5, class_token=None), "avg"),
        (backbones.Isotropic(**vit, num_classes=5, class_token=0), "token"),
        (backbones.Isotropic(**vit, num_classes=5, class_token=1), "token"),
    ):
        network.reset_classifier(7, global_pool=pooling)
        network.reset_classifier(6, None)
        assert network.eval()(image(32, 32)).shape == (2, 6)
        with pytest.raises(ValueError, match=f"global_pool='max': the head of .* pools by {pooling!r}, as its weights"):
            network.reset_classifier(8, "max")
        assert network.num_classes == network.get_classifier().out_features == 6


def test_a_head_keeps_the_dtype():
    network = build("HorNet", num_classes=5).bfloat16()
    network.reset_classifier(0)
    network.reset_classifier(7)
    assert network.get_classifier().weight.dtype == torch.bfloat16


def test_freezing_is_undone():
    network = build("HorNet", frozen_stages=2).train()
    network.freeze(-1)
    assert all(p.requires_grad for p in network.parameters())
    assert network.stem.training


def test_checkpointing_in_other_hands():
    """In a compiled network, and with synchronised batch norms."""
    torch.compiler.reset()
    network = backbones.Pyramid((32,), (1,), num_classes=3, grad_checkpointing=True)
    torch.compile(network, backend="aot_eager", fullgraph=True)(image(32, 32)).sum().backward()
    network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(build("SHViT", num_classes=3, grad_checkpointing=True))
    with statistics_kept(network.train()):
        pass
    assert all(m.momentum == 0.1 for m in network.modules() if isinstance(m, torch.nn.SyncBatchNorm))


def test_costs_are_the_same_on_every_device():
    counts = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            network = backbones.Pyramid((64,), (1,), mixers="Attention").eval()
            counts.append(analyze(network, torch.zeros(1, 3, 64, 64), repeats=0)[-1].macs)
    assert counts[0] == counts[1]
    tokens, dim = 16 * 16, 64
    attention = 2 * tokens**2 * dim + 4 * tokens * dim**2
    mlp = 8 * tokens * dim**2
    stem = 32 * 32 * 32 * 27 + tokens * dim * 32 * 9
    assert counts[0] == attention + mlp + stem


@pytest.mark.parametrize("system", SYSTEMS)
def test_costs(system):
    """Counted without memory, as tools/atlas.py does: the parts make up the whole."""
    with torch.device("meta"):
        network = backbones.systems()[system](**options_of(system), num_classes=5).eval()
        learning = [p.requires_grad for p in network.parameters()]
        *parts, whole = analyze(network, torch.empty(2, 3, 64, 64), repeats=0)
    assert whole.shape == (2, 5)
    assert whole.params == sum(p.numel() for p in network.parameters())
    assert sum(part.macs for part in parts) == pytest.approx(whole.macs)
    assert sum(part.macs > 0 for part in parts) > network.num_levels
    assert [p.requires_grad for p in network.parameters()] == learning


def test_costs_of_an_expanded_parameter():
    """A part may be called with a view of a parameter: here blocks with the class token of the head."""
    dim, pixels = 8, 16
    network = ClassHead(dim, 3, [ClassBlock(dim, ClassAttention(dim, 2), Mlp(dim, 2))]).eval()
    *_, whole = analyze(network, torch.zeros(2, dim, 4, 4), repeats=1)
    rows = 1 + pixels
    attention = 2 * dim**2 + 2 * rows * dim**2 + 2 * rows * dim
    assert whole.macs == 2 * (attention + 4 * dim**2 + 3 * dim)


def test_a_file_of_another_variant():
    """The error names what the file is."""
    state = backbones.create("hornet_tiny_gf", num_classes=1000).state_dict()
    with pytest.raises(ValueError, match="The file looks like hornet_tiny_gf"):
        backbones.create("hornet_tiny_7x7", pretrained=state)
