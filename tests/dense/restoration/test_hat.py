import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from networks import close, fill

from attlas import checkpoint
from attlas.backbones.inspection.costs import PeakMemory
from attlas.backbones.layers import Block, HybridAttention, LayerNorm2d, Mlp, WindowAttention, pair_bias
from attlas.dense.restoration import hat
from attlas.dense.restoration.hat import HAB, HAT, VARIANTS
from attlas.dense.restoration.network import pad_to
from attlas.registry import MIXERS, MODELS

SMALL = dict(dim=12, depths=(2,), heads=2, window=4, compress=3, squeeze=6)


def small(**options):
    torch.manual_seed(0)
    return fill(HAT(**{**SMALL, "scale": 2, **options}))


def picture(*size, channels=3, batch=1):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1))


# --- equal to the authors' -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["network_x2", "network_x4"])
def test_equals_the_authors(case, tmp_path):
    """From a file as the authors save it, whose names and shapes tell the architecture."""
    record = Record(f"hat/{case}")
    tables = {"relative_position_index_SA": torch.zeros(64, 64, dtype=torch.long)}
    torch.save({"params_ema": record.state_dict() | tables}, tmp_path / "hat.pth")
    network = HAT.from_file(tmp_path / "hat.pth").double()
    assert sum(p.numel() for p in network.parameters()) == record.params
    x = record.inputs["x"]
    with torch.no_grad():
        assert (network(x).float() - record.output(0)).abs().max() < 1e-5
        features = network.forward_features(network.conv_first(x - network.mean))[:, :8]
        assert (features.float() - record.output(1)).abs().max() < 1e-5


def _as_rows(block, x, height, width):
    return block(x.unflatten(1, (height, width)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)


def test_a_shifted_block_equals_the_authors():
    record = Record("hat/hab_shifted")
    windows = dict(type="WindowAttention", heads=3, window=8, shift=4)
    block = HAB(24, HybridAttention(24, windows, compress=3, squeeze=6), mlp_ratio=2, drop_path=0)
    assert checkpoint.load(block, record.state_dict(), rules=hat.BLOCK_RULES).complete
    block, x = block.double().eval(), record.inputs["x"]
    assert sum(p.numel() for p in block.parameters()) == record.params
    with torch.no_grad():
        close(_as_rows(block, x, 16, 24), record.output(0), 1e-5)
        channels = block.mixer.channels(x.unflatten(1, (16, 24)).permute(0, 3, 1, 2))
        close(channels[0], record.output(1), 1e-5)


def test_overlapping_windows_equal_the_authors():
    record = Record("hat/ocab")
    mixer = MIXERS.build(dict(type="OverlappingAttention", dim=24, heads=3, window=8, overlap=0.5))
    block = Block(24, mixer, Mlp(24, 2), norm=lambda dim: LayerNorm2d(dim, eps=1e-5))
    assert checkpoint.load(block, record.state_dict(), rules=hat.OVERLAP_RULES).complete
    assert sum(p.numel() for p in block.parameters()) == record.params
    with torch.no_grad():
        close(_as_rows(block.double().eval(), record.inputs["x"], 16, 24), record.output(0), 1e-5)
    # the bias of every pair, by the table of indices that the authors store
    by_index = mixer.table[record.input("rpi_oca").flatten()].view(64, 144, 3).permute(2, 0, 1)
    assert torch.equal(pair_bias(mixer.ordered(), 8, 12), by_index)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters(name):
    options, count = VARIANTS[name]
    with torch.device("meta"):
        network = HAT(**options)
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.scale == int(name[-1])
    found = HAT.options_of(network.state_dict())
    with torch.device("meta"):
        again = HAT(**found)
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in network.state_dict().items()}
    assert found["scale"] == network.scale


# --- windows ---------------------------------------------------------------------------------------------------------


def test_shifted_windows_by_definition():
    """Each pixel attends to the pixels of its window of the shifted grid that are not behind a border of the map."""
    mixer = WindowAttention(4, heads=1, window=4, shift=1).double()
    torch.nn.init.normal_(mixer.table)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    q, k, v = mixer.qkv(x.permute(0, 2, 3, 1)).unflatten(-1, (3, 4)).unbind(-2)
    out = torch.empty_like(q)
    for i in range(8):
        for j in range(8):
            # windows begin at 1 - 4, 1 and 5
            rows, columns = ([p for p in range(8) if (p - 1) // 4 == (place - 1) // 4] for place in (i, j))
            pairs = [(y, x) for y in rows for x in columns]
            logits = torch.stack(
                [
                    q[0, i, j] @ k[0, y, x] / 2 + mixer.table[(i - y + 3) * 7 + j - x + 3, 0]  # Swin's index
                    for y, x in pairs
                ]
            )
            out[0, i, j] = sum(w * v[0, y, x] for w, (y, x) in zip(logits.softmax(0), pairs))
    close(mixer(x), mixer.proj(out).permute(0, 3, 1, 2), 1e-10)


def test_windows_are_equivariant_to_shifts_by_their_side():
    mixer, x = WindowAttention(8, heads=2, window=4), torch.randn(1, 8, 12, 16)
    close(mixer(x.roll((4, 8), (2, 3))), mixer(x).roll((4, 8), (2, 3)), 1e-5)


def test_without_channel_attention_it_is_a_swin_block():
    x = torch.randn(1, 12, 8, 8)
    hybrid = HybridAttention(12, dict(type="WindowAttention", window=4), channel_scale=0)
    torch.testing.assert_close(hybrid(x), hybrid.mixer(x))


def test_only_the_mixer_is_dropped():
    """Channel attention is not: with all branches dropped it is what is left."""
    hybrid = HybridAttention(12, "WindowAttention", drop_path=0.999999).train()
    x = torch.randn(1, 12, 8, 8)
    torch.testing.assert_close(hybrid(x), 0.01 * hybrid.channels(x))


def test_bad_options_of_windows():
    with pytest.raises(ValueError, match=r"OverlappingAttention: overlap=0\.5 times window=6, .* must be even"):
        MIXERS.build(dict(type="OverlappingAttention", dim=8, window=6))
    with pytest.raises(ValueError, match=r"WindowAttention: window=4 must be at least 1, and shift=4 lie in 0\.\."):
        WindowAttention(8, window=4, shift=4)
    with pytest.raises(ValueError, match="WindowAttention: dim=8 is not divisible by heads=3"):
        WindowAttention(8, heads=3)
    with pytest.raises(ValueError, match="ChannelAttention: squeeze=0"):
        HybridAttention(8, squeeze=0)


# --- any size --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_any_size(scale):
    network = small(scale=scale)
    with torch.no_grad():
        for height, width in ((8, 8), (9, 5), (3, 2), (1, 1), (1, 11)):
            y = network(picture(height, width))
            assert y.shape == (1, 3, scale * height, scale * width)
            assert torch.isfinite(y).all()


def test_padding_is_reflection():
    """As the authors' tools fill an image up, below and on the right; a side too short for it repeats its last row."""
    network, x = small(), picture(10, 13)
    with torch.no_grad():
        close(network(x), network(F.pad(x, (0, 3, 0, 2), "reflect"))[..., :20, :26], 1e-6)
    assert pad_to(torch.arange(3.0).view(1, 1, 1, 3), 8)[0, 0, 7].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    assert pad_to(torch.arange(5.0).view(1, 1, 1, 5), 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]


def test_nothing_of_a_size_is_in_the_state():
    network = small()
    before = set(network.state_dict())
    with torch.no_grad():
        for size in (4, 20, 4):
            network(picture(size, size))
    assert set(network.state_dict()) == before
    assert all(name.endswith(("weight", "bias", "table")) for name in before)


def test_grey_and_denoising():
    """The body counts in a task of the same size; the released code returns its input there."""
    network, x = small(scale=1, in_channels=1), picture(9, 7, channels=1)
    assert HAT.options_of(network.state_dict())["scale"] == 1
    with torch.no_grad():
        before = network(x)
        network.layers[0].blocks[0].mlp.fc1.weight += 0.5
        assert (network(x) - before).abs().max() > 1e-4
        torch.nn.init.zeros_(network.conv_last.weight)
        torch.nn.init.zeros_(network.conv_last.bias)
        torch.testing.assert_close(network(x), x)  # it predicts what is to be added


# --- learning, and hosting -------------------------------------------------------------------------------------------


def test_every_parameter_learns():
    network = small(drop_path_rate=0.1).train()
    network(picture(7, 9, batch=2)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert network.layers[0].overlap.mixer.table.grad.abs().min() > 0


@pytest.mark.parametrize("mixer", [None, "SHSA"])
def test_checkpointing_takes_less_memory_for_the_same_gradients(mixer):
    """With stochastic depth, whose draws are repeated, and batch norms (SHSA), which must not count a batch twice."""

    def step(**options):
        network = small(dim=24, depths=(4, 4), drop_path_rate=0.2, mixer=mixer, **options).train()
        x = picture(16, 20, batch=2)
        torch.manual_seed(3)
        with PeakMemory([x, *network.parameters(), *network.buffers()]) as memory:
            loss = network(x).square().mean()
            loss.backward()
        return loss, {name: p.grad for name, p in network.named_parameters()}, network.state_dict(), memory.peak

    loss, gradients, state, most = step()
    again, others, kept, less = step(grad_checkpointing=True)
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert all(torch.equal(state[name], kept[name]) for name in state)
    assert less < 0.6 * most


def test_an_inference_goes_strip_by_strip(monkeypatch):
    network, x = small(depths=(2, 1)).eval(), picture(24, 20, batch=2)
    whole = network(x)  # with gradients
    for strip in (1, 100, 300):
        monkeypatch.setattr(hat, "STRIP", strip)
        with torch.no_grad():
            close(network(x), whole, 1e-6)
    block, x, peaks = HAB(12, torch.nn.Identity(), 4.0, 0.0).eval(), torch.randn(1, 12, 32, 32), []
    before = x.clone()
    for strip in (64, 1 << 30):
        monkeypatch.setattr(hat, "STRIP", strip)
        with torch.no_grad(), PeakMemory([x, *block.parameters()]) as memory:
            block(x)
        peaks.append(memory.peak)
    assert peaks[0] < 0.35 * peaks[1]
    assert torch.equal(x, before)  # what is changed in place is not the input


@pytest.mark.slow
def test_a_large_image_through_a_wide_network():
    """512 x 512 through a group of HAT-L in less than 3 GB, libraries included (its users' report: 20 GB). The other
    groups have the same peak, and weights of 150 MB."""
    code = """
import re, torch
from pathlib import Path
from attlas.dense.restoration.hat import HAT
torch.set_num_threads(1)
network = HAT(scale=2, depths=(2,)).eval()
with torch.inference_mode():
    assert network(torch.rand(1, 3, 512, 512)).shape == (1, 3, 1024, 1024)
# not getrusage's ru_maxrss, which begins with the peak of the process that started this one
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 3e9 - 150e6


@pytest.mark.parametrize("training", [False, True])
def test_memory_is_linear_in_the_number_of_pixels(training):
    network = small().train(training)

    def peak(side):
        x = picture(side, side)
        with torch.set_grad_enabled(training), PeakMemory([x, *network.parameters()]) as memory:
            y = network(x)
            if training:
                y.sum().backward()
        return memory.peak

    small_peak, large_peak = peak(32), peak(64)
    assert large_peak < 4.1 * small_peak


def test_it_learns_a_picture():
    network, x = small().train(), picture(8, 8)
    target = F.interpolate(x, scale_factor=2, mode="bicubic")
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = F.l1_loss(network(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("place", ["mixer", "overlap_mixer"])
@pytest.mark.parametrize("mixer", sorted(MIXERS.module_dict))
def test_any_mixer_restores(mixer, place):
    network = small(dim=64, depths=(1,), compress=24, **{"overlap_mixer": "none", place: mixer}).train()
    y = network(picture(9, 5, batch=2))
    assert y.shape == (2, 3, 18, 10)
    y.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    hosts = [module for module in network.modules() if type(module) is MIXERS.get(mixer)]
    assert hosts  # it stands where it was asked for


@pytest.mark.parametrize("dim", [144, 180])
@pytest.mark.parametrize("mixer", sorted(MIXERS.module_dict))
def test_any_mixer_has_the_width_of_published_networks(mixer, dim):
    """By its defaults, or by the option that its error names."""

    def build(options):
        with torch.device("meta"):
            return HAT(dim=dim, depths=(1,), mixer=options, overlap_mixer=options)

    try:
        build(mixer)
    except ValueError as error:
        others = dict(fit=True) if "fit=True" in str(error) else dict(heads=6, groups=6, order=3)
        options = {name: n for name, n in others.items() if name in str(error)}
        if not options and "must be divisible by 8" in str(error):
            return  # no option fits the width of 180
        build(dict(type=mixer, **options))


def test_a_mixer_at_the_end_of_a_group():
    network = MODELS.build(dict(type="attlas.HAT", **SMALL, overlap_mixer=dict(type="RALA", heads=3)))
    assert type(network.layers[0].overlap.mixer) is MIXERS.get("RALA")
    with pytest.raises(ValueError, match=r"lacks layers\.0\.overlap\.mixer\.table"):
        HAT.options_of(network.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    network, x = small(), picture(8, 8)
    with torch.no_grad():
        exact = network(x)
        half = network.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    close(half, exact, 0.05)


def test_exports():
    network, x = small(), picture(8, 12)
    program = torch.export.export(network, (x,))
    close(program.module()(x), network(x), 1e-5)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input():
    network = small()
    with pytest.raises(ValueError, match=r"HAT: x must have shape \(B, 3, H, W\), none of them 0, got \(1, 1, 8, 8\)"):
        network(picture(8, 8, channels=1))
    with pytest.raises(ValueError, match="none of them 0"):
        network(torch.zeros(1, 3, 0, 8))
    with pytest.raises(TypeError, match=r"floating point, in \[0, 1\], got torch.uint8"):
        network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="scale=5 must be 1, 3 or a power of two"):
        HAT(scale=5)
    for options in (dict(scale=2.0), dict(scale=True), dict(in_channels=0), dict(window=0), dict(dim=12.0)):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"HAT: {name}={value!r} must be a whole number from 1"):
            HAT(**options)
    for name in ("mixer", "overlap_mixer"):
        with pytest.raises(ValueError, match=f"HAT: {name}={{'heads': 4}} has no type"):
            HAT(**{name: dict(heads=4)})
    with pytest.raises(ValueError, match=r"heads=\[6, 6\] must be one number, or one for each of the 1 groups"):
        HAT(depths=(2,), heads=(6, 6))
    with pytest.raises(ValueError, match="must be one number of blocks"):
        HAT(depths=())


def test_a_file_of_another_scale_or_network():
    state = small(scale=4).state_dict()
    with pytest.raises(ValueError, match=r"The file looks like HAT\(scale=4, in_channels=3, dim=12, depths=\(2,\)"):
        checkpoint.load(small(), state)
    with pytest.raises(ValueError, match=r"no state dict of HAT with its own attention: it lacks conv_first\.weight"):
        HAT.from_file({"params_ema": {"conv.weight": torch.zeros(3)}})


def test_its_own_files_come_back(tmp_path):
    network, x = small(scale=3, heads=2, overlap=1.0, qkv_bias=False), picture(5, 6)
    checkpoint.save(tmp_path / "hat.safetensors", network.state_dict())
    with torch.no_grad():
        assert torch.equal(HAT.from_file(tmp_path / "hat.safetensors")(x), network(x))


def test_a_hidden_width_that_no_ratio_of_floats_hits(tmp_path):
    """60 * (123 / 60) is below 123."""
    network = small(dim=60, mlp_ratio=123.5 / 60)
    assert network.layers[0].blocks[0].mlp.fc1.out_features == 123
    checkpoint.save(tmp_path / "hat.safetensors", network.state_dict())
    assert HAT.from_file(tmp_path / "hat.safetensors").layers[0].overlap.mlp.fc1.out_features == 123
