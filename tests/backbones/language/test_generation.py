import pytest
import torch
from networks import fill

from attlas.backbones.language.generation import generate
from attlas.backbones.transnormer import TransNormer


@pytest.fixture
def network():
    return fill(TransNormer(vocabulary=256, dim=16, depth=2, heads=2, hidden=24)).double()


def test_greedy_is_the_likeliest_of_the_whole_sequence(network):
    """The recurrent state gives what reading everything anew gives."""
    tokens = torch.tensor([list(b"def f(")])
    with torch.no_grad():
        for token in generate(network, b"def f(", 20, temperature=0):
            assert token == network(tokens)[0][0, -1].argmax()
            tokens = torch.cat([tokens, token.view(1, 1)], 1)


def test_draws_are_repeatable_and_of_the_likeliest(network):
    first, again, other = (generate(network, b"x", 40, seed=seed).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert generate(network, b"x", 20, top_k=1).tolist() == generate(network, b"x", 20, temperature=0).tolist()
    assert generate(network, b"x", 20, temperature=1e-9).tolist() == generate(network, b"x", 20, temperature=0).tolist()
    assert generate(network, b"x", 0).tolist() == []


def test_draws_have_the_shares_of_the_network(network):
    with torch.no_grad():
        shares = network(torch.tensor([[120]]))[0][0, -1].softmax(0)
    count = 400
    firsts = torch.stack([generate(network, b"x", 1, seed=seed)[0] for seed in range(count)])
    likely = shares.argsort(descending=True)[:64]
    share, expected = torch.isin(firsts, likely).double().mean(), shares[likely].sum()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / count).sqrt()


def test_bad_arguments(network):
    for options, message in [
        (dict(prompt=b""), r"prompt must be bytes or int64 \(N,\), at least one token, got torch\.int64 \(0,\)"),
        (dict(temperature=-1.0), "temperature must be at least 0"),
        (dict(top_k=0), "top_k must be a positive integer"),
        (dict(seed=-1), "seed is -1"),
        (dict(count=-1), "count must be an integer of at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(**{"network": network, "prompt": b"x", "count": 1, **options})
    for options, message in [
        (dict(prompt="x"), r"prompt must be bytes or int64 \(N,\), at least one token, got 'x'"),
        (dict(prompt=None), "prompt must be bytes .*, got None"),
        (dict(temperature="1"), "temperature must be a number, got '1'"),
        (dict(temperature=None), "temperature must be a number, got None"),
    ]:
        with pytest.raises(TypeError, match=message):
            generate(**{"network": network, "prompt": b"x", "count": 1, **options})
    network.embedding.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="its logits are NaN or infinite"):
        generate(network, b"x", 1)
