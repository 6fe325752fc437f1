"""The network: the authors' records, what each part is known by, sizes, gradients, bad input."""

import pytest
import torch
from golden_records import Record
from torch import nn

from attlas import checkpoint
from attlas.dense.video.conv_temporal_vad import (
    PART_RULES,
    VARIANTS,
    ClipNorm,
    ConvLSTM,
    ConvTemporalAttention,
    ConvTemporalVAD,
    DecoderLayer,
    EncoderLayer,
    LIConvLSTM,
)
from attlas.dense.video.errors import losses

SMALL = dict(context=2, heads=2, layers=2, dims=(8, 8, 16))


def small(**options):
    return ConvTemporalVAD(**(SMALL | options)).double().eval()


def clips(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double) - 1


def near(got, expected):
    torch.testing.assert_close(got.float(), expected, rtol=1e-4, atol=1e-5)


# --- the authors' records --------------------------------------------------------------------------------------------


class Layers(nn.Module):
    def __init__(self, dim, heads, dropout):
        super().__init__()
        self.enc, self.dec = EncoderLayer(dim, heads, dropout), DecoderLayer(dim, heads, dropout)


def test_layers_equal_the_authors():
    record = Record("conv-temporal-vad/convttrans_operator")
    model = Layers(record.config["d_model"][0], record.config["heads"], record.config["dropout"]).double().eval()
    assert checkpoint.load(model, record.state_dict(), rules=PART_RULES).complete
    assert sum(p.numel() for p in model.parameters()) == record.params
    x, y = record.input("x"), record.input("y")
    memory = model.enc(x, torch.ones(2, 1, 4))
    near(memory, record.output(0))
    near(model.dec(y, memory, torch.ones(2, 3, 3).tril(), torch.ones(2, 1, 4)), record.output(1))


def test_bridge_equals_the_authors():
    record = Record("conv-temporal-vad/li_convlstm_bridge")
    model = LIConvLSTM(record.config["input_channels"], record.config["num_features"]).double()
    assert checkpoint.load(model, record.state_dict(), rules=PART_RULES).complete
    assert sum(p.numel() for p in model.parameters()) == record.params
    found = model(record.input("x").transpose(0, 1), record.input("y").transpose(0, 1))
    for number, states in enumerate(found):
        near(states.transpose(0, 1), record.output(number))


def test_network_equals_the_authors():
    record = Record("conv-temporal-vad/network_gray_16")
    options = dict(in_channels=1, context=record.config["slice_len"], heads=record.config["heads"])
    model = ConvTemporalVAD(**options, mix=record.config["lamda"]).double().eval()
    assert checkpoint.load(model, record.state_dict()).complete
    assert sum(p.numel() for p in model.parameters()) == record.params
    clip = 2 * record.input("clip") - 1
    with torch.no_grad():
        predicted = model(clip)
    near(predicted, record.output(0))
    terms = losses((predicted + 1) / 2, (clip[:, 2:3] + 1) / 2)
    near(0.5 * terms["ssim"] + 0.5 * terms["l1"], record.output(1).reshape(()))


@pytest.mark.parametrize("name", VARIANTS)
def test_counts(name):
    options, count = VARIANTS[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in ConvTemporalVAD(**options).parameters()) == count


# --- properties ------------------------------------------------------------------------------------------------------


def test_encoder_has_no_order_of_time():
    layer = EncoderLayer(8, 2).double().eval()
    x, order = clips(2, 5, 8, 4, 7), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_reversed_time_swaps_the_directions():
    model, other = small(mix=0.7), small(mix=0.3)
    swapped = {"forward_way": "backward_way", "backward_way": "forward_way"}
    renamed = {}
    for name, value in model.state_dict().items():
        first, _, rest = name.partition(".")
        renamed[f"{swapped.get(first, first)}.{rest}"] = value
    other.load_state_dict(renamed)
    clip = clips(2, 7, 1, 8, 12)
    torch.testing.assert_close(other(clip.flip(1)).flip(1), model(clip), rtol=0, atol=1e-12)
    assert (model(clip.flip(1)).flip(1) - model(clip)).abs().max() > 1e-3


def test_attention_is_causal_and_by_hand():
    attention = ConvTemporalAttention(4, 2).double()
    x, mask = clips(1, 4, 4, 5, 3), torch.ones(4, 4).tril()
    out = attention(x, x, mask=mask)
    changed = x.clone()
    changed[:, 2:] += 1
    again = attention(changed, changed, mask=mask)
    assert torch.equal(again[:, :2], out[:, :2])
    assert (again[:, 2:] - out[:, 2:]).abs().amin((0, 2, 3, 4)).min() > 1e-6
    first = attention.out(attention.v(x[:, 0]))  # the first frame sees itself alone
    torch.testing.assert_close(out[:, 0], first)
    q, k, v = (conv(x[0]).unflatten(1, (2, 2)) for conv in (attention.q, attention.k, attention.v))
    scores = torch.einsum("thdyx,shdyx->hts", q, k) / (2 * 5 * 3) ** 0.5
    mixed = torch.einsum("hts,shdyx->thdyx", scores.softmax(2), v).flatten(1, 2)
    torch.testing.assert_close(attention(x, x)[0], attention.out(mixed))


def test_a_query_without_keys_takes_the_mean():
    attention = ConvTemporalAttention(4, 2).double()
    x = clips(1, 3, 4, 4, 4)
    out = attention(x, x, mask=torch.tensor([[0, 0, 0], [1, 1, 1], [1, 1, 1]]))
    torch.testing.assert_close(out[:, 0], attention.out(attention.v(x[0]).mean(0, keepdim=True)))


def test_lstm_by_its_definition():
    lstm = ConvLSTM(3, 16, 3).double()
    x, e = clips(2, 4, 3, 6, 5), clips(2, 4, 16, 6, 5, seed=1)
    for other in (None, e):
        hidden = cell = torch.zeros(2, 16, 6, 5).double()
        expected = []
        for step in range(4):
            third = torch.zeros_like(hidden) if other is None else other[:, step]
            gates = lstm.norm(lstm.conv(torch.cat([x[:, step], hidden, third], 1)))
            i, f, g, o = gates.chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            expected.append(hidden)
        torch.testing.assert_close(lstm(x, other), torch.stack(expected, 1))
    assert lstm.norm.num_groups == 2


@pytest.mark.parametrize("size", [(8, 20), (12, 4), (4, 4)])
@pytest.mark.parametrize("frames", [5, 8])
def test_sizes(size, frames):
    model = small(in_channels=3)
    assert model(clips(2, frames, 3, *size)).shape == (2, frames - 4, 3, *size)


def test_statistics_of_a_clip_alone():
    """Two clips come to what each comes to alone; as released they do not."""
    torch.manual_seed(1)
    pair = torch.cat([clips(1, 6, 1, 8, 12), 0.3 * clips(1, 6, 1, 8, 12, seed=2) + 0.5])
    apart, together = small(statistics="clip"), small()
    together.load_state_dict(apart.state_dict())
    alone = torch.cat([apart(pair[:1]), apart(pair[1:])])
    torch.testing.assert_close(apart(pair), alone)
    torch.testing.assert_close(torch.cat([together(pair[:1]), together(pair[1:])]), alone)
    assert (together(pair) - alone).abs().max() > 1e-3


def test_norm_by_hand():
    x, norm = clips(2, 3, 4, 5, 6), ClipNorm(4).double().eval()
    mean, var = x.mean((0, 1, 3, 4), keepdim=True), x.var((0, 1, 3, 4), keepdim=True, correction=0)
    torch.testing.assert_close(norm(x), (x - mean) / (var + 1e-5).sqrt())
    assert [name for name, _ in norm.named_buffers()] == []


def test_gradients():
    model = small(layers=1, dropout=0.0)
    clip = clips(1, 6, 1, 8, 8).requires_grad_()
    model(clip).square().sum().backward()
    weights = {name: p.grad.abs().max() for name, p in model.named_parameters() if name.endswith("weight")}
    assert min(weights.values()) > 1e-9  # of biases, norms take some out again
    assert all(p.grad is not None for p in model.parameters())
    assert clip.grad.abs().amin((0, 2, 3, 4)).min() > 0  # every frame counts
    lstm = ConvLSTM(1, 8, 3).double()
    inputs = (clips(1, 2, 1, 3, 4).requires_grad_(), clips(1, 2, 8, 3, 4).requires_grad_())
    assert torch.autograd.gradcheck(lstm, inputs)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 5, 1, 6, 8), r"frames are 8 x 6; width and height must be multiples of 4"),
        ((1, 5, 1, 8, 0), r"must be multiples of 4"),
        ((1, 4, 1, 8, 8), r"clips have 4 frames; with context=2 at each end they need 5"),
        ((1, 5, 3, 8, 8), r"they must be \(B, T, 1, H, W\)"),
        ((5, 1, 8, 8), r"they must be \(B, T, 1, H, W\)"),
    ],
)
def test_clips_that_do_not_fit(shape, words):
    with pytest.raises(ValueError, match=words):
        small()(clips(*shape))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(mix=1.5), "mix is 1.5"),
        (dict(dims=(8, 8)), "three numbers"),
        (dict(heads=3), "heads is 3; it must divide the channels, 16"),
        (dict(context=0), "context is 0"),
        (dict(layers=0), "layers is 0"),
        (dict(kernel=4), "kernel is 4; it must be odd"),
        (dict(dims=(4, 8, 16)), "dim is 4"),
        (dict(statistics="running"), "statistics is 'running'"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        ConvTemporalVAD(**(SMALL | options))
