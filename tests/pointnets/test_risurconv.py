import copy
import importlib
import re

import pytest
import torch
import torch.nn.functional as F
from geometry import random_cloud, random_rotation
from golden_records import Record

from attlas import checkpoint
from attlas.kernels import farthest_point_sample, gather_neighbors
from attlas.pointnets import risurconv
from attlas.pointnets.datasets import Furniture14
from attlas.pointnets.risurconv import Propagation, RISurConv, RISurConvClassifier, RISurConvSegmenter
from attlas.pointnets.transforms import SamplePoints, UnitSphere

SMALL = dict(num_points=64, channels=(8, 16, 32), neighbors=(8, 16), encoder_layers=1, width=16)


def loaded(network, record):
    """The network in float64 with the record's weights, by the rules that load the authors' checkpoints."""
    account = checkpoint.load(network, record.state_dict(), rules=risurconv.CHECKPOINT_RULES)
    assert account.complete, account
    return network.double().eval()


def small(seed=0, **options):
    """A small classifier in float64 whose normalization has seen data."""
    torch.manual_seed(seed)
    network = RISurConvClassifier(5, **{**SMALL, **options}).double()
    points, normals = random_cloud(8, 100)
    for _ in range(3):
        network(points, normals)
    return network.eval()


def close(result, expected, tolerance=1e-5):
    """Relative to the largest value."""
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


def furniture_clouds(count=12, size=600):
    clouds = Furniture14("test", transforms=[SamplePoints(size, include_normals=True), UnitSphere()])
    clouds = [clouds[i] for i in range(0, len(clouds), len(clouds) // count)][:count]
    points, normals = (torch.stack([cloud[key] for cloud in clouds]).double() for key in ("pos", "normal"))
    return points, F.normalize(normals, dim=-1)


# --- the authors' results --------------------------------------------------------------------------------------------


def test_encode_layer_equals_the_record():
    record = Record("risurconv/layer-encode")
    points, normals = record.input("points").split(3, dim=-1)
    layer = loaded(RISurConv(12, 32, k=8), record)
    sampled = farthest_point_sample(points, record.config["npoint"])
    queries, query_normals = gather_neighbors(points, sampled), gather_neighbors(normals, sampled)
    close(queries, record.output(0))
    close(query_normals, record.output(1))
    close(layer(points, normals, record.input("ris.sa.feat").mT, queries, query_normals).mT, record.output(2))
    assert sum(p.numel() for p in layer.parameters()) == record.params


def test_propagation_layer_equals_the_record():
    record = Record("risurconv/layer-propagate")
    points, normals = record.input("points").split(3, dim=-1)
    layer = loaded(Propagation(24, 10, 32, [40], k=8), record)
    sampled = farthest_point_sample(points, record.config["coarse"])
    coarse, coarse_normals = gather_neighbors(points, sampled), gather_neighbors(normals, sampled)
    dense, features = record.input("ris.fp.f1").mT, record.input("ris.fp.f2").mT
    close(layer(coarse, coarse_normals, features, points, normals, dense).mT, record.output())
    assert sum(p.numel() for p in layer.parameters()) == record.params


@pytest.mark.parametrize(("case", "scope"), [("cls-n1", "cloud"), ("cls-n1", "batch"), ("cls-n1-batch", "batch")])
def test_classifier_equals_the_record(case, scope):
    record = Record(f"risurconv/{case}")
    points, normals = record.input("points").split(3, dim=-1)
    network = RISurConvClassifier(record.config["num_class"], encoder_scope=scope)
    network = loaded(network, record)
    close(network(points, normals).log_softmax(-1), record.output(0))
    close(network.forward_features(points, normals), record.output(1).squeeze(-1))


def test_part_segmenter_equals_the_record():
    record = Record("risurconv/partseg")
    points, normals = record.input("points").split(3, dim=-1)
    network = loaded(RISurConvSegmenter(record.config["num_class"]), record)
    close(network(points, normals, record.input("label").argmax(-1)).log_softmax(-1)[:, ::8], record.output(0))
    close(network.encode(points, normals)[-1][2].mT[..., ::4], record.output(1))
    assert sum(p.numel() for p in network.parameters()) == record.params


def test_float32_is_close_to_the_record():
    record = Record("risurconv/cls-n1")
    points, normals = record.input("points").float().split(3, dim=-1)
    network = loaded(RISurConvClassifier(15), record).float()
    normals = F.normalize(normals, dim=-1)
    close(network(points, normals).log_softmax(-1), record.output(0).float(), 1e-3)


@pytest.mark.parametrize(
    ("variant", "published"),
    [
        ("modelnet40", 13_963_080),
        ("scanobjectnn", 13_959_855),
        ("fg3d_airplane", 13_959_597),
        ("fg3d_car", 13_960_500),
        ("fg3d_chair", 13_962_177),
    ],
)
def test_parameter_counts(variant, published):
    # the release also registers an encoder layer that it never uses
    assert sum(p.numel() for p in risurconv.create(variant).parameters()) == published - 3_152_384


def test_checkpoint_in_the_layout_of_the_release(tmp_path):
    record = Record("risurconv/cls-n1")
    path = tmp_path / "best_model.pth"
    torch.save({"epoch": 7, "class_acc": 0.9, "model_state_dict": record.state_dict()}, path)
    network = RISurConvClassifier(15)
    account = checkpoint.load(network, path)
    assert account.complete
    assert all(name.startswith("encoder_layer.") for name in account.ignored)
    points, normals = record.input("points").split(3, dim=-1)
    close(network.double().eval()(points, normals).log_softmax(-1), record.output(0))


# --- invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("given", [True, False], ids=["normals given", "normals computed"])
@pytest.mark.parametrize("order", ["index", "distance"])
def test_rotation_changes_nothing(seed, given, order):
    network = small(neighbor_order=order)
    turn = random_rotation(seed)
    for points, normals in (random_cloud(3, 150, seed), furniture_clouds(6, 200)):
        expected = network(points, normals if given else None)
        turned = network(points @ turn, normals @ turn if given else None)
        torch.testing.assert_close(turned, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("order", ["index", "distance"])
def test_a_layer_takes_queries_that_were_rotated_for_themselves(order):
    """They are points of the source up to the rounding of another product, a few units in the last place."""
    layer = RISurConv(5, 12, k=8, neighbor_order=order).double().eval()
    points, normals = random_cloud(2, 90)
    features, queries, query_normals = torch.randn(2, 90, 5).double(), points[:, :40], normals[:, :40]
    expected = layer(points, normals, features, queries, query_normals)
    for seed in range(4):
        turn = random_rotation(seed)
        moved = (queries @ turn) * (1 + 1e-15 * torch.randn(queries.shape, dtype=torch.float64))
        turned = layer(points @ turn, normals @ turn, features, moved, query_normals @ turn)
        torch.testing.assert_close(turned, expected, atol=1e-9, rtol=0)


def test_released_network_is_invariant_on_furniture():
    network = loaded(RISurConvClassifier(15), Record("risurconv/cls-n1"))
    points, normals = furniture_clouds()
    expected = network(points, normals).log_softmax(-1)
    for seed in range(2):
        turn = random_rotation(seed)
        torch.testing.assert_close(network(points @ turn, normals @ turn).log_softmax(-1), expected, atol=1e-9, rtol=0)


def test_translation_changes_nothing_after_centering():
    network = small()
    points, normals = random_cloud(3, 150)
    moved = points + torch.tensor([5.0, -2.0, 1.0])
    expected = network(points, normals)
    assert (network(moved, normals) - expected).abs().max() > 1e-6  # the last layer is about the origin
    torch.testing.assert_close(network(moved - moved.mean(1, keepdim=True), normals), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("given", [True, False], ids=["normals given", "normals computed"])
def test_duplicated_points_keep_the_invariance(given):
    """Samplers repeat points of small clouds, and the released augmentation replaces dropped points by the first."""
    network = small()
    points, normals = random_cloud(3, 80)
    doubled = points.repeat(1, 2, 1), normals.repeat(1, 2, 1)
    dropped = points.clone(), normals.clone()
    for tensor in dropped:
        tensor[:, 70:] = tensor[:, :1]
    for points, normals in (doubled, dropped):
        expected = network(points, normals if given else None)
        for seed in range(4):
            turn = random_rotation(seed)
            turned = network(points @ turn, normals @ turn if given else None)
            torch.testing.assert_close(turned, expected, atol=1e-9, rtol=0)


def test_released_signs_break_invariance():
    points, normals = random_cloud(6, 150)
    turn = random_rotation(0)
    network = small(reference_sign="rounding")
    assert (network(points @ turn, normals @ turn) - network(points, normals)).abs().max() > 1e-6


def test_degenerate_clouds():
    network = small()
    points, normals = random_cloud(1, 80)
    duplicates = points[:, :20].repeat(1, 4, 1)
    line = torch.linspace(-1, 1, 80, dtype=torch.float64)[None, :, None] * torch.ones(1, 1, 3, dtype=torch.float64)
    for degenerate in (duplicates, line, points[:, :1].expand(1, 80, 3).contiguous()):
        assert network(degenerate, normals).isfinite().all()
        assert network(degenerate, None).isfinite().all()


def test_clouds_of_a_batch_do_not_see_each_other():
    points, normals = random_cloud(4, 100)
    network = small()
    torch.testing.assert_close(network(points, normals)[1:2], network(points[1:2], normals[1:2]))
    network = small(encoder_scope="batch")
    assert (network(points, normals)[1:2] - network(points[1:2], normals[1:2])).abs().max() > 1e-6


# --- training --------------------------------------------------------------------------------------------------------


def test_embedding_equals_its_four_layers_in_training_and_after():
    torch.manual_seed(0)
    embedding = risurconv.SurfaceEmbedding(64).double()
    reference = torch.nn.Sequential(
        embedding.linear1, torch.nn.BatchNorm1d(32), embedding.linear2, torch.nn.BatchNorm1d(64)
    )
    reference.double()
    properties = torch.randn(2, 6, 5, 14, dtype=torch.float64) * torch.linspace(0.1, 3, 14) + 1
    for _ in range(3):
        result, expected = embedding(properties), F.relu(reference(properties.view(-1, 14))).view(2, 6, 5, 64)
        torch.testing.assert_close(result, expected)
    for ours, theirs in ((embedding.norm1, reference[1]), (embedding.norm2, reference[3])):
        for name, value in theirs.state_dict().items():
            if "running" in name or "tracked" in name:
                torch.testing.assert_close(ours.state_dict()[name], value)
    parameters = [embedding.linear1.weight, embedding.linear2.weight]
    gradients = [torch.autograd.grad(x.square().sum(), parameters, retain_graph=True) for x in (result, expected)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(
        embedding.eval()(properties), F.relu(reference.eval()(properties.view(-1, 14))).view(2, 6, 5, 64)
    )


def test_convolution_equals_its_layers_in_training_and_after():
    """Against concatenation, linear layer, batch norm, ReLU and maximum written out: values, statistics, gradients."""
    torch.manual_seed(0)
    layer = RISurConv(6, 12, k=5, width=16).double()
    with torch.no_grad():
        layer.norm.weight.copy_(torch.randn(12))  # also negative
    reference = torch.nn.BatchNorm1d(12).double()
    reference.load_state_dict(layer.norm.state_dict())
    layer.point_attention = torch.nn.Identity()
    properties, index = torch.randn(3, 7, 5, 14).double(), torch.randint(0, 11, (3, 7, 5))
    features = torch.randn(3, 11, 6, dtype=torch.float64, requires_grad=True)

    def written_out():
        x = torch.cat([layer.neighbor_attention(layer.embedding(properties)), gather_neighbors(features, index)], -1)
        return F.relu(reference(layer.linear(x).flatten(0, 2))).view(3, 7, 5, 12).max(2).values

    for training in (True, False):
        result = layer.train(training).convolve(properties, index, features)
        reference.train(training)
        expected = written_out()
        torch.testing.assert_close(result, expected)
        learned = [p for name, p in layer.named_parameters() if not name.startswith("norm.")]
        gradients = [torch.autograd.grad(x.square().sum(), [features, *learned]) for x in (result, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(layer.norm.state_dict()[name], value)


@pytest.mark.parametrize("training", [True, False])
def test_all_paths_agree(monkeypatch, training):
    network = small().train(training)  # of 64 points: the interpreter of Triton is slow
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    points, normals = random_cloud(2, 64)
    results = []
    for path in ("auto", "reference", "triton"):
        monkeypatch.setenv("ATTLAS_KERNELS", path)
        logits = network(points, normals)
        gradient = torch.autograd.grad(logits.square().sum(), network.layers[0].embedding.linear1.weight)[0]
        results.append((logits, gradient))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_is_one_graph(training):
    network = small(encoder_layers=0, dropout=0.0).train(training)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    points, normals = random_cloud(3, 100)
    logits, expected = compiled(points, normals), network(points, normals)
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for got, parameter in zip(compiled.parameters(), network.parameters()):
        torch.testing.assert_close(got.grad, parameter.grad, rtol=1e-6, atol=1e-9)


def test_exports():
    network = small(encoder_layers=0)
    points, normals = random_cloud(3, 100)
    exported = torch.export.export(network, (points, normals)).module()
    torch.testing.assert_close(exported(points, normals), network(points, normals))


def test_every_parameter_has_a_gradient():
    network = small().train()
    points, normals = random_cloud(4, 100)
    F.cross_entropy(network(points, normals), torch.arange(4)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # A bias before BN is removed by it; and attention to one token (the encoder's sequence, the group-all layer's
        # one query) has weight 1 whatever query and key are.
        if not name.endswith("bias") and not re.search(r"self_attn|group_all\.\w+_attention\.(q|k)\.", name):
            assert parameter.grad.abs().max() > 0, name


def test_mixed_precision():
    """bf16 features, float32 geometry; on a CPU, where autocast does what it does on a GPU."""
    torch.manual_seed(0)
    network = small().float().train()
    points, normals = random_cloud(4, 100, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(network(points, normals), torch.arange(4))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    network.eval()
    with torch.autocast("cpu", torch.bfloat16):
        halved = network(points, normals)
    close(halved.float(), network(points, normals), 0.05)


def test_mixed_precision_around_the_backward_too():
    network = small().float().train()
    points, normals = random_cloud(4, 100, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(network(points, normals), torch.arange(4)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_inference_mode_on_several_threads(monkeypatch):
    monkeypatch.setattr(importlib.import_module("attlas.kernels.dispatch"), "ALONE", 0.0)
    network, (points, normals) = small(), random_cloud(4, 100)
    expected, threads = network(points, normals), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.inference_mode():
            close(network(points, normals), expected.detach(), 1e-12)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_statistics_of_all_batches_and_of_none():
    """As torch's norms: momentum None averages all batches, and without tracking every batch has its own."""
    network = small().train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = None
            module.reset_running_stats()
    clouds = random_cloud(4, 100)
    for _ in range(3):
        network(*clouds)
    once = {name: value.clone() for name, value in network.named_buffers()}
    network(*clouds)
    for name, value in network.named_buffers():
        if "running" in name and "encoder" not in name and "head" not in name:
            torch.testing.assert_close(value, once[name])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    trained = network.group_all.embedding(torch.randn(4, 1, 9, 14).double())
    assert trained.isfinite().all()


def test_large_constant_features_leave_no_nan():
    layer = RISurConv(16, 32, k=8).train()
    points = torch.ones(2, 40, 3)
    normals = F.normalize(torch.ones(2, 40, 3), dim=-1)
    features = 100 * torch.randn(1, 1, 16).expand(2, 40, 16)
    assert layer(points, normals, features, points[:, :20], normals[:, :20]).isfinite().all()


def test_frozen_norms_stay_frozen():
    network = small().train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    network(*random_cloud(4, 100, seed=9))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_network_gradient_by_differences():
    network = RISurConvSegmenter(
        4, 2, 16, channels=(4, 8), neighbors=(4, 4), decoder=((8, 8), (8,)), decoder_neighbors=(4, 4), width=8
    )
    network = network.double().train()
    points, normals = random_cloud(2, 20)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weight = network.layers[0].neighbor_attention.v.weight

    def loss():
        return network(points, normals, torch.tensor([0, 1])).square().sum()

    gradient = torch.autograd.grad(loss(), weight)[0]
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-6 * direction
        above = loss()
        weight -= 2e-6 * direction
        below = loss()
    torch.testing.assert_close((gradient * direction).sum(), (above - below) / 2e-6, rtol=1e-4, atol=1e-6)


def test_the_segmenter_trains_at_the_width_of_the_release():
    """Its first layer has no features, and no fewer channels than the surface: the moments are of the surface alone."""
    torch.manual_seed(0)
    layer = RISurConv(0, 64, 8).double().train()
    points, normals = random_cloud(2, 60)
    queries, query_normals = points[:, :20], normals[:, :20]
    properties, _ = layer.neighbors(points, normals, queries, query_normals)
    surface = layer.neighbor_attention(layer.embedding(properties))
    norm = layer.norm
    rows = layer.linear(surface).flatten(0, 2)
    plain = F.relu(F.batch_norm(rows, None, None, norm.weight, norm.bias, training=True))
    expected = layer.point_attention(plain.view(*surface.shape[:3], 64).amax(2))
    torch.testing.assert_close(layer(points, normals, None, queries, query_normals), expected)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(encoder_scope="clouds"), "encoder_scope must be 'cloud' or 'batch', got 'clouds'"),
        (dict(neighbor_order="far"), "neighbor_order must be 'index' or 'distance', got 'far'"),
        (dict(normalize="rows"), "normalize must be one of"),
        (dict(reference_sign="plus"), "reference_sign must be one of"),
        (dict(axis_sign="plus"), "sign must be one of"),
        (dict(neighbors=(8,)), r"channels \(8, 16\) and neighbors \(8,\) must be of one length"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_bad_clouds():
    network = small()
    points, normals = random_cloud(2, 100)
    with pytest.raises(ValueError, match=r"points must hold at least 64 points a cloud .* got 50"):
        network(points[:, :50], normals[:, :50])
    with pytest.raises(ValueError, match="points must be finite"):
        network(points * torch.inf, normals)
    with pytest.raises(ValueError, match="normals must be unit vectors"):
        network(points, 2 * normals)
    with pytest.raises(ValueError, match="normals must have the shape"):
        network(points, normals[:, :-1])
    with pytest.raises(ValueError, match=r"points must have shape \(B, N, 3\), got \(2, 100, 6\)"):
        network(torch.cat([points, normals], -1))
    with pytest.raises(TypeError, match=r"points are torch.float32, but the weights .* are torch.float64"):
        network(points.float(), normals.float())
    with pytest.raises(TypeError, match="points must be float32 or float64"):
        network(points.half(), normals.half())
    with pytest.raises(ValueError, match=r"k must lie in 1..64 \(the number of points\), got 65"):
        small(neighbors=(8, 65))(points, normals)
    with pytest.raises(ValueError, match=r"variant must be one of modelnet40, .*, got 'modelnet10'"):
        risurconv.create("modelnet10")
    with pytest.raises(ValueError, match="category must be int64"):
        RISurConvSegmenter()(points, normals, torch.zeros(2))
