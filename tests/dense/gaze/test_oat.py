"""OAT: the authors' results, counts to the digit, and what characterizes object tokens, the decoder and the pointer."""

import pytest
import torch
from golden_records import Record
from torch import nn
from torch.testing import assert_close

from attlas import checkpoint
from attlas.dense.gaze import oat
from attlas.dense.gaze.oat import OAT, ObjectAttention, PatchEmbedding, PointerHead, pyramid_pool
from attlas.dense.gaze.positions import cells_of_boxes, sinusoid_table

SMALL = dict(rows=2, columns=5, crop=(30, 26), dim=32, mlp_dim=48, depth=(2, 2), pointer_dim=16, spp=2)


def small(**options):
    torch.manual_seed(0)
    return OAT(**{**SMALL, **options}).eval()


def batch(counts=(10, 10), size=(30, 26), seed=0, length=4):
    """Crops, targets and tokens of scenes."""
    generator = torch.Generator().manual_seed(seed)
    crops = torch.rand(len(counts), max(counts), 3, *size, generator=generator)
    targets = torch.tensor([count // 2 for count in counts])
    tokens = torch.stack([torch.randint(count, (length,), generator=generator) for count in counts])
    tokens[:, 0] = max(counts) + 2
    return crops, targets, tokens


def logits(network, crops, targets, tokens, **options):
    scene = network.scene(crops, targets, **options)
    return network.decode(scene, network.encode(scene), tokens)


# --- the authors' results --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_operators_equal_the_authors():
    record = Record("oat/operators")
    ours = nn.ModuleDict(dict(att=PointerHead(20, 9), cnn=PatchEmbedding(20, spp=4))).double().eval()
    account = checkpoint.load(ours, record.state_dict(), rules=oat.RULES)
    assert account.complete, str(account)
    assert sum(p.numel() for p in ours.parameters()) == record.params
    found = ours["att"](record.input("dec").transpose(0, 1), record.input("enc").transpose(0, 1))
    assert_close(found.transpose(0, 1).float(), record.output(0), rtol=1e-4, atol=1e-5)
    crops = record.input("patch").permute(0, 1, 4, 2, 3)
    assert_close(ours["cnn"](crops.flatten(0, 1)).view(2, 3, 20).float(), record.output(1), rtol=1e-4, atol=1e-5)
    assert_close(sinusoid_table(3, 11, 24), record.output(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "model."])  # the second as Lightning writes it
@torch.no_grad()
def test_the_network_equals_the_authors(prefix):
    record = Record("oat/network_learned_pe")
    network = OAT(**SMALL, table=record.input("pe").numpy()).double().eval()
    state = {f"{prefix}{name}": value for name, value in record.state_dict().items()}
    state[f"{prefix}onedpositional_encoding.pos_embedding"] = torch.zeros(40, 1, 32)
    account = checkpoint.load(network, dict(state_dict=state))
    assert account.complete, str(account)
    assert len(account.ignored) == 5

    crops = record.input("patches").permute(0, 1, 4, 2, 3)
    tokens = record.input("tgt_in").T
    scene = network.scene(crops, record.input("src_pos")[-1])
    objects, flags = network.encoder_tokens(scene)
    assert torch.equal(objects.T, record.input("src_pos"))
    found = network.triples(scene, objects, flags), network.triples(scene, tokens, tokens == scene.targets[:, None])
    for number, triples in enumerate(found, 1):
        assert torch.equal(triples.transpose(0, 1).float(), record.output(number))
    found = network.decode(scene, network.encode(scene), tokens)
    assert_close(found.transpose(0, 1).float(), record.output(0), rtol=1e-4, atol=1e-5)
    unused = 33 * 12 + 4 * 16  # of the authors' two layers that nothing uses
    assert sum(p.numel() for p in network.parameters()) == record.params - unused


@pytest.mark.parametrize(
    ("name", "counted", "unused"),
    [("oat_amazon", 18_300_985, 45_142), ("oat_yogurt", 18_271_744, 15_901), ("oat_wine", 18_596_859, 13_336)],
)
def test_variants_have_the_counts_of_the_authors(name, counted, unused):
    options = oat.VARIANTS[name]
    with torch.device("meta"):
        network = OAT(**options, table=[[0.0] * 86] * options.get("positions", 14))
    objects = options["rows"] * options["columns"]
    assert unused == 513 * (objects + 2) + 4 * 256
    assert sum(p.numel() for p in network.parameters()) == counted - unused


# --- what characterizes it -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_permuting_objects_permutes_their_columns_alone():
    network = small()
    crops, targets, tokens = batch()
    cells = torch.stack([torch.arange(10) // 5, torch.arange(10) % 5], -1).expand(2, -1, -1)
    before = logits(network, crops, targets, tokens, cells=cells)
    assert_close(before, logits(network, crops, targets, tokens), rtol=0, atol=1e-5)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    new = torch.cat([order.argsort(), torch.arange(10, 13)])
    after = logits(network, crops[:, order], new[targets], new[tokens], cells=cells[:, order])
    assert_close(after, before[..., [*order.tolist(), 10, 11]], rtol=0, atol=1e-5)
    assert (after[..., :10] - before[..., :10]).abs().max() > 1e-2


@torch.no_grad()
def test_no_step_sees_later_ones():
    network, (crops, targets, tokens) = small(), batch(length=6)
    before = logits(network, crops, targets, tokens)
    later = tokens.clone()
    later[:, 3:] = (later[:, 3:] + 1) % 10
    after = logits(network, crops, targets, later)
    assert_close(after[:, :3], before[:, :3], rtol=0, atol=1e-6)
    assert (after[:, 3:] - before[:, 3:]).abs().amax((0, 2)).min() > 1e-4


@torch.no_grad()
def test_a_batch_equals_its_scenes_one_by_one():
    """Of different numbers of objects: what fills a scene up has no influence."""
    network = small()
    counts = torch.tensor([4, 10, 1])
    crops, targets, tokens = batch(counts.tolist())
    crops[0, 4:] = 7.0
    together = logits(network, crops, targets, tokens, counts=counts)
    for number, count in enumerate(counts.tolist()):
        alone = tokens[number : number + 1].clone()
        alone[:, 0] = count + 2
        scene = crops[number : number + 1, :count]
        found = logits(network, scene, targets[number : number + 1], alone)[0]
        assert_close(together[number][:, [*range(count), -2, -1]], found, rtol=0, atol=1e-5)
        assert together[number][:, count:10].isneginf().all()


@torch.no_grad()
def test_crops_of_any_size_and_any_number_of_objects():
    network = small(rows=14, columns=16, dim=96, spp=3).eval()
    for height, width in ((30, 26), (19, 40), (195, 106), (51, 33)):
        assert network.patches(torch.rand(3, 3, height, width)).shape == (3, 48)
    for count in (1, 2, 37, 200):
        crops, targets, _ = batch((count,), (30, 26))
        scene = network.scene(crops, targets)
        (((path, _),),) = network.generate(scene, max_length=3)
        assert path
        assert all(0 <= place < count for place in path)


@torch.no_grad()
def test_boxes_of_a_detector_on_the_grid_equal_the_grid():
    network, (crops, targets, tokens) = small(), batch()
    boxes = [[40 * c + 5, 30 * r + 2, 40 * c + 33, 30 * r + 27] for r in range(2) for c in range(5)]
    cells = cells_of_boxes(torch.tensor(boxes), (60, 200), 2, 5).expand(2, -1, -1)
    found = logits(network, crops, targets, tokens, cells=cells)
    assert_close(found, logits(network, crops, targets, tokens), rtol=0, atol=1e-5)


def test_a_pyramid_is_the_maxima_of_its_windows():
    x = torch.rand(2, 3, 5, 7)
    found = pyramid_pool(x, 3)
    assert found.shape == (2, 3 * 21)
    assert_close(found[:, :3], x.amax((2, 3)))
    # 5 rows in windows of 3: one row of zeros behind; 7 columns in windows of 4: one column of zeros behind
    assert_close(found[:, 3:15].view(2, 3, 2, 2)[..., 0, 1], x[..., :3, 4:].amax((2, 3)))
    # 4 windows of 2 rows: 3 rows too many, one before, two behind
    assert_close(found[:, 15:].view(2, 3, 4, 4)[..., 0, 1], x[..., :1, 2:4].amax((2, 3)))


def test_gradients_reach_every_parameter_and_blank_is_used():
    network = small(dropout=0.0).train()
    crops, targets, _ = batch()
    losses = network(crops, targets, paths=[torch.tensor([1, 2, 5]), torch.tensor([5])], mode="loss")
    losses["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    moved = [n for n, p in network.named_parameters() if p.grad.abs().max() > 1e-9]
    constant = {n for n, _ in network.named_parameters()} - set(moved)
    assert all(n.endswith("bias") for n in constant), constant  # a bias of keys shifts all logits alike
    with torch.no_grad():
        network.eval()
        scene, dark = network.scene(crops, targets), network.scene(crops, targets, blank=0.0)
    assert_close(scene.features[:, :10], dark.features[:, :10])
    assert (scene.features[:, 10:] - dark.features[:, 10:]).abs().min(0)[0].max() > 1e-3


def test_one_head_has_no_readout_and_padding_is_the_bias_of_several():
    decoded, encoded = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    one, two = ObjectAttention(8, 1, 8), ObjectAttention(8, 2, 8)
    assert [n for n, _ in one.named_parameters() if "readout" in n] == []
    assert (one(decoded, encoded)[..., 5] == 0).all()
    assert_close(two(decoded, encoded)[..., 5], two.readout.bias.expand(2, 3))
    assert two(decoded, encoded).shape == (2, 3, 6)


@pytest.mark.parametrize("position", ["original", "exp1", "exp2", "linear"])
@torch.no_grad()
def test_other_encodings_run(position):
    crops, targets, tokens = batch()
    found = logits(small(position=position, alpha=0.5), crops, targets, tokens)
    assert torch.isfinite(found).all()
    assert (found - logits(small(), crops, targets, tokens)).abs().max() > 1e-3


# --- decoding --------------------------------------------------------------------------------------------------------


class Scripted(OAT):
    """Gives the logits that it is told, one row for each step."""

    def decode(self, scene, encoded, tokens):
        rows = self.script[: tokens.shape[1]]
        return rows.expand(len(tokens), -1, -1)


def scripted(rows):
    network = Scripted(**SMALL).eval()
    network.script = torch.tensor(rows)
    crops, targets, _ = batch((3, 3))
    return network, network.scene(crops, targets)


def test_greedy_paths_follow_the_rules():
    """No end and no padding at first, no padding later, cut at the end."""
    network, scene = scripted([[0, 1, 0, 8, 9], [3, 0, 0, 2, 9], [0, 0, 1, 8, 9], [9, 0, 0, 0, 0.0]])
    assert network.generate(scene) == [[([1, 0], True)]] * 2
    assert network.generate(scene, max_length=2) == [[([1, 0], False)]] * 2


def test_sampled_paths_have_the_chances_of_the_logits():
    rows = torch.tensor([[0.5, 0.25, 0.25, 9, 9], [0.1, 0.2, 0.3, 0.4, 9], [0.0, 0.0, 0.0, 1.0, 9]])
    network, scene = scripted(rows.clamp(min=1e-30).log().tolist())
    drawn = network.generate(scene, samples=4000, generator=torch.Generator().manual_seed(0))
    assert [len(paths) for paths in drawn] == [4000, 4000]
    paths = [path for path, ended in drawn[0] if ended]
    assert len(paths) == 4000
    first = torch.tensor([path[0] for path in paths]).bincount(minlength=3) / 4000
    assert_close(first, torch.tensor([0.5, 0.25, 0.25]), rtol=0, atol=0.03)
    assert abs(sum(len(path) == 1 for path in paths) / 4000 - 0.4) < 0.03
    again = network.generate(scene, samples=4000, generator=torch.Generator().manual_seed(0))
    assert again == drawn


@torch.no_grad()
def test_predictions_of_a_batch():
    network = small(samples=3, max_length=7)
    counts = torch.tensor([4, 10])
    crops, targets, _ = batch((4, 10))
    truth = [torch.tensor([1, 2]), torch.tensor([7, 9, 5])]
    results = network(crops, targets, counts=counts, paths=truth, names=["a", "b"], mode="predict")
    again = network(crops, targets, counts=counts, paths=truth, names=["a", "b"], mode="predict")
    for result, other, count, path in zip(results, again, (4, 10), truth):
        assert result["paths"] == other["paths"]
        assert len(result["paths"]) == len(result["ended"]) == 3
        assert all(1 <= len(found) <= 7 and max(found) < count for found in result["paths"])
        assert result["truth"] == path.tolist()
        assert 0 < result["similarity"] < 1
        assert result["cells"].shape == (count, 2)
    # the similarity is the mean chance of what a person did next, the end included
    alone = network(crops[:1, :4], targets[:1], paths=truth[:1], mode="tensor").softmax(-1)[0]
    chances = torch.stack([alone[0, 1], alone[1, 2], alone[2, 4]])
    assert abs(float(chances.mean()) - results[0]["similarity"]) < 1e-5


def test_nan_of_a_network_is_an_error():
    network, scene = scripted([[0, float("nan"), 0, 0, 0]])
    with pytest.raises(ValueError, match="NaN for the next object"):
        network.generate(scene)


# --- bad input -------------------------------------------------------------------------------------------------------


def with_nan(crops):
    crops = crops.clone()
    crops[1, 2, 0, 0, 0] = float("nan")
    return crops


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: dict(crops=c[:, :0]), "no objects"),
        (lambda c, t: dict(crops=c[:, :, :1]), r"must be floats \(B, N, 3, h, w\)"),
        (lambda c, t: dict(crops=c[..., :12]), "at least 19 pixels"),
        (lambda c, t: dict(crops=with_nan(c)), "scene 1 hold NaN"),
        (lambda c, t: dict(crops=torch.cat([c, c], 1)), "20 objects, and the grid 2 x 5"),
        (lambda c, t: dict(targets=t + 5), r"targets are \[10, 10\]"),
        (lambda c, t: dict(targets=t[:1]), "one for each scene"),
        (lambda c, t: dict(counts=torch.tensor([0, 10])), "must be from 1 to 10"),
        (lambda c, t: dict(counts=torch.tensor([3, 10])), "with .3, 10. objects"),
        (lambda c, t: dict(cells=torch.full((2, 10, 2), 2)), r"object 0 of scene 0 lies in cell \[2, 2\]"),
        (lambda c, t: dict(cells=torch.zeros(2, 9, 2)), r"must be \(B, N, 2\)"),
    ],
)
def test_bad_scenes_are_refused(change, message):
    crops, targets, _ = batch()
    with pytest.raises(ValueError, match=message):
        small().scene(**{**dict(crops=crops, targets=targets), **change(crops, targets)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(spp=5), "spp is 5"),
        (dict(spp=0, crop=(28, 40)), "at least 29"),
        (dict(dim=30), "even multiple of heads=4"),
        (dict(samples=-1), "samples is -1"),
        (dict(position="learnt"), "Did you mean 'learned'"),
        (dict(position="linear", table=[[1.0]]), "looks up none"),
        (dict(table=[[1.0] * 5] * 9), "5 channels; it needs 6"),
        (dict(table=[[float("nan")] * 6] * 9), "finite numbers"),
        (dict(rows=2, columns=9), "exact cosines of at most 6"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_crops_of_a_plain_pooling_have_one_size():
    network = small(spp=0, crop=(34, 29))
    with pytest.raises(ValueError, match="with spp=0 they must be 34 x 29"):
        network.scene(*batch()[:2])
    with pytest.raises(ValueError, match="mode='loss' needs paths"):
        network(*batch(size=(34, 29))[:2], mode="loss")
