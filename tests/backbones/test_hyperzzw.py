import copy
import math

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from golden_records import Record
from levels import levels_changed_by
from networks import close, fill

from attlas import backbones, checkpoint
from attlas.backbones.classification.model import ImageClassifier
from attlas.backbones.hyperzzw import HyperZZW, Kernel, LocalZZW, SlowNet, Terminator, global_zzw, standardize
from attlas.backbones.layers import averages

SMALL = dict(dims=(12, 12, 24), layers=1, earlier=((), (), (0,)), dropout=0.0, img_size=10, hidden=8, omega=1.0)


def network(**options):
    torch.manual_seed(0)
    return fill(Terminator(**{**SMALL, **options})).double()


def recorded(**options):
    """The network of the record."""
    hidden = dict(hidden=8, local_hidden=8, channel_hidden=8, interact_hidden=(8, 64))
    dims = (12, 24, 24, 24, 24)
    return Terminator(dims, img_size=16, num_classes=10, **{"batch_statistics": True, **hidden, **options})


def maps(*size, batch=3, dim=3, seed=1):
    return torch.randn(batch, dim, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- kernels ---------------------------------------------------------------------------------------------------------


def slow_net(*args, **options):
    torch.manual_seed(0)
    return fill(SlowNet(*args, **options)).double()


def test_a_kernel_by_definition():
    """Place by place, on a rectangle."""
    net = slow_net((3, 4), 2, 5, layers=2)
    torch.nn.init.normal_(net.position)
    expected = torch.empty(1, 2, 3, 4, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            place = torch.tensor([i - 1, 2 * j / 3 - 1], dtype=torch.float64)
            z = net.filters[0](place).sin()
            for filter_, layer in zip(net.filters[1:], net.linears):
                z = filter_(place).sin() * layer(z) + net.position[0, 0, i, j]
            expected[0, :, i, j] = net.out(z)
    assert_agree("kernel", net(), expected)


def test_a_context_modulates_by_its_pooled_mean_alone():
    """Over the batch, and over the cells of the kernel: what moves inside a cell changes nothing."""
    net = slow_net((3, 3), 2, 5, context=4).train()
    x = maps(6, 6, batch=2, dim=4)
    expected = net(x)
    swapped = x.unflatten(3, (3, 2)).flip(4).flatten(3)  # the columns of each cell
    assert_agree("kernel", net(swapped), expected)
    assert_agree("kernel", net(x.flip(0)), expected)
    assert (net(x.flip(3)) - expected).abs().max() > 1e-3
    # the gradient of what precedes the modulation comes from its direction alone: longer rows change nothing by it
    seen = F.gelu(net.expand(net.reduce(net.context(x))))
    z = net.filters[0](torch.cartesian_prod(*[torch.linspace(-1, 1, 3, dtype=torch.float64)] * 2)).sin()
    for i, layer in enumerate(net.linears):
        z = net.filters[i + 1](torch.cartesian_prod(*[torch.linspace(-1, 1, 3).double()] * 2)).sin() * layer(z)
        z = z + net.position.view(-1, 1)
        z = (z.detach() + 0.1 * z / z.norm(dim=0)) * net.modulations[i](seen)
    expected = net.out(z).mT.view(1, 2, 3, 3)
    assert_agree("kernel", net(x), expected)
    of_parameters = [net.linears[0].weight, net.filters[0].weight, net.expand.weight]
    for got, wanted in zip(
        torch.autograd.grad(net(x).square().sum(), of_parameters),
        torch.autograd.grad(expected.square().sum(), of_parameters),
    ):
        assert_agree("gradient", got, wanted)


def test_kernels_of_coordinates_alone_know_no_image():
    layer, seen = HyperZZW(6, 8).double().eval(), {}
    parts = {"global": layer.slow, "channel": layer.hci.slow, "spatial": layer.interact.places}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, __, y, name=name: seen.setdefault(name, []).append(y))
    layer(maps(8, 8, dim=6)), layer(maps(8, 8, dim=6, seed=2))
    for first, second in seen.values():
        assert torch.equal(first, second)


def test_scaled_at_construction_and_never_again():
    """Filters begin at the frequencies of omega; the last layer is 1 / √cells of what it would be."""
    torch.manual_seed(0)
    built = Terminator(**{**SMALL, "omega": 2000.0, "img_size": 32}, num_classes=4).eval()
    slow = built.blocks[0].layer.slow
    bound = math.sqrt(3 / 8) / 32  # kaiming's, of 8 channels, with the gain of a linear layer
    assert 0.8 * bound < slow.out.weight.abs().max() <= bound
    assert 1e4 < slow.filters[0].weight.abs().mean() < 1e5  # 2π · 2000 · 6 / (2 √2)
    assert torch.equal(slow.linears[0].bias, torch.ones(8))
    x = torch.randn(2, 3, 32, 32)
    first = built(x)
    assert torch.equal(built(x), first)
    again = Terminator(**{**SMALL, "img_size": 32}, num_classes=4).eval()
    assert backbones.load(again, built.state_dict()).complete
    assert torch.equal(again(x), first)


def test_kernels_in_half_precision():
    """Frequencies of thousands do not survive bfloat16; autocast leaves them alone, and fused kernels need none."""
    torch.manual_seed(0)
    built = Terminator(**{**SMALL, "omega": 2000.0, "img_size": 32}).eval()
    slow = built.blocks[1].layer.slow
    expected = slow()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(slow(), expected)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(RuntimeError, match=rf"filters are in {dtype}, where .* after eval\(\) and fuse\(\)"):
            copy.deepcopy(built).to(dtype)(torch.randn(1, 3, 32, 32, dtype=dtype))
    fused = built.fuse().to(torch.bfloat16).blocks[1].layer.slow
    assert isinstance(fused, Kernel)
    close(fused(), expected, 1e-2)


# --- operators -------------------------------------------------------------------------------------------------------


def test_the_global_product():
    """Rows of one map, columns of the other; a row of Ŵ that is one pixel copies a row of Z."""
    w, z = maps(5, 5), maps(5, 5, seed=2)
    assert_agree("product", global_zzw(w, z), torch.einsum("bcik,bckj->bcij", w, z))
    w = torch.zeros_like(w)
    w[..., 1, 4] = 1
    assert_agree("row", global_zzw(w, z)[..., 1, :], z[..., 4, :])


@pytest.mark.parametrize("size", [(4, 8), (8, 4), (3, 5), (2, 1), (1, 4)])
def test_the_global_product_of_rectangles(size):
    """The columns of Ŵ are resized to as many as there are rows: constant rows stay as they are."""
    w, z = maps(size[0], 1).expand(-1, -1, -1, size[1]), maps(*size, seed=2)
    assert_agree("product", global_zzw(w, z), w[..., :1] * z.sum(2, keepdim=True))


def test_a_local_kernel_is_of_the_other_map():
    """The convolution is linear in the second map before the norm; the first one changes the kernel."""
    built = fill(LocalZZW(4, (3, 3), 8, batch_statistics=True, omega=1.0)).double()
    x1, x2 = maps(6, 6, dim=4), maps(6, 6, dim=4, seed=2)
    kernel = built.slow(x1)[0].unsqueeze(1)
    y = F.conv2d(F.conv2d(x2, kernel, padding=1, groups=4), built.mixer.weight, built.mixer.bias)
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)
    assert_agree("output", built(x1, x2), F.gelu((y - mean) / (var + 1e-5).sqrt()))
    assert (built(x1 + maps(6, 6, dim=4, seed=3), x2) - built(x1, x2)).abs().max() > 1e-6


# --- the batch -------------------------------------------------------------------------------------------------------


def test_the_release_depends_on_the_batch_and_the_default_does_not():
    x, others = maps(10, 10, batch=1), maps(10, 10, batch=2, seed=2)
    for batch_statistics in (True, False):
        built = network(batch_statistics=batch_statistics, num_classes=4)
        alone, among = built(torch.cat([x, x]))[:1], built(torch.cat([x, others]))[:1]
        error = (alone - among).abs().max() / alone.abs().max()
        assert error > 1e-2 if batch_statistics else error < 1e-9
        assert ("blocks.0.norm.norm.running_mean" in built.state_dict()) != batch_statistics


def test_running_averages_become_those_of_the_batch():
    """A network that saw one batch many times answers it as the release does."""
    x = maps(10, 10, batch=8)
    built, release = network(num_classes=4), network(batch_statistics=True, num_classes=4)
    expected = release(x)
    assert (built(x) - expected).abs().max() > 0.1 * expected.abs().max()
    for part in built.modules():
        if averages(part):
            part.momentum = 1.0
    with torch.no_grad():
        assert_agree("training", built.train()(x), expected)
    close(built.eval()(x), expected, 1e-2)  # the running variance is the unbiased one


def test_a_running_average():
    built, x = LocalZZW(4, (3, 3), 8).double().train(), maps(6, 6, dim=4)
    built(x, x)
    built(x, x)
    context = built.slow.context
    pooled = F.adaptive_avg_pool2d(x, 3).mean(0).flatten(1).mT
    assert_agree("average", context.running_mean, 0.19 * pooled)
    assert context.num_batches_tracked == 2


def test_averages_stay_in_inference_mode():
    built = network(norm_eval=True).train()
    before = {name: value.clone() for name, value in built.named_buffers()}
    built(maps(10, 10))
    assert all(torch.equal(value, before[name]) for name, value in built.named_buffers())


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_fused_networks_keep_their_kernels(batch_statistics):
    """All of them, but those that depend on the batch."""
    built, x = network(batch_statistics=batch_statistics, num_classes=4), maps(10, 10)
    expected = built(x)
    assert_agree("logits", built.fuse()(x), expected)
    left = {name.split(".")[3] for name, part in built.named_modules() if isinstance(part, SlowNet)}
    assert left == ({"local"} if batch_statistics else set())


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_other_sizes_are_refused():
    built = network(num_classes=4)
    for size in ((10, 12), (12, 12), (9, 10)):
        with pytest.raises(
            ValueError,
            match=rf"square images of 10 x 10 pixels, got {size[0]} x {size[1]}: its kernels .*any_s",
        ):
            built(maps(*size))


def test_any_size():
    """At its own size the network is the same; at others the kernels are resized, and every pixel counts."""
    strict, free = network(num_classes=4), network(any_size=True, num_classes=4)
    assert_agree("logits", free(maps(10, 10)), strict(maps(10, 10)))
    x = maps(6, 14).requires_grad_()
    (free(x).square().sum()).backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()
    assert free.fixed_sizes == {}
    assert {"height", "width"} == {*strict.fixed_sizes[".onnx"]}


def test_patches():
    built = network(patch_size=4, img_size=16, any_size=True)
    assert [tuple(x.shape[1:]) for x in built(maps(16, 18))] == [(12, 4, 5), (12, 4, 5), (24, 4, 5)]
    assert built.blocks[0].layer.slow.size == (4, 4)


def test_sequences():
    built = network(sequence=True, img_size=12, in_channels=2, num_classes=4)
    x = maps(12, dim=2)
    expected = built(x)
    assert expected.shape == (3, 4)
    assert (built(x.flip(2)) - expected).abs().max() > 1e-3 * expected.abs().max()
    built.train()(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in built.parameters())
    layer, seen = built.blocks[0].layer, {}
    layer.interact.register_forward_hook(lambda _, inputs, __: seen.update(out=inputs[0]))
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    layer.rgu1.register_forward_hook(lambda _, __, y: seen.update(first=y))
    layer.rgu2.register_forward_hook(lambda _, inputs, y: seen.update(weights=inputs[0], second=y))
    built.eval()(x)
    assert_agree("weights", seen["weights"], seen["x"] * layer.slow())
    assert_agree("product", seen["out"], seen["weights"] * standardize(seen["first"] + seen["second"]))
    dense = network(sequence=True, img_size=12, in_channels=2)
    assert [x.shape[2:] for x in dense(x)] == dense.map_sizes(3, 4) == [(1, 12)] * 3
    free = network(sequence=True, img_size=12, in_channels=2, any_size=True, num_classes=4)
    assert_agree("logits", free(x), expected)
    assert free(maps(17, dim=2)).shape == (3, 4)
    assert_agree("rows", built(x.unflatten(2, (3, 4))), built(x))
    for wrong, message in (
        (maps(12), r"image must have shape \(B, 2, H, W\), got \(3, 3, 1, 12\)"),
        (maps(13, dim=2), "built for sequences of 12 steps, got 13: "),
    ):
        with pytest.raises(ValueError, match=message):
            built(wrong)


# --- training --------------------------------------------------------------------------------------------------------


def test_losses_by_the_names_of_the_release():
    """Its regularization sums over parameters with "fast" in their names, and convolutions inside a "Kernel"."""
    record = Record("hyperzzw/network")
    built = recorded(slow_loss=0.5, weight_norm=0.1)
    state = record.state_dict()
    assert checkpoint.load(built, state).complete
    fast = [value.norm() for name, value in state.items() if "fast" in name and "Kernel" not in name]
    inside = [
        value.norm() for name, value in state.items() if "Kernel" in name and "weight" in name and value.ndim == 4
    ]
    x, labels = record.inputs["x"].float(), torch.tensor([3, 4])
    found = built.feedback(built(x), labels)
    torch.testing.assert_close(found["norms"], 0.1 * (sum(fast) + 1e-6 * sum(inside)))
    sums = [block.layer.slow()[0].sum(0) for block in built.blocks]
    distances = [F.mse_loss(sums[i], sums[j]) for j in range(5) for i in range(j)]
    torch.testing.assert_close(found["slow"], 0.5 * sum(distances))
    assert len(distances) == 10
    torch.testing.assert_close(found["loss"], found["norms"] + found["slow"])
    assert network(num_classes=4).feedback(None, None) == {}


def test_a_classifier_learns_from_both():
    options = {**SMALL, "slow_loss": 0.5, "weight_norm": 0.1}
    torch.manual_seed(0)
    model = ImageClassifier(dict(type="Terminator", num_classes=4, **options))
    images, labels = maps(10, 10).float(), torch.tensor([0, 1, 2])
    found = model(images, labels, mode="loss")
    said = model.backbone.feedback(None, None)
    torch.testing.assert_close(found["loss"], F.cross_entropy(model.backbone(images), labels) + said["loss"])
    torch.testing.assert_close(model.parse_losses(found)[0], found["loss"])  # MMEngine adds nothing to it
    assert found["slow"] > 0
    assert not found["norms"].requires_grad


def test_the_slow_neural_loss_brings_kernels_together():
    built = network(slow_loss=1.0)
    optimizer = torch.optim.Adam(built.parameters(), 1e-2)
    first = built.feedback(None, None)["slow"].item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = built.feedback(None, None)["loss"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


# --- network ---------------------------------------------------------------------------------------------------------


def test_the_dense_form():
    """One norm for each map, not on the path; a block reads the earlier one that it names."""
    built = network()
    assert levels_changed_by(built, maps(10, 10), "norms.0.weight") == [0]
    assert levels_changed_by(built, maps(10, 10), "blocks.1.layer.mix.weight") == [1, 2]
    part = network(out_indices=(1,))
    account = backbones.load(part, built.state_dict())
    assert account.complete
    assert {"norms.0.weight", "blocks.2.bias"} <= set(account.ignored)
    assert_agree("map", part(maps(10, 10))[0], built(maps(10, 10))[1])


def test_files_of_later_names():
    """The authors renamed a few parameters; a buffer of theirs is left out."""
    record, built = Record("hyperzzw/network"), recorded()
    later = {"slow_net_gc_hi": "slow_net_gc", "slow_net_gs_hi": "slow_net_gs", "bias_p": "fast_bias_p"}
    state = {}
    for name, value in record.state_dict().items():
        for old, new in later.items():
            name = name.replace(old, new)
        state[name] = value
    account = checkpoint.load(built, {**state, "blocks.0.fast_multi_branch.slow_net_g.train_length": torch.zeros(1)})
    assert account.complete
    assert account.ignored == ["blocks.0.fast_multi_branch.slow_net_g.train_length"]
    x = record.inputs["x"].float()
    close(built.eval()(x), record.output(0), 1e-3)


def test_the_authors_files_have_no_running_averages():
    """Loaded into the default network, they leave these to be taken, and the account says so."""
    built = recorded(batch_statistics=False)
    account = backbones.load(built, Record("hyperzzw/network").state_dict())
    assert len(account.missing) == 5 * (2 + 4 * 3)  # of a block's norm, of four norms and contexts
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var") for name in account.missing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dims=(12, 30, 24)), "dims must be multiples of 12, the groups of a block's norm, got 30"),
        (dict(dims=12), "dims must have one entry for each block, got 12"),
        (dict(dims=(12, 24)), "earlier must have one entry for each of the 2 blocks"),
        (dict(earlier=((), (1,), ())), r"earlier: block 1 must read at most two blocks before it, got \(1,\)"),
        (dict(dims=(24, 36, 36), earlier=((), (), (0,))), "block 2 reads 36 channels, which the 24 of block 0 do not"),
        (dict(layers=(1, 2)), "layers must have one entry for each of the 3 blocks"),
        (dict(layers=0), "HyperZZW.layers must be whole, at least 1, got 0"),
        (dict(img_size=(10, 12)), r"img_size must be whole, at least 1, got \(10, 12\)"),
        (dict(kernel_sizes=(3, 4, 5, 7)), "must be four odd numbers"),
        (dict(kernel_sizes=5), "kernel_sizes=5 must be four odd numbers"),
        (dict(omega=-1.0), "HyperZZW.omega must be positive and finite, got -1.0"),
        (dict(omega=math.nan), "HyperZZW.omega must be positive and finite, got nan"),
        (dict(interact_hidden=(16, 0)), "HyperZZW.interact_hidden must be whole, at least 1, got 0"),
        (dict(interact_hidden=(16,)), "interact_hidden must have one entry for each of the 2 kernels"),
        (dict(slow_loss=-1), "slow_loss must be a number of at least 0, got -1"),
        (dict(weight_norm="a"), "weight_norm must be a number of at least 0, got 'a'"),
        (dict(sequence=True, patch_size=2), "patch_size=2 makes patches of images; sequence=True takes 1"),
        (dict(drop_path_rate=0.1), "Terminator has no option 'drop_path_rate'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Terminator(**{**SMALL, **options})


@pytest.mark.parametrize("name", ["hidden", "local_hidden", "channel_hidden"])
def test_bad_widths_of_the_layer(name):
    with pytest.raises(ValueError, match=f"HyperZZW.{name} must be whole, at least 1, got 0"):
        HyperZZW(12, **{name: 0})
    with pytest.raises(TypeError, match=r"HyperZZW\.batch_statistics must be True or False, got 'no'"):
        HyperZZW(12, batch_statistics="no")
