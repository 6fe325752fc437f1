"""What characterizes the NPRF mixer: biases that follow the map, class tokens, and a table for every size."""

import pytest
import torch
from networks import fill

from attlas import backbones
from attlas.backbones.mixers.nprf import NPRFAttention, random_directions
from attlas.registry import MIXERS


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(**options):
    """With biases, which begin as zeros."""
    mixer = fill(NPRFAttention(16, heads=2, num_features=8, **options)).double()
    torch.nn.init.normal_(mixer.rel_bias)
    return mixer


FORMS = [{}, dict(scan="row"), dict(causal=True), dict(scan="row", causal=True), dict(class_token=True)]


@pytest.mark.parametrize("options", FORMS)
def test_maps_are_what_it_sums(options):
    """The weights of a place, with the values, are its output; they sum to 1."""
    mixer, x = filled(size=(4, 5), **options), normal(2, 16, 3, 6)
    tokens = normal(2, 2, 16, seed=1) if options.get("class_token") else None
    given = (x,) if tokens is None else (x, tokens)
    y = mixer(*given) if tokens is None else mixer(*given)[0]
    for place in ((0, 0), (1, 4), (2, 5)):
        maps = mixer.attention_maps(x, place, *given[1:])
        rows = maps.flatten(2)
        _, _, v = mixer._split(x.flatten(2).mT)
        out = (rows[:, :, None] @ v).squeeze(2)
        if tokens is not None:
            _, _, v = mixer._split(tokens)
            alone = 1 - rows.sum(2)
            assert ((alone > 0) & (alone < 1)).all()
            continue
        torch.testing.assert_close(rows.sum(2), torch.ones_like(rows[..., 0]))
        torch.testing.assert_close(mixer.proj(out.flatten(1)), y[:, :, place[0], place[1]])


@pytest.mark.parametrize("scan", ["grid", "row"])
def test_causal_in_the_order_of_rows(scan):
    mixer, x = filled(size=(3, 4), scan=scan, causal=True), normal(1, 16, 3, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x).sum(1).flatten(), x)
    seen = jacobian.abs().sum((1, 2)).flatten(1) > 1e-12
    assert torch.equal(seen, torch.ones(12, 12).tril().bool())


def test_a_shifted_bias_is_another_map_but_a_constant_is_none():
    mixer, x = filled(), normal(1, 16, 6, 5)
    y = mixer(x)
    with torch.no_grad():
        mixer.rel_bias += 3.0
        torch.testing.assert_close(mixer(x), y)
        mixer.rel_bias.copy_(mixer.rel_bias.flip(2))
        mirrored = mixer(x.flip(3)).flip(3)
    torch.testing.assert_close(mirrored, y)  # the mirrored map under mirrored biases


def test_a_local_bias_is_a_local_attention():
    """The sharpness that unit length takes comes back by the biases."""
    mixer, x = filled(size=9), normal(1, 16, 9, 9)
    rows = torch.arange(-8.0, 9).square()
    with torch.no_grad():
        mixer.rel_bias.copy_(-(rows[:, None] + rows) * 3)
    maps = mixer.attention_maps(x, (4, 4))
    assert (maps[..., 3:6, 3:6].sum((2, 3)) > 0.99).all()


@pytest.mark.parametrize("scan", ["grid", "row"])
def test_the_table_is_resized(scan):
    """The middle stays the middle, and a table of its own size is taken as it is."""
    mixer = filled(size=(5, 7), scan=scan)
    assert torch.equal(mixer.biases(5, 7), mixer.rel_bias)
    with torch.no_grad():
        mixer.rel_bias.zero_().flatten(1)[:, mixer.rel_bias[0].numel() // 2] = 1
    for size in ((9, 4), (14, 14), (1, 1)):
        biases = mixer.biases(*size).flatten(1)
        assert torch.equal(biases.argmax(1), torch.full((2,), biases.shape[1] // 2))


@pytest.mark.parametrize("scan", ["grid", "row"])
def test_a_causal_table_is_resized_without_what_is_behind(scan):
    mixer, x = filled(size=(4, 5), scan=scan, causal=True), normal(1, 16, 7, 9)
    expected = mixer(x)
    with torch.no_grad():
        table = mixer.rel_bias.flatten(1)
        table[:, table.shape[1] // 2 + 1 :] = 10.0
    torch.testing.assert_close(mixer(x), expected)


def test_class_tokens():
    """Their biases are of three kinds of pairs, and each counts; without tokens nobody reads them."""
    mixer, x, tokens = filled(class_token=True), normal(2, 16, 5, 4), normal(2, 3, 16, seed=1)
    y, out = mixer(x, tokens)
    assert (y.shape, out.shape) == (x.shape, tokens.shape)
    with torch.no_grad():
        mixer.token_bias[:, 0] = -torch.inf  # no pixel looks at a token
        torch.testing.assert_close(mixer(x, tokens)[0], mixer(x))
        torch.testing.assert_close(mixer(x, tokens)[1], out)
        mixer.token_bias[:, 1] = -torch.inf  # and no token at a pixel
        alone = mixer(x, tokens)[1]
        torch.testing.assert_close(mixer(2 * x, tokens)[1], alone)
    assert (alone - out).abs().max() > 1e-3


def test_in_a_transformer_with_a_class_token():
    mixers = dict(type="NPRFAttention", num_features=8, class_token=True)
    network = backbones.Isotropic(32, 2, mixers=mixers, img_size=64, patch_size=8, registers=1, num_classes=3)
    network(torch.randn(2, 3, 50, 70)).logsumexp(1).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    with pytest.raises(ValueError, match="no mixer from that block on takes tokens"):
        backbones.Isotropic(32, 2, mixers="NPRFAttention", num_classes=3)


def test_directions():
    torch.manual_seed(0)
    block = random_directions(16, 8).double()
    products = torch.nn.functional.normalize(block, dim=1)
    for half in products.split(8):
        torch.testing.assert_close(half @ half.mT, torch.eye(8, dtype=torch.float64), atol=1e-6, rtol=0)
    many = torch.stack([random_directions(8, 8) for _ in range(2000)])
    assert many.mean((0, 1)).abs().max() < 0.05
    assert (many.square().mean((0, 1)) - 1).abs().max() < 0.05
    assert random_directions(5, 8, orthogonal=False).shape == (5, 8)
    mixer = NPRFAttention(16, heads=2, num_features=9, shared=False)
    assert mixer.features.shape == (2, 9, 8)
    assert not torch.equal(*mixer.features)
    again = NPRFAttention(16, heads=2, num_features=9, shared=False)
    again.load_state_dict(mixer.state_dict())  # with the directions
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(again(x), mixer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    mixer, x = fill(NPRFAttention(32)), torch.randn(2, 32, 9, 14)
    expected = mixer(x)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(mixer(x).float(), expected, atol=0.05, rtol=0.05)
    got = mixer.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=0), "NPRFAttention.size must be whole, at least 1, got 0"),
        (dict(size="14"), "NPRFAttention.size must be whole, at least 1, got '14'"),
        (dict(size=(3,)), r"NPRFAttention.size must have one entry for each of the 2 sides, got \(3,\)"),
        (dict(num_features=0), "NPRFAttention.num_features must be whole, at least 1, got 0"),
        (dict(num_features=1.5), "NPRFAttention.num_features must be whole, at least 1, got 1.5"),
        (dict(scan="column"), "scan='column' must be 'grid' or 'row'"),
        (dict(form="slow"), r"form='slow' must be one of \('auto', 'fft', 'dense'\)"),
        (dict(causal=True, class_token=True), "class_token=True stands before and behind all pixels, got causal=True"),
        (dict(heads=5), "NPRFAttention: dim=16 is not divisible by heads=5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS.build(dict(type="NPRFAttention", dim=16, **options))


@pytest.mark.parametrize("options", [FORMS[0], pytest.param(FORMS[1], marks=pytest.mark.slow)])
def test_exports(options, tmp_path):
    """A free height and width go through torch.export, where it is one node, and ONNX gets the definition."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from attlas.kernels.dispatch import decompositions

    mixer, x = fill(NPRFAttention(32, size=(6, 5), **options)).eval(), torch.randn(1, 32, 9, 7)
    torch.nn.init.normal_(mixer.rel_bias)
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(mixer, (x,), dynamic_shapes=[{2: free, 3: free}])
    other = torch.randn(1, 32, 8, 12)
    torch.testing.assert_close(program.module()(other), mixer(other))
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    nodes = [str(node.target) for graph in graphs for node in graph.nodes]
    assert nodes.count("attlas.nprf_attention.default") == 1
    program = program.run_decompositions(decompositions())
    torch.onnx.export(program, (x,), tmp_path / "mixer.onnx", dynamo=True, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "mixer.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), mixer(other), atol=1e-4, rtol=1e-4)
