"""UFC: the authors' results, counts, costs in tiles, and what characterizes each part."""

import pytest
import torch
from golden_records import Record
from torch import nn

from attlas.dense.matching import ufc
from attlas.dense.matching.ufc import (
    UFC,
    VARIANTS,
    Conv4d,
    Encoder4D,
    UFCLayer,
    cosine_cost,
    cost_encoder,
    cycle_error,
    flow_of,
    linear_attention,
    pooled_costs,
    soft_argmax,
    stacked,
    swap,
    unit_grid,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(**options):
    return UFC(**dict(in_channels=(6, 5, 4), cost_size=(2, 3), dim=8, heads=2, depths=(1, 1, 1)) | options)


def maps(network, seed, batch=1):
    rows, columns = network.cost_size
    return [
        draw(batch, c, s * rows, s * columns, seed=seed + level).to(network.layers[0][0].pos_embed)
        for level, (c, s) in enumerate(zip(network.in_channels, network.strides))
    ]


# --- the authors' results --------------------------------------------------------------------------------------------


def test_conv4d_equals_the_authors():
    record = Record("ufc/conv4d_stride2")
    model = Encoder4D((2, 3), kernel=3, stride=2, padding=1).double()
    model.load_state_dict(record.state_dict())
    torch.testing.assert_close(model(record.input("x")).float(), record.output(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "heads", "stride"), [("layer_stride1", 2, 1), ("layer_stride2", 4, 2)])
def test_a_layer_equals_the_authors(name, heads, stride):
    record = Record(f"ufc/{name}")
    model = UFCLayer(16, heads, 4, stride).double()
    model.load_state_dict(record.state_dict())
    assert sum(p.numel() for p in model.parameters()) == record.params
    with torch.no_grad():
        outputs = model(*(record.input(key) for key in ("corr", "src", "trg")))
    for number, output in enumerate(outputs):
        torch.testing.assert_close(output.float(), record.output(number), atol=1e-4, rtol=0)


def test_the_network_equals_the_authors():
    """In float32, as they ran it: where all of a query is below -17, elu + 1 keeps no digit there, and in float64 it
    does; the record has such queries."""
    record = Record("ufc/network_small")
    model = UFC((24, 16, 12), 4, dim=16, heads=2)
    model.load_state_dict(record.state_dict())
    assert sum(p.numel() for p in model.parameters()) == record.params
    views = [record.input(f"f{level}").float() for level in range(3)]
    with torch.no_grad():
        found = model([view[0::2] for view in views], [view[1::2] for view in views])
        there, back = model.match(found)
        cost = found.mean_cost()
    both = [torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(found.source, found.target)]
    # what the code calls "target to source" lies on the source's grid and points into the target
    expected = [flow_of(there.places), flow_of(back.places), both[0], both[2][:, :, ::2, ::2]]
    for number, output in enumerate([*expected, cost[:, :, ::4, ::4, ::2, ::2]]):
        torch.testing.assert_close(output, record.output(number), atol=1e-3, rtol=0)


def test_counts():
    options, parameters = VARIANTS["ufc_coponerf"]
    with torch.device("meta"):
        model = UFC(**options)
        counted = sum(p.numel() for p in model.parameters())
        layers = [sum(p.numel() for p in layer.parameters()) for level in model.layers for layer in level]
    assert counted == parameters == 12_519_792
    assert layers == [2_423_264, 2_423_264, 2_447_840, 2_447_840, 2_546_656]
    assert sum(p.numel() for p in model.proj_feat.parameters()) == 230_144
    assert sum(p.numel() for p in model.embedding.parameters()) == 784


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [1, 2**20])
@pytest.mark.parametrize("stride", [2, 4])
def test_pooled_costs_are_those_of_the_whole_cost(stride, tile, monkeypatch):
    monkeypatch.setattr(ufc, "TILE", tile)
    a, b = draw(2, 5, 8, 12).requires_grad_(), draw(2, 5, 4, 8, seed=1).requires_grad_()
    encoder = cost_encoder(3, stride).double()
    whole, tiled = encoder(cosine_cost(a, b)), encoder.of_maps(a, b)
    torch.testing.assert_close(tiled, whole)
    weights = draw(*whole.shape, seed=2)
    expected = torch.autograd.grad((whole * weights).sum(), (a, b))
    torch.testing.assert_close(torch.autograd.grad((tiled * weights).sum(), (a, b)), expected)


def test_no_tile_is_larger_than_asked(monkeypatch):
    """At 64 x 64 positions the cost has 64^4 numbers; what is made at once has a sixteenth of a million."""
    sizes, matmul = [], torch.Tensor.__matmul__

    def spy(a, b):
        product = matmul(a, b)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(ufc, "TILE", 2**16)
    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    a, b = torch.randn(1, 4, 32, 32), torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        pooled_costs(a, b, 4)
        soft_argmax(a, b)
    assert max(sizes) <= 2 * 2**16 < 32**4


def test_soft_argmax_of_tiles_with_gradients(monkeypatch):
    a, b = draw(2, 5, 3, 4).requires_grad_(), draw(2, 5, 2, 5, seed=1).requires_grad_()
    seen = torch.ones(2, 2, 5, dtype=torch.bool)
    seen[0, 0, 1:3] = False
    logits = (a.flatten(2).transpose(1, 2) @ b.flatten(2)) / 0.5
    weights = logits.masked_fill(~seen.flatten(1)[:, None], float("-inf")).softmax(-1)
    expected = (weights @ unit_grid(2, 5, b)).transpose(1, 2).unflatten(2, (3, 4))
    monkeypatch.setattr(ufc, "TILE", 7)
    found = soft_argmax(a, b, 0.5, seen)
    torch.testing.assert_close(found.places, expected)
    torch.testing.assert_close(found.peak.flatten(1), weights.amax(-1))
    assert torch.autograd.gradcheck(lambda x, y: soft_argmax(x, y, 0.5, seen).places, (a, b))


def test_a_peak_gives_its_place():
    """Features of one position each: the cost is a permutation, and the flow that of its peaks."""
    rows, columns = 3, 5
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))
    features = torch.eye(rows * columns, dtype=torch.float64)
    source = features.view(1, -1, rows, columns)
    target = features[:, order].view(1, -1, rows, columns)
    found = soft_argmax(source, target)
    inverse = order.argsort()
    moves = flow_of(found.places)[0].flatten(1)
    start = torch.arange(rows * columns)
    torch.testing.assert_close(moves[0], (inverse % columns - start % columns).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(moves[1], (inverse // columns - start // columns).double(), atol=1e-6, rtol=0)
    assert (found.peak > 0.999).all()
    back = soft_argmax(target, source)
    assert cycle_error(found.places, back.places).max() < 1e-6


def test_the_mean_of_resized_costs_is_one_product():
    levels = [draw(1, 4, 2, 3), draw(1, 4, 4, 6, seed=1)], [draw(1, 4, 2, 3, seed=2), draw(1, 4, 4, 6, seed=3)]
    total = 0
    for a, b in zip(*levels):
        cost = cosine_cost(a, b)
        small_a, small_b = cost.shape[2:4], cost.shape[4:]
        cost = ufc.resized(cost.reshape(1, -1, *small_b), (4, 6)).view(1, 1, *small_a, 4, 6)
        cost = swap(ufc.resized(swap(cost).reshape(1, -1, *small_a), (4, 6)).view(1, 1, 4, 6, 4, 6))
        total = total + cost / 2
    a, b = (stacked(side).flatten(2) for side in levels)
    torch.testing.assert_close((a.transpose(1, 2) @ b).view_as(total), total)


def test_pooling_refuses_what_its_stride_does_not_divide():
    with pytest.raises(ValueError, match="stride=2: it must divide"):
        pooled_costs(draw(1, 3, 4, 5), draw(1, 3, 4, 4), 2)
    with pytest.raises(ValueError, match="two branches"):
        Conv4d(1, 1, kernel=3, stride=2, padding=0).double()(draw(1, 1, 5, 5, 5, 5))
    with pytest.raises(ValueError, match="leaves no position"):
        soft_argmax(draw(1, 3, 2, 2), draw(1, 3, 2, 2), seen=torch.zeros(1, 2, 2, dtype=torch.bool))


# --- a layer ---------------------------------------------------------------------------------------------------------


def test_linear_attention_is_the_explicit_product():
    q, k, v = draw(2, 3, 7, 4), draw(2, 3, 9, 4, seed=1), draw(2, 3, 9, 5, seed=2)
    weights = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).transpose(-1, -2)
    expected = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(linear_attention(q, k, v), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_costs_may_be_resized_behind_what_is_linear(stride):
    """Self-attention against its definition, in which costs are resized first, on a cost that is not square."""
    heads, rows, columns = 2, 2, 3
    layer = UFCLayer(8, heads, (rows, columns), stride).double()
    cost, x = draw(2, heads, rows, columns, rows, columns), draw(2, stride**2 * rows * columns, 8, seed=1)

    def up(costs):
        return ufc.resized(costs.permute(0, 1, 4, 5, 2, 3).flatten(1, 3), layer.size).flatten(2).transpose(1, 2)

    def by_head(y):
        return y.unflatten(2, (heads, -1)).transpose(1, 2)

    features = layer.norm1(x)
    joint = torch.cat([up(cost), features], dim=-1)
    position = layer.pos_embed.transpose(1, 2)
    queries, keys = (by_head(project(joint)) + position for project in (layer.q_proj, layer.k_proj))
    message = linear_attention(queries, keys, by_head(layer.v_proj(features)))
    costs = linear_attention(queries, keys, by_head(up(layer.v_proj_corr(cost))))
    costs = costs.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, layer.size)
    costs = ufc.resized(costs, (rows, columns)).unflatten(1, (heads, rows, columns)).permute(0, 1, 4, 5, 2, 3)
    expected = x + message.transpose(1, 2).flatten(2)
    expected = expected + layer.mlp(layer.norm2(expected), layer.size)
    expected_cost = cost + costs
    expected_cost = expected_cost + layer.mlp_corr(expected_cost)
    got_cost, got = layer.attend_self(cost, x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got_cost, expected_cost)


@pytest.mark.parametrize("tied", [True, False])
def test_exchanged_images_exchange_the_results_if_the_convolutions_are_tied(tied):
    network = small().double().eval()
    if tied:
        for module in network.modules():
            if isinstance(module, Conv4d):
                module.supp_conv.load_state_dict(module.query_conv.state_dict())
    a, b = maps(network, 0), maps(network, 9)
    with torch.no_grad():
        one, other = network(a, b), network(b, a)
    same = all(torch.allclose(x, y) for x, y in zip(one.source, other.target))
    same &= torch.allclose(one.cost, swap(other.cost))
    assert same == tied


def test_soft_maxes_of_the_cost_sum_to_one_over_their_half():
    """Constant values give constant messages."""
    layer = UFCLayer(8, 2, (2, 3), 2).double()
    nn.init.zeros_(layer.v_cross.weight)
    nn.init.constant_(layer.v_cross.bias, 3.0)
    nn.init.zeros_(layer.mlp_cross[3].weight)
    nn.init.zeros_(layer.mlp_cross[3].bias)
    source, target = draw(1, 24, 8), draw(1, 24, 8, seed=1)
    found = layer.attend_cross(5 * draw(1, 2, 2, 3, 2, 3, seed=2), source, target)
    for before, after in zip((source, target), found):
        torch.testing.assert_close(after - before, torch.full_like(before, 3.0))


def test_a_cost_of_zeros_works():
    layer = UFCLayer(8, 2, 2, 2).double()
    outputs = layer(torch.zeros(1, 2, 2, 2, 2, 2).double(), torch.zeros(1, 16, 8).double(), draw(1, 16, 8))
    assert all(torch.isfinite(output).all() for output in outputs)


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["mean", "peak", "cycle"])
def test_a_batch_equals_its_items(fusion):
    network = small(fusion=fusion).double().eval()
    a, b = maps(network, 0, batch=2), maps(network, 9, batch=2)
    with torch.no_grad():
        whole = network.match(network(a, b))
        for item in range(2):
            one = network.match(network([x[item : item + 1] for x in a], [x[item : item + 1] for x in b]))
            for side, other in zip(one, whole):
                torch.testing.assert_close(side.places[0], other.places[item])
                torch.testing.assert_close(side.peak[0], other.peak[item])


def test_fusions():
    """By peak, no level is surer than the one that was taken; by cycle, none comes nearer to where it began."""
    network = small(fusion="peak").double().eval()
    with torch.no_grad():
        found = network(maps(network, 0), maps(network, 9))
        ways = []
        for level in range(3):
            a, b = (stacked([side[level]], (8, 12)) for side in (found.source, found.target))
            ways.append((soft_argmax(a, b), soft_argmax(b, a)))
        there, _ = network.match(found)
        assert torch.equal(there.peak, torch.stack([way.peak for way, _ in ways]).amax(0))
        network.fusion = "cycle"
        there, _ = network.match(found)
    errors = torch.stack([cycle_error(way.places, back.places) for way, back in ways])
    best = torch.stack([way.places for way, _ in ways]).gather(
        0, errors.argmin(0)[None, :, None].expand(-1, -1, 2, -1, -1)
    )
    assert torch.equal(there.places, best[0])


def test_gradients_reach_everything_that_the_places_need():
    network = small(refine_last=False).double()
    there, back = network.match(network(maps(network, 0), maps(network, 9)))
    (there.places.square().sum() + back.places.sum()).backward()
    lacking = [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert lacking == []


def test_errors():
    network = small()
    with pytest.raises(ValueError, match=r"source has maps of .*must have \[\(6, 2, 3\)"):
        network([torch.randn(1, 6, 3, 3)], maps(network, 0))
    with pytest.raises(ValueError, match="strides"):
        small(strides=(1, 2, 3))
    with pytest.raises(ValueError, match="one entry for each level"):
        small(depths=(1, 1))
    with pytest.raises(ValueError, match="heads=3"):
        small(heads=3)
    with pytest.raises(ValueError, match="fusion is 'best'"):
        small(fusion="best")
    with pytest.raises(ValueError, match="temperature"):
        small(temperature=0)
