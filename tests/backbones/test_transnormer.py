"""What characterizes TransNormerLLM: a causal network whose decoding state does not grow, and its authors' files."""

import pytest
import torch
from networks import fill

from attlas import checkpoint
from attlas.backbones import transnormer
from attlas.backbones.transnormer import TransNormer
from attlas.registry import MODELS

SMALL = dict(vocabulary=11, dim=16, depth=2, heads=2, hidden=24)


def tokens(batch=2, length=70):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", transnormer.VARIANTS)
def test_parameters(name):
    """To the digit: 5 matrices C x C and 3 of the SGLU in each layer, the embedding, and θ of the first layer."""
    with torch.device("meta"):
        network = transnormer.create(name)
        layers = sum(p.numel() for p in network.layers.parameters()) - network.dim
    assert layers == {"transnormerllm_385m": 333_447_168, "transnormerllm_1b": 889_192_448}[name]
    assert sum(p.numel() for p in network.parameters()) == transnormer.PARAMS[name]
    assert transnormer.PARAMS[name] == layers + network.dim + network.vocabulary * network.dim


def test_other_vocabulary():
    with torch.device("meta"):
        network = transnormer.create("transnormerllm_385m", vocabulary=64_000, tied=False)
    assert sum(p.numel() for p in network.parameters()) == 333_447_168 + 1024 + 2 * 64_000 * 1024
    with pytest.raises(ValueError, match="Did you mean 'transnormerllm_1b'"):
        transnormer.create("transnormerllm_1B")


@pytest.mark.parametrize("form", ["tnl", "transnormer"])
def test_decoding_token_by_token(form):
    """The same logits, and a state whose size is that of one token's."""
    network, ids = fill(TransNormer(**SMALL, form=form)).double(), tokens()
    expected, last = network(ids)
    with torch.no_grad():
        logits, state = network(ids[:, :60])
        size = sum(x.numel() for x in network(ids[:, :1])[1].layers)
        rows = [logits]
        for i in range(60, 70):
            logits, state = network(ids[:, i : i + 1], state)
            assert sum(x.numel() for x in state.layers) == size
            rows.append(logits)
    torch.testing.assert_close(torch.cat(rows, 1), expected)
    assert state.position == last.position == 70


def test_causality():
    network, ids = fill(TransNormer(**SMALL)).double(), tokens()
    changed = ids.clone()
    changed[:, 30] = (changed[:, 30] + 1) % 11
    difference = (network(ids)[0] - network(changed)[0]).abs().sum(-1)
    assert not difference[:, :30].any()
    assert (difference[:, 30:40] > 0).all()


@pytest.mark.parametrize(
    ("embedding", "layers", "wrapper"),
    [("model.embed_tokens", "model.layers", ""), ("transnormer.wte", "transnormer.h", "_orig_mod.")],
)
def test_names_of_the_authors(embedding, layers, wrapper):
    network = fill(TransNormer(**SMALL))
    state = {
        wrapper + name.replace("embedding", embedding).replace("layers.", f"{layers}."): value
        for name, value in network.state_dict().items()
    }
    state[f"{wrapper}lm_head.weight"] = network.embedding.weight
    other = TransNormer(**SMALL)
    account = checkpoint.load(other, state)
    assert account.complete
    assert account.ignored == ["head.weight"]
    torch.testing.assert_close(other(tokens())[0], network(tokens())[0])


def test_a_last_layer_of_its_own():
    network = fill(TransNormer(**SMALL, tied=False))
    with pytest.raises(ValueError, match="a last layer other than its embedding: build with tied=False"):
        checkpoint.load(TransNormer(**SMALL), network.state_dict())
    other = TransNormer(**SMALL, tied=False)
    assert checkpoint.load(other, network.state_dict()).complete
    torch.testing.assert_close(other(tokens())[0], network(tokens())[0])


def test_a_config_builds_it():
    network = MODELS.build(dict(type="TransNormer", **SMALL, lrpe=(0, 1), scale_embedding=False))
    network(tokens())[0].logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_bad_arguments():
    for options, message in [
        (dict(heads=3), "dim=16 is not divisible by heads=3"),
        (dict(depth=0), "TransNormer: depth=0 must be a positive integer"),
        (dict(lrpe=0), r"lrpe=0 must be a sequence of layers, such as \(0,\)"),
        (dict(lrpe=(0.0,)), r"lrpe=\(0\.0,\) must be layers from 0 to 1, got 0\.0"),
        (dict(lrpe=(2,)), r"lrpe=\(2,\) must be layers from 0 to 1, got 2"),
        (dict(lrpe=(1,), form="tnl"), r"lrpe=\(1,\) belongs to form='transnormer'"),
        (dict(form="gla"), "form is 'gla'"),
    ]:
        with pytest.raises(ValueError, match=message):
            TransNormer(**{**SMALL, **options})
    network = TransNormer(**SMALL)
    _, state = network(tokens(3))
    for bad, message in [
        ((tokens().int(),), r"tokens must be int64 of shape \(B, N\), none of them 0, got torch\.int32 \(2, 70\)"),
        ((tokens(2, 0),), r"got torch\.int64 \(2, 0\)"),
        ((tokens(), state), r"state must have shape \(B, heads, d, e\), here \(2, 2, 16, 8\), got \(3, 2, 16, 8\)"),
        ((tokens(), state.layers), "state must be a State of 2 layers"),
    ]:
        with pytest.raises(ValueError, match=message):
            network(*bad)
    with pytest.raises(IndexError, match=r"tokens must lie in 0\.\.10, got values from -1 to 9"):
        network(tokens() - 1)
