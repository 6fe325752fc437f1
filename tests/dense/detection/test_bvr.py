"""RelationNet++: the authors' results, what characterizes the module, and the detectors that have it."""

import copy
from pathlib import Path

import pytest
import torch
from golden_records import Record
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.model import bias_init_with_prob
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from attlas import checkpoint
from attlas.config import load_config
from attlas.data import fill_classes
from attlas.dense.detection import bvr
from attlas.kernels.bridging_attention import location_bias
from attlas.registry import MODELS

CONFIGS = Path(__file__).parents[3] / "configs" / "bvr"
TOP_LEFT, BOTTOM_RIGHT = "top_left_corner", "bottom_right_corner"


def load(module, name, authors_name, record):
    """Load a record's weights into the part `name` of a head, which the authors call otherwise."""
    state = {f"{authors_name}.{key}": value for key, value in record.state_dict().items()}
    account = checkpoint.load(torch.nn.ModuleDict({name: module}), state, rules=bvr.RULES)
    assert account.complete, str(account)
    assert sum(p.numel() for p in module.parameters()) == record.params


# --- records ---------------------------------------------------------------------------------------------------------


def test_transformer_equals_the_authors():
    record = Record("bvr/transformer_two_types")
    bridge = bvr.Bridge(32, num_types=2, num_heads=4, base_size=40).double()
    load(bridge, "reg_bridge", "reg_transformer", record)
    inputs = record.inputs
    maps = [inputs["query0"], inputs["query1"]]
    places = [bvr.grid(x.shape[1:3], stride, x).expand(len(x), -1, -1) for x, stride in zip(maps, (8, 16))]
    key_places = [inputs[f"keypos{t}"] * 64 for t in (0, 1)]
    refined = bridge(
        [x.flatten(1, 2) for x in maps],
        [[place, place] for place in places],
        [inputs["key0"], inputs["key1"]],
        key_places,
        units=(8, 8),
    )
    for number in (0, 1):
        torch.testing.assert_close(
            refined[number].view_as(maps[number]).float(), record.output(number), rtol=0, atol=1e-4
        )
    table = bridge.locations[0]
    bias = location_bias(table(), places[0], key_places[0], bridge.cells / 8).permute(0, 2, 3, 1).float()
    torch.testing.assert_close(bias.exp(), record.output(2).exp(), rtol=0, atol=1e-4)
    far = record.output(2) > -10  # from the least value, where rounding decides
    assert far.any()
    torch.testing.assert_close(bias[far], record.output(2)[far], rtol=0, atol=1e-3)


def test_key_points_equal_the_authors():
    record = Record("bvr/keypoints")
    head = bvr.KeypointHead(5, 32, (8, 16), feat_channels=32, per_level=6, num_keys=9).double()
    load(head, "keypoint_head", "keypoint_head", record)
    maps = [record.inputs["feat0"], record.inputs["feat1"]]
    found = head(maps)

    def same(got, number):
        torch.testing.assert_close(got.float(), record.output(number), rtol=0, atol=1e-4)

    same(found["center"][0][0], 0)
    same(found["center"][0][1], 1)
    for level, stride in enumerate((8, 16)):
        parts = [head.candidates(*found[kind][level], stride) for kind in (TOP_LEFT, BOTTOM_RIGHT)]
        scores, positions, place = (torch.cat(part) for part in zip(*parts))
        same(scores, 2 + level)
        same(positions, 4 + level)
        assert torch.equal(place, record.arrays[f"inds{level}"])
    for number, kind in enumerate((TOP_LEFT, BOTTOM_RIGHT)):
        keys = head.keys(found[kind])
        same(bvr.features_at(maps, keys.place), 6 + number)
        same(keys.positions, 8 + number)


def test_targets_equal_the_authors(monkeypatch):
    record = Record("bvr/assigner")
    head = bvr.KeypointHead(5, 8, (8, 16))
    boxes = record.arrays["gt_bboxes"], record.arrays["gt_labels"]
    for at_once in (bvr.BOXES, 1):
        monkeypatch.setattr(bvr, "BOXES", at_once)
        for number, got in enumerate(head.targets(*boxes, TOP_LEFT, [(8, 10), (4, 5)])):
            torch.testing.assert_close(got.float(), record.output(number), rtol=0, atol=1e-6)


def test_radius():
    """A box whose corners lie within the radius overlaps by the given share: the worst cases do so exactly."""
    height, width, iou = torch.tensor([30.0, 100]), torch.tensor([70.0, 8]), 0.7
    radius = bvr.gaussian_radius(height, width, iou)
    area = height * width
    shifted = (height - radius) * (width - radius)
    overlaps = torch.stack(
        [
            shifted / (2 * area - shifted),
            (height - 2 * radius) * (width - 2 * radius) / area,
            area / ((height + 2 * radius) * (width + 2 * radius)),
        ]
    )
    torch.testing.assert_close(overlaps.amin(0), torch.full((2,), iou))


# --- the module ------------------------------------------------------------------------------------------------------


def drawn_bridge(dim=24, num_types=2, num_heads=3, **options):
    torch.manual_seed(0)
    bridge = bvr.Bridge(dim, num_types, num_heads, base_size=20, **options)
    for table in bridge.locations:
        torch.nn.init.normal_(table.project.weight)
    queries = [torch.randn(2, n, dim) for n in (15, 4)]
    places = [bvr.grid((5, 3), 8, queries[0]).expand(2, -1, -1), bvr.grid((2, 2), 16, queries[0]).expand(2, -1, -1)]
    keys = [torch.randn(2, 6, dim) for _ in range(num_types)]
    key_places = [torch.rand(2, 6, 2) * 40 for _ in range(num_types)]
    return bridge, dict(
        queries=queries,
        query_positions=[[place] * num_types for place in places],
        keys=keys,
        key_positions=key_places,
        units=(8, 8),
    )


@pytest.mark.parametrize("options", [{}, dict(shared_location=False), dict(appearance=False), dict(location=False)])
def test_weights_are_those_of_the_attention(options):
    """Weighted by them, the values give what the attention gives."""
    bridge, inputs = drawn_bridge(**options)
    seen = {}
    for number, attention in enumerate(bridge.attentions):
        attention.register_forward_hook(lambda _, args, out, number=number: seen.update({number: (args, out)}))
    bridge(**inputs)
    places, keys, key_places = inputs["query_positions"][-1], inputs["keys"], inputs["key_positions"]
    weights = bridge.weights(inputs["queries"][-1], places, keys, key_places, inputs["units"][-1])
    for number, attention in enumerate(bridge.attentions):
        (_, key, _), out = seen[number]
        torch.testing.assert_close(weights[number].sum(-1), torch.ones(2, 3, 4))
        values = torch.nn.functional.linear(key, attention.in_proj_weight[48:], attention.in_proj_bias[48:])
        mixed = torch.einsum("bhnk,bkhc->bnhc", weights[number], values.unflatten(2, (3, 8)))
        torch.testing.assert_close(attention.out_proj(mixed.flatten(2)), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_types", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, dict(shared_location=False), dict(appearance=False), dict(location=False), dict(num_heads=4)]
)
def test_output_is_positive_and_keys_have_no_order(options, num_types):
    bridge, inputs = drawn_bridge(num_types=num_types, **options)
    refined = bridge(**inputs)
    assert [x.shape for x in refined] == [x.shape for x in inputs["queries"]]
    assert all((x >= 0).all() and x.any() for x in refined)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    permuted = dict(
        inputs, keys=[x[:, order] for x in inputs["keys"]], key_positions=[x[:, order] for x in inputs["key_positions"]]
    )
    torch.testing.assert_close(bridge(**permuted), refined, rtol=1e-5, atol=1e-5)
    moved = dict(inputs, key_positions=[x + 3 for x in inputs["key_positions"]])
    assert torch.equal(bridge(**moved)[0], refined[0]) == (options.get("location") is False)
    other = dict(inputs, queries=[-x for x in inputs["queries"]])
    attended = [out - query for out, query in zip(bridge(**other), other["queries"])]
    assert attended[0].shape == refined[0].shape


def test_modes_drop_what_they_say():
    """Without appearance the sum that is added does not depend on the query; without location not on its place."""
    bridge, inputs = drawn_bridge(appearance=False, num_types=1)
    attention, place = bridge.attentions[0], inputs["query_positions"][0][0]
    table = bridge.locations[0]
    location = table(), place, inputs["key_positions"][0], bridge.cells / 8
    query = inputs["queries"][0]
    added = attention(query, inputs["keys"][0], location)
    torch.testing.assert_close(added, attention(-query, inputs["keys"][0], location))
    assert not torch.allclose(added[:, 0], added[:, 1])
    bridge, inputs = drawn_bridge(location=False, num_types=1)
    added = bridge.attentions[0](query[:, :1].expand(-1, 4, -1), inputs["keys"][0], None)
    torch.testing.assert_close(added[:, 0], added[:, 3])


def test_shifted_pixels_and_keys_change_nothing():
    bridge, inputs = drawn_bridge()
    inputs["key_positions"] = [x.round() for x in inputs["key_positions"]]
    shift = torch.tensor([64.0, -32])
    shifted = dict(
        inputs,
        query_positions=[[place + shift for place in level] for level in inputs["query_positions"]],
        key_positions=[x + shift for x in inputs["key_positions"]],
    )
    assert all(map(torch.equal, bridge(**shifted), bridge(**inputs)))


def test_without_output_the_queries_are_rectified():
    bridge, inputs = drawn_bridge()
    for attention in bridge.attentions:
        torch.nn.init.zeros_(attention.out_proj.weight)
    assert all(map(torch.equal, bridge(**inputs), [x.relu() for x in inputs["queries"]]))


def test_every_type_adds_its_attention():
    bridge, inputs = drawn_bridge(shared_location=False)
    total = [torch.zeros_like(x) for x in inputs["queries"]]
    large = [x + 100 for x in inputs["queries"]]  # so that ReLU cuts nothing
    whole = bridge(**dict(inputs, queries=large))
    for t in (0, 1):
        one = copy.deepcopy(bridge)
        one.attentions, one.locations = bridge.attentions[t : t + 1], bridge.locations[t : t + 1]
        part = dict(
            inputs,
            queries=large,
            query_positions=[level[:1] for level in inputs["query_positions"]],
            keys=inputs["keys"][t : t + 1],
            key_positions=inputs["key_positions"][t : t + 1],
        )
        total = [x + out - query for x, out, query in zip(total, one(**part), large)]
    torch.testing.assert_close([x + y for x, y in zip(total, large)], whole)


def test_the_table_equals_the_codes_multiplied_out():
    table = bvr.LocationTable(8, 2, base_size=6)
    torch.nn.init.normal_(table.project.bias)
    codes = table.codes
    pairs = torch.cat([codes.expand(7, -1, -1), codes.unsqueeze(1).expand(-1, 7, -1)], -1)
    torch.testing.assert_close(table(), table.project(pairs).permute(2, 0, 1))
    assert set(table.state_dict()) == {"project.weight", "project.bias"}


def test_half_precision_keeps_the_location_in_float32():
    bridge, inputs = drawn_bridge()
    table = bridge.locations[0]()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bridge.locations[0](), table)
        refined = bridge(**inputs)
    torch.testing.assert_close(refined, bridge(**inputs), rtol=0.1, atol=0.1)


def test_bad_options():
    with pytest.raises(ValueError, match="num_heads must divide the 24 channels, got 5"):
        bvr.Bridge(24, 1, num_heads=5)
    with pytest.raises(ValueError, match="dim must be a multiple of 4"):
        bvr.Bridge(6, 1, num_heads=2)
    with pytest.raises(ValueError, match="appearance and location must not both be False"):
        bvr.Bridge(8, 1, appearance=False, location=False)
    with pytest.raises(ValueError, match=r"base_size must be 2 at least, got 1"):
        bvr.Bridge(8, 1, base_size=1)
    with pytest.raises(ValueError, match=r"types must be of top_left_corner, .* got 'corner'"):
        bvr.KeypointHead(3, 8, (8,), types=("corner",))


# --- key points ------------------------------------------------------------------------------------------------------


def small_keypoint_head(**options):
    torch.manual_seed(0)
    head = bvr.KeypointHead(3, 8, (8, 16), feat_channels=8, **options)
    head.init_weights()
    return head


def test_counts_of_parameters():
    for options, count in (
        (dict(norm_cfg=dict(type="GN", num_groups=32)), 7_651_062),
        ({}, 7_647_990),
        (dict(logits_convs=0), 4_107_510),
    ):
        with torch.device("meta"):
            head = bvr.KeypointHead(80, 256, (8, 16, 32, 64, 128), **options)
        assert sum(p.numel() for p in head.parameters()) == count
    for num_types, count in ((1, 265_224), (2, 528_392)):
        assert sum(p.numel() for p in bvr.Bridge(256, num_types).parameters()) == count


def test_layers_and_first_scores():
    head = small_keypoint_head(shared_convs=1, stacked_convs=0, logits_convs=2, types=("center",))
    assert (len(head.shared), len(head.towers["center"]), len(head.offsets["center"])) == (1, 0, 3)
    assert head.scores["center"][-1].bias.detach().unique().item() == pytest.approx(bias_init_with_prob(0.01))
    ((logits, offsets),) = head([torch.randn(2, 8, 5, 3)])["center"]
    assert (logits.shape, offsets.shape) == ((2, 3, 5, 3), (2, 2, 5, 3))


def test_gradients_reach_offsets_and_not_scores():
    head = small_keypoint_head()
    logits, offsets = torch.randn(1, 3, 6, 7, requires_grad=True), torch.randn(1, 2, 6, 7, requires_grad=True)
    keys = head.keys([(logits, offsets)])
    assert not keys.scores.requires_grad
    assert torch.autograd.grad(keys.positions.sum(), offsets)[0].any()
    with pytest.raises(RuntimeError, match=r"unused|not have been used"):
        torch.autograd.grad(keys.positions.sum(), logits)


def test_keys_are_peaks_at_the_right_places():
    head = small_keypoint_head(per_level=2, num_keys=3)
    levels = []
    for size, spots in (((4, 5), {(1, 2): 5.0, (1, 3): 4.0, (3, 0): 3.0}), ((2, 3), {(0, 1): 4.5})):
        logits, offsets = torch.full((1, 3, *size), -9.0), torch.zeros(1, 2, *size)
        for (y, x), value in spots.items():
            logits[0, 1, y, x] = value
        offsets[:, 0] += 0.5
        levels.append((logits, offsets))
    keys = head.keys(levels)
    # (1, 3) is no peak, since its neighbor is higher
    assert keys.place.tolist() == [[1 * 5 + 2, 20 + 1, 3 * 5 + 0]]
    assert keys.positions.tolist() == [[[2 * 8 + 4 + 4, 8 + 4], [16 + 8 + 8, 8], [4 + 4, 3 * 8 + 4]]]
    maps = [torch.arange(20.0).view(1, 1, 4, 5), torch.arange(20.0, 26).view(1, 1, 2, 3)]
    assert bvr.features_at(maps, keys.place).flatten().tolist() == [7, 21, 15]


def test_targets_of_odd_boxes():
    """A point beyond the map belongs to its border; boxes of no size are allowed; of two boxes the nearer counts."""
    head = small_keypoint_head()
    boxes = torch.tensor([[-50.0, 3, 500, 60], [20, 20, 20, 20], [21, 21, 21, 21]])
    offsets, scores, positive = head.targets(boxes, torch.tensor([0, 1, 2]), TOP_LEFT, [(4, 5), (2, 3)])
    assert positive.nonzero().flatten().tolist() == [0, 12, 20, 24]
    assert offsets[0].tolist() == [(-50 - 4) / 8, (3 - 4) / 8]
    assert torch.isfinite(scores).all()
    assert scores[12].tolist() == [pytest.approx(0, abs=1), 1, 0]
    assert not offsets[~positive].any()


def instances(boxes, labels):
    return InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.tensor(labels, dtype=torch.int64))


def test_losses_without_objects_are_finite():
    head = small_keypoint_head()
    found = head([torch.randn(2, 8, 4, 5), torch.randn(2, 8, 2, 3)])
    losses = head.loss(found, [instances([], []), instances([], [])])
    assert losses["loss_keypoint_offset"] == 0
    assert torch.isfinite(losses["loss_keypoint_score"])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_losses_by_hand():
    head = small_keypoint_head(types=("center",))
    found = head([torch.randn(1, 8, 4, 5), torch.randn(1, 8, 2, 3)])
    boxes = instances([[3.0, 5, 30, 31]], [2])
    offsets, scores, positive = head.targets(boxes.bboxes, boxes.labels, "center", [(4, 5), (2, 3)])
    p = torch.cat([logits[0].flatten(1).mT for logits, _ in found["center"]]).sigmoid()
    moved = torch.cat([x[0].flatten(1).mT for _, x in found["center"]])
    focal = torch.where(scores == 1, -p.log() * (1 - p) ** 2, -(1 - p).log() * p**2 * (1 - scores) ** 4)
    losses = head.loss(found, [boxes])
    assert positive.sum() == 2
    torch.testing.assert_close(losses["loss_keypoint_score"], 0.25 * focal.sum() / 2)
    smooth = torch.nn.functional.smooth_l1_loss(moved[positive], offsets[positive], reduction="sum") / 2
    torch.testing.assert_close(losses["loss_keypoint_offset"], smooth)


# --- detectors -------------------------------------------------------------------------------------------------------

BOXES = [[4.0, 6, 40, 50], [20, 3, 60, 33]]


def samples(height, width, *boxes):
    """Data samples of mmdet, one for each list of boxes."""
    return [
        DetDataSample(
            gt_instances=instances(listed, [n % 3 for n in range(len(listed))]),
            metainfo=dict(
                img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width), scale_factor=(1.0, 1.0)
            ),
        )
        for listed in boxes
    ]


def read(name, classes):
    config = load_config(CONFIGS / f"{name}.py").model
    fill_classes(config, lambda: classes)
    return config


def built(config):
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(config)


def small_config(name, **head):
    """The model of a config with few channels and layers, without deformable convolutions."""
    config = read(name, 3).to_dict()
    config["backbone"] = dict(type="ResNet", depth=18, base_channels=8, norm_cfg=dict(type="BN"))
    config["neck"].update(in_channels=[8, 16, 32, 64], out_channels=32, norm_cfg=None)
    groups = None if "fcos" in name else dict(type="GN", num_groups=4)
    keypoint_head = dict(config["bbox_head"].get("keypoint_head", {}), feat_channels=32, stacked_convs=1)
    keypoint_head["norm_cfg"] = keypoint_head.get("norm_cfg") and groups
    config["bbox_head"].update(
        in_channels=32, feat_channels=32, stacked_convs=1, norm_cfg=groups, keypoint_head=keypoint_head
    )
    if "dcn_on_last_conv" in config["bbox_head"]:
        config["bbox_head"]["dcn_on_last_conv"] = False
    config["bbox_head"].update(head)
    return ConfigDict(config)


def small(name, **head):
    torch.manual_seed(0)
    model = built(small_config(name, **head))
    model.init_weights()
    return model


HEADS = ["bvr_retinanet_r50_coco", "bvr_atss_x101_dcn_coco", "bvr_fcos_x101_dcn_coco"]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*_coco.py") if "faster" not in path.stem))
def test_configs_build(name):
    with torch.device("meta"):
        model = built(read(name, 80))
    head = model.bbox_head
    counts = [sum(p.numel() for p in part.parameters()) for part in (head.cls_bridge, head.reg_bridge)]
    assert counts == [265_224, 528_392]
    if name == "bvr_retinanet_r50_coco":
        assert sum(p.numel() for p in model.parameters()) == 46_417_466
        assert sum(p.numel() for p in model.parameters()) - sum(counts) - 7_651_062 == 37_972_788
    else:
        assert head.cls_bridge.locations[0].codes.shape[0] == 301
        assert (head.cls_bridge.locations is head.reg_bridge.locations) == ("atss" in name)
    with pytest.raises(TypeError, match="unknown"):
        built(dict(read(name, 80).bbox_head, bridging=dict(unknown=1)))


def test_the_config_of_faster_rcnn_builds():
    with torch.device("meta"):
        head = built(read("bvr_faster_rcnn_r50_coco", 80)).roi_head
    assert (head.bbox_head.num_classes, head.keypoint_head.num_classes) == (80, 80)
    assert head.key_features.out_features == 1024


def test_half_precision_trains():
    """No map is of one pixel: there PyTorch 2.13 gives convolutions in bfloat16 gradients of arbitrary numbers."""
    head = small("bvr_retinanet_r50_coco").bbox_head.train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, found = head._detect([torch.randn(1, 32, n, n) for n in (16, 8, 6, 5, 4)])
        losses = head.keypoint_head.loss(found, [instances(BOXES, [0, 1])])
    (sum(x.float().square().sum() for level in outputs for x in level) + sum(losses.values())).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    assert head.reg_bridge.locations[0].project.weight.grad.any()


@pytest.mark.parametrize("name", HEADS)
def test_detectors_train_and_predict(name):
    """An image of 64 x 64 (fewer candidates than keys) beside one without objects; then a batch without objects."""
    model = small(name).train()
    images = torch.randn(2, 3, 64, 64)
    losses = model.loss(images, samples(64, 64, BOXES, []))
    assert {"loss_cls", "loss_bbox", "loss_keypoint_score", "loss_keypoint_offset"} <= losses.keys()
    total, _ = model.parse_losses(losses)
    total.backward()
    head = model.bbox_head
    for part in (head.keypoint_head, head.cls_bridge, head.reg_bridge):
        for parameter_name, parameter in part.named_parameters():
            assert torch.isfinite(parameter.grad).all(), parameter_name
            assert parameter.grad.any() or "offsets" in parameter_name or "in_proj_bias" in parameter_name
    total, _ = model.parse_losses(model.loss(images, samples(64, 64, [], [])))
    assert torch.isfinite(total)
    model.eval()
    with torch.no_grad():
        outputs = head(model.extract_feat(torch.randn(1, 3, 72, 40)))
    assert [x.shape[-2:] for x in outputs[0]] == [(9, 5), (5, 3), (3, 2), (2, 1), (1, 1)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_without_the_module_it_is_the_stock_head(name, training):
    """Towers end in a ReLU: with an attention that adds nothing, every output is that of mmdet's head, bit for bit."""
    model = small(name)
    head = model.bbox_head
    stock = small_config(name).bbox_head
    for own in ("keypoint_head", "bridging", *(["dcn_on_last_conv"] if "atss" in name else [])):
        stock.pop(own, None)
    stock.type = stock.type.removeprefix("attlas.BVR")
    stock = built(stock).train(training)
    answer = stock.load_state_dict(head.state_dict(), strict=False)
    assert answer.missing_keys == []
    assert {key.split(".")[0] for key in answer.unexpected_keys} == {"keypoint_head", "cls_bridge", "reg_bridge"}
    for bridge in (head.cls_bridge, head.reg_bridge):
        for attention in bridge.attentions:
            torch.nn.init.zeros_(attention.out_proj.weight)
    maps = [torch.randn(2, 32, n, n + 1) for n in (9, 5, 3, 2, 1)]
    for got, expected in zip(head.train(training)(maps), stock(maps), strict=True):
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("name", ["bvr_atss_x101_dcn_coco", "bvr_fcos_x101_dcn_coco"])
def test_towers_end_in_deformable_convolutions(name):
    head = small(name, dcn_on_last_conv=True).bbox_head
    outputs = head([torch.randn(1, 32, n, n) for n in (8, 4, 3, 2, 2)])
    sum(x.square().sum() for level in outputs for x in level).backward()
    for tower in (head.cls_convs, head.reg_convs):
        assert tower[-1].conv.conv_offset.weight.grad.any()


def test_options_of_the_module():
    head = small(
        "bvr_retinanet_r50_coco",
        bridging=dict(
            cls_types=("center", TOP_LEFT), num_heads=4, shared_location=False, shared_between_branches=True,
            scale_position=True,
        ),
    ).bbox_head  # fmt: skip
    assert head.cls_bridge.locations is head.reg_bridge.locations
    assert len(head.cls_bridge.locations) == 2
    outputs = head([torch.randn(1, 32, n, n) for n in (8, 4, 2, 1, 1)])
    assert all(torch.isfinite(x).all() for x in outputs[0])
    with pytest.raises(ValueError, match="shared_between_branches needs shared_location"):
        small("bvr_retinanet_r50_coco", bridging=dict(shared_location=False, shared_between_branches=True))


def authors_name(name):
    """What the authors call a tensor of our detector."""
    if not name.startswith("bbox_head."):
        return name
    name = name.removeprefix("bbox_head.")
    for ours, theirs in (
        ("keypoint_head.towers.", "keypoint_head.keypoint_layers."),
        ("keypoint_head.scores.", "keypoint_head.keypoint_cls_heads."),
        ("keypoint_head.offsets.", "keypoint_head.keypoint_offset_heads."),
        ("_bridge.attentions.", "_transformer.decoder."),
        ("_bridge.locations.0.project.", "_transformer.relative_positional_encoding.embedding_transform.0.conv."),
    ):
        if ours in name:
            return "bbox_head." + name.replace(ours, theirs)
    return f"bbox_head.bbox_head.{name}"


def test_the_authors_checkpoint_loads_without_its_constants():
    model, other = small("bvr_retinanet_r50_coco"), small("bvr_retinanet_r50_coco")
    state = {authors_name(name): torch.randn_like(value.float()) for name, value in model.state_dict().items()}
    for branch in ("cls", "reg"):
        state[f"bbox_head.{branch}_transformer.relative_positional_encoding.base_embedding"] = torch.zeros(1, 5, 5, 32)
    for name in state:
        if name.endswith("conv.weight") and "embedding_transform" in name:
            state[name] = state[name][..., None, None]
    account = checkpoint.load(model, {"state_dict": state})
    assert account.complete, str(account)
    assert len(account.ignored) == 2
    assert torch.equal(
        model.bbox_head.reg_bridge.attentions[1].in_proj_weight,
        state["bbox_head.reg_transformer.decoder.1.in_proj_weight"],
    )
    # and what we save fits as it is
    account = checkpoint.load(other, model.state_dict())
    assert account.complete
    assert not account.renamed


# --- Faster R-CNN ----------------------------------------------------------------------------------------------------


class Pooled(torch.nn.Module):
    """Stands in for the RoI extractor: the mean of the first map around a RoI's image, as a 7 x 7 map."""

    num_inputs = 1

    def forward(self, maps, rois):
        return (
            maps[0].mean((2, 3))[rois[:, 0].long()][:, :, None, None].expand(-1, -1, 7, 7)
            + rois[:, 1].view(-1, 1, 1, 1) / 64
        )


@pytest.fixture
def roi_head():
    torch.manual_seed(0)
    head = built(
        ConfigDict(
            type="attlas.BVRRoIHead",
            num_classes=3,
            in_channels=8,
            strides=(8, 16),
            keypoint_head=dict(feat_channels=8),
            bridging=dict(num_heads=2),
            bbox_roi_extractor=dict(
                type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=7), out_channels=8,
                featmap_strides=[4],
            ),
            bbox_head=dict(type="attlas.BVRShared2FCBBoxHead", in_channels=8, fc_out_channels=16, num_classes=3),
            train_cfg=dict(
                assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
                sampler=dict(type="RandomSampler", num=8, pos_fraction=0.5, neg_pos_ub=-1),
                pos_weight=-1,
            ),
        )
    )  # fmt: skip
    head.bbox_roi_extractor = Pooled()
    return head


def test_proposals_attend_to_key_points(roi_head):
    maps = [torch.randn(2, 8, n, n) for n in (16, 8, 4)]
    batch = samples(64, 64, BOXES, [])
    proposals = [InstanceData(bboxes=torch.tensor([*BOXES, [0.0, 0, 9, 9]]), scores=torch.ones(3)) for _ in batch]
    losses = roi_head.loss(maps, proposals, batch)
    assert {"loss_cls", "loss_bbox", "loss_keypoint_score", "loss_keypoint_offset"} <= losses.keys()
    sum(value for name, value in losses.items() if "loss" in name).backward()
    grads = {name: p.grad for name, p in roi_head.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    for name in (
        "key_features.weight",
        "cls_bridge.attentions.0.in_proj_weight",
        "reg_bridge.attentions.1.out_proj.bias",
    ):
        assert grads[name].any(), name


def test_proposals_of_one_image_do_not_see_the_other(roi_head):
    maps = [torch.randn(2, 8, n, n) for n in (16, 8, 4)]
    rois = torch.tensor([[1.0, 4, 4, 20, 30], [0, 8, 3, 40, 20], [1, 0, 0, 60, 60]])
    result = roi_head._bbox_forward(roi_head._with_keypoints(maps), rois)
    changed = [torch.stack([x[0], -x[1]]) for x in maps]
    other = roi_head._bbox_forward(roi_head._with_keypoints(changed), rois)
    torch.testing.assert_close(result["cls_score"][1], other["cls_score"][1])
    assert not torch.allclose(result["cls_score"][0], other["cls_score"][0])
    none = roi_head._bbox_forward(roi_head._with_keypoints(maps), rois[:0])
    assert none["cls_score"].shape == (0, 4)


def test_without_attention_it_is_the_stock_roi_head(roi_head):
    from mmdet.models.roi_heads import Shared2FCBBoxHead

    stock = Shared2FCBBoxHead(in_channels=8, fc_out_channels=16, num_classes=3)
    stock.load_state_dict(roi_head.bbox_head.state_dict())
    features = torch.randn(5, 8, 7, 7)
    assert all(map(torch.equal, roi_head.bbox_head(features), stock(features)))
