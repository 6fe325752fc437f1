import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from mmdet.structures import DetDataSample
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from small_detectors import build, detector, settings
from torch.testing import assert_close

from attlas import checkpoint
from attlas.config import load_config
from attlas.dense.detection import DetectionSwin, PositionRelation
from attlas.dense.detection.relation_detr import rules
from attlas.kernels.position_relation import relation_terms

TOLERANCE = dict(rtol=0, atol=2e-4)


def loaded(record, prefix, **sizes):
    """A small detector with the weights of a record, all of which it must take."""
    model = build(settings(**sizes)).eval()
    account = checkpoint.load(model, {f"{prefix}{name}": value for name, value in record.state_dict().items()})
    assert not account.unexpected
    assert len(account.loaded) == len(record.fields["state"])
    return model


# --- records of the authors' code ------------------------------------------------------------------------------------


def test_relation_embedding():
    record = Record("relation-detr/relation_embedding")
    relation = PositionRelation(8).double()
    account = checkpoint.load(relation, record.state_dict(), rules=[(r"^pos_proj\.0\.", "proj.")])
    assert account.complete
    assert sum(p.numel() for p in relation.parameters()) == record.params == 520
    source, target = record.inputs["src_boxes"], record.inputs["tgt_boxes"]
    assert_close(relation_terms(source, target).float(), record.output(0), rtol=0, atol=1e-5)
    bias = relation(source, target).unflatten(0, (2, 8))
    assert_close(bias.detach().float(), record.output(1), rtol=0, atol=1e-4)


def levels_of(shapes):
    shapes = torch.as_tensor(shapes)
    return dict(
        spatial_shapes=shapes, level_start_index=torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    )


def test_decoder():
    record = Record("relation-detr/decoder_small")
    model = loaded(record, "transformer.decoder.", levels=2)
    with torch.no_grad():
        states, references = model.decoder(
            record.input("query", torch.float32),
            value=record.input("value", torch.float32),
            key_padding_mask=record.arrays["key_padding_mask"],
            self_attn_mask=None,
            reference_points=record.input("reference_points", torch.float32),
            valid_ratios=record.arrays["valid_ratios"],
            reg_branches=model.bbox_head.reg_branches,
            **levels_of(record.arrays["spatial_shapes"]),
        )
        scores, boxes = model.bbox_head(states, references)
    assert_close(scores, record.output(0), **TOLERANCE)
    assert_close(boxes, record.output(1), **TOLERANCE)


def test_transformer():
    record = Record("relation-detr/transformer_eval")
    model = loaded(record, "transformer.")
    features = [record.input(f"feat{i}", torch.float32) for i in range(3)]
    masks = [record.arrays[f"mask{i}"] for i in range(3)]
    codes = [record.input(f"pos{i}", torch.float32) + model.level_embed[i, :, None, None] for i in range(3)]

    def tokens(maps):
        return torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2)

    mask = torch.cat([x.flatten(1) for x in masks], 1)
    levels = levels_of([x.shape[2:] for x in features])
    ratios = torch.stack([model.get_valid_ratio(x) for x in masks], 1)
    with torch.no_grad():
        encoded = model.forward_encoder(tokens(features), mask, tokens(codes), valid_ratios=ratios, **levels)
        inputs, _ = model.pre_decoder(**encoded)
        outputs = model.forward_decoder(memory_mask=mask, valid_ratios=ratios, **levels, **inputs)
        scores, boxes = model.bbox_head(**outputs)
        anchors = model.gen_encoder_output_proposals(**encoded)
        proposals = model.proposals(model.decoder.num_layers, *anchors, model.num_queries)
    for number, got in enumerate((scores, boxes, *proposals)):
        assert_close(got, record.output(number), **TOLERANCE)
    assert torch.equal(inputs["reference_points"], proposals[1])


def samples_of(*objects, size=(1, 1)):
    """Samples of (boxes as xyxy in pixels, labels)."""
    samples = []
    for boxes, labels in objects:
        instances = InstanceData(bboxes=torch.as_tensor(boxes).view(-1, 4), labels=torch.as_tensor(labels).long())
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size, scale_factor=(1, 1)))
        sample.gt_instances = instances
        samples.append(sample)
    return samples


def test_criterion():
    record = Record("relation-detr/criterion")
    head = build(settings(num_classes=5)).bbox_head
    head.hybrid_repeats = record.config["hybrid_assign"]
    logits = record.input("pred_logits", torch.float32)
    boxes = record.input("raw_boxes", torch.float32) * 0.5 + 0.2
    truths = []
    for i in range(2):
        center, size = record.arrays[f"gt_boxes{i}"].split(2, 1)
        corners = torch.cat([center - size / 2, center + size / 2], 1)
        truths.append(InstanceData(bboxes=corners, labels=record.arrays[f"gt_labels{i}"]))
    metas = [dict(img_shape=(1, 1))] * 2
    weights = torch.tensor([1.0, 5.0, 2.0])
    for number, objects in enumerate((truths, [head.repeated(x) for x in truths])):
        losses = torch.stack([x.mean() for x in head.loss_by_feat_single(logits, boxes, objects, metas)])
        assert_close(losses / weights, record.output(number), **TOLERANCE)
    for i, objects in enumerate(truths):
        labels, *_, matched, _ = head._get_targets_single(logits[i], boxes[i], objects, metas[i])
        order = record.arrays[f"match_query{i}"].argsort()
        assert torch.equal(matched, record.arrays[f"match_query{i}"][order])
        assert torch.equal(labels[matched], objects.labels[record.arrays[f"match_gt{i}"][order]])


# --- the detector ----------------------------------------------------------------------------------------------------


def scene(*counts, side=96, classes=5):
    """Images and samples of some objects each."""
    corner = [torch.rand(n, 2) * side * 0.7 for n in counts]
    objects = [
        (torch.cat([c, c + 2 + torch.rand(len(c), 2) * side * 0.25], 1), torch.randint(classes, (len(c),)))
        for c in corner
    ]
    return torch.randn(len(counts), 3, side, side), samples_of(*objects, size=(side, side))


def run(model, images, samples):
    """What the head gets, and its outputs."""
    outputs = model.forward_transformer(model.extract_feat(images), samples)
    return outputs, model.bbox_head(outputs["hidden_states"], outputs["references"])


def test_every_parameter_learns():
    model = detector().train()
    losses = model.loss(*scene(3, 2))
    names = {name.rpartition(".")[2] for name in losses}
    assert {
        f"{part}loss_{kind}" for part in ("", "dn_", "enc_", "hybrid_", "hybrid_enc_") for kind in ("cls", "bbox")
    } <= names
    assert len(losses) == 3 * (
        3 + 1 + 3 + 3 + 1
    )  # three of decoder, proposals, denoising, hybrid decoder, its proposals
    sum(loss.sum() for loss in losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_step_in_mixed_precision():
    model = detector().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(*scene(3, 0))
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("counts", [(0, 3), (0, 0)])
def test_images_without_objects(counts):
    model = detector().train()
    losses = model.loss(*scene(*counts))
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_dense_scene():
    """1,500 objects: 3,000 denoising queries, and more targets than queries."""
    model = detector(heads=1, layers=1, decoder_layers=2, sines=2).train()
    losses = model.loss(*scene(1500))
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values())
    assert model.decoder.position_relation.proj.weight.grad.any()


def test_a_padded_batch_and_predictions():
    model = detector().eval()
    images, samples = scene(2, 1)
    samples[1].set_metainfo(dict(img_shape=(64, 96)))
    with torch.no_grad():
        results = model.predict(images, samples)
        alone = model.predict(images[:1], samples[:1])
    for found, sample in zip(results, samples):
        height, width = sample.img_shape
        boxes = found.pred_instances.bboxes
        assert len(boxes) == 10
        assert boxes.ge(0).all()
        assert (boxes <= boxes.new_tensor([width, height, width, height])).all()
    assert_close(alone[0].pred_instances.scores, results[0].pred_instances.scores)


def test_fewer_tokens_than_queries():
    model = detector(queries=200, hybrid=300)
    images, samples = scene(2, side=64)
    _, (scores, _) = run(model.eval(), images, samples)
    assert scores.shape[2] == 8 * 8 + 4 * 4 + 2 * 2
    assert all(loss.isfinite().all() for loss in model.train().loss(images, samples).values())
    model.bbox_head.test_cfg.max_per_img = 1000
    with torch.no_grad():
        found = model.eval().predict(images, samples)[0].pred_instances
    assert len(found.scores) == scores.shape[2] * 5
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)


def test_predictions_in_the_size_of_the_file():
    model = detector().eval()
    images, samples = scene(1)
    with torch.no_grad():
        before = model.predict(images, samples)[0].pred_instances.bboxes
        samples[0].set_metainfo(dict(scale_factor=(2.0, 0.5)))
        after = model.predict(images, samples)[0].pred_instances.bboxes
    assert_close(after, before * before.new_tensor([0.5, 2, 0.5, 2]))


def test_denoising_and_hybrid_queries_do_not_reach_the_matching_ones():
    model = detector()
    images, samples = scene(3, 2)
    with torch.no_grad():
        outputs, trained = run(model.train(), images, samples)
        count = outputs["dn_meta"]["num_denoising_queries"]
        assert count > 0
        expected = run(model.eval(), images, samples)[1]
        for name, p in model.named_parameters():
            if "hybrid" in name or (name.startswith("bbox_head.") and f"es.{model.decoder.num_layers + 1}." in name):
                p.fill_(torch.nan)
        without = run(model.eval(), images, samples)[1]
    for a, b, c in zip(trained, expected, without):
        assert_close(a[:, :, count:], b, rtol=1e-4, atol=1e-5)
        assert torch.equal(b, c)


def test_the_hybrid_branch_has_no_relation():
    model = detector().train()
    images, samples = scene(3, 2)
    with torch.no_grad():
        before = run(model, images, samples)[0]
        model.decoder.position_relation.proj.bias.add_(torch.arange(4.0))
        model.decoder.position_relation.proj.weight.add_(1)
        after = run(model, images, samples)[0]
    assert torch.equal(before["hybrid_hidden_states"], after["hybrid_hidden_states"])
    assert not torch.allclose(before["hidden_states"], after["hidden_states"])


def test_zero_relation_is_none():
    images, samples = scene(3, 2)
    model = detector().eval()
    with torch.no_grad():
        related = run(model, images, samples)[1][0]
        for p in model.decoder.position_relation.parameters():
            p.zero_()
        zero = run(model, images, samples)[1][0]
        model.decoder.position_relation = None
        none = run(model, images, samples)[1][0]
    assert_close(zero, none)
    assert torch.equal(related[0], none[0])  # the first layer has none
    assert not torch.allclose(related[1], none[1])


def test_permuted_queries_give_permuted_outputs():
    model = detector().eval()
    order = torch.randperm(12)
    query, boxes, value = torch.randn(2, 12, 32), torch.rand(2, 12, 4), torch.randn(2, 9, 32)

    def decode(query, boxes):
        return model.bbox_head(
            *model.decoder(
                query,
                value=value,
                key_padding_mask=None,
                self_attn_mask=None,
                reference_points=boxes,
                valid_ratios=torch.ones(2, 3, 2),
                reg_branches=model.bbox_head.reg_branches,
                **levels_of([(2, 2), (2, 2), (1, 1)]),
            )
        )

    with torch.no_grad():
        for a, b in zip(decode(query, boxes), decode(query[:, order], boxes[:, order])):
            assert_close(a[:, :, order], b, rtol=1e-4, atol=1e-5)


def test_initial_values():
    """mmdet draws all matrices of encoder and decoder anew; relation and fusion keep the range of PyTorch."""
    model = build(settings())
    model.init_weights()
    assert model.decoder.position_relation.proj.weight.abs().max() <= 64**-0.5
    assert model.encoder.memory_fusion[0].weight.abs().max() <= 96**-0.5
    assert model.query_embedding.weight.std() > 0.8
    assert all(branch[-1].weight.eq(0).all() for branch in model.bbox_head.reg_branches)
    assert len(model.bbox_head.cls_branches) == 3 + 2


# --- checkpoints -----------------------------------------------------------------------------------------------------


def authors_state(classes):
    """A state dict in the authors' names for a small detector: a record's, and what surrounds it."""
    record = Record("relation-detr/transformer_eval")
    state = {f"transformer.{name}": value for name, value in record.state_dict().items()}
    for name, value in state.items():
        if "class_head" in name:
            state[name] = torch.arange(float(classes)).view(-1, *[1] * (value.ndim - 1)).expand(-1, *value.shape[1:])
    model = build(settings())
    state |= {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    for i, conv in enumerate([*model.neck.convs, *(model.neck.extra_convs or [])]):
        state[f"neck.convs.{i}.0.weight"] = conv.conv.weight
        state |= {f"neck.convs.{i}.1.{name}": value for name, value in conv.gn.state_dict().items()}
    state["denoising_generator.label_encoder.weight"] = torch.arange(float(classes))[:, None].expand(-1, 32)
    return state | {"_classes_": torch.zeros(3)}


@pytest.mark.parametrize(("classes", "ours"), [(5, 5), (91, 91), (91, 80)])
def test_checkpoints_of_the_authors(classes, ours):
    model = build(settings(num_classes=ours))
    account = checkpoint.load(model, {"model": authors_state(classes)})
    assert account.complete
    assert account.ignored == ["_classes_"]
    rows = model.dn_query_generator.label_embedding.weight[:, 0].tolist()
    assert rows == model.bbox_head.cls_branches[4].bias.tolist()
    if (classes, ours) == (91, 80):  # person, bicycle, ..., stop sign 13, ..., toothbrush
        assert (rows[0], rows[11], rows[-1]) == (1, 13, 90)
    else:
        assert rows == list(range(classes))
    assert checkpoint.load(build(settings(num_classes=ours)), model.state_dict()).complete  # one of ours


def test_other_classes_are_refused_or_left_out():
    with pytest.raises(ValueError, match=r"bbox_head\.cls_branches\.\d\.weight: \(91, 32\) in the file, \(7, 32\)"):
        checkpoint.load(build(settings(num_classes=7)), authors_state(91))
    given = dict(ignore_mismatched=[r"cls_branches", r"label_embedding"])  # as the config says
    account = checkpoint.load(build(settings(num_classes=7)), authors_state(91), **given)
    assert len(account.mismatched) == 2 * 5 + 1
    assert not account.missing
    assert not account.unexpected


def test_more_levels_than_maps():
    old = "neck.convs.2.0.weight", "neck.convs.3.1.bias", "neck.convs.4.0.weight"
    names = [rename(name, rules()) for name in old]
    assert names == ["neck.convs.2.conv.weight", "neck.extra_convs.0.gn.bias", "neck.extra_convs.1.conv.weight"]


def rename(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name) if replacement is not None else name
    return name


def swin():
    model = DetectionSwin(embed_dims=8, depths=(1, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1))
    model.eval()  # which returns None in mmdet
    for p in model.parameters():
        torch.nn.init.normal_(p)
    return model


def test_swin_of_the_authors():
    """Names as in torchvision, and patches merged in its order of pixels."""
    model, state = swin(), {}
    for name, value in model.state_dict().items():
        name = name.replace("patch_embed.projection", "features.0.0").replace("patch_embed.norm", "features.0.2")
        name = name.replace("stages.0.blocks", "features.1").replace("stages.1.blocks", "features.3")
        name = name.replace("stages.0.downsample", "features.2").replace("w_msa.", "")
        state["0." + name.replace("ffn.layers.0.0", "mlp.0").replace("ffn.layers.1", "mlp.3")] = value
    names = [f"0.features.2.{name}" for name in ("norm.weight", "norm.bias", "reduction.weight")]
    merging = [torch.randn_like(state[name]) for name in names]
    state |= dict(zip(names, merging))
    state["0.features.1.0.attn.relative_position_index"] = torch.zeros(49 * 49)
    account = checkpoint.load(model, state)
    assert account.complete
    x = torch.randn(1, 8, 4, 6)
    pixels = [x[..., i::2, j::2].permute(0, 2, 3, 1) for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    expected = F.linear(F.layer_norm(torch.cat(pixels, -1), (32,), *merging[:2]), merging[2])
    got, _ = model.stages[0].downsample(x.flatten(2).transpose(1, 2), (4, 6))
    assert_close(got.unflatten(1, (2, 3)), expected, rtol=1e-4, atol=1e-4)
    assert checkpoint.load(swin(), model.state_dict()).complete
    within = build(settings() | dict(backbone=dict(type="attlas.DetectionSwin", embed_dims=16, out_indices=(1, 2, 3))))
    names = {f"backbone.{name}" for name in state if not name.endswith("index")}
    new = {rename(name, within.checkpoint_rules).replace("by_pixel_", "") for name in names}
    assert new == {f"backbone.{name}" for name in model.state_dict() if not name.endswith("index")}


def test_swin_of_microsoft():
    ours, state = swin(), {}
    for name, value in ours.state_dict().items():
        name = name.replace("stages.", "layers.").replace("projection", "proj").replace("w_msa.", "")
        name = name.replace("ffn.layers.0.0", "mlp.fc1").replace("ffn.layers.1", "mlp.fc2")
        state[name] = value
    others = {"head.weight": torch.zeros(3, 16), "norm.bias": torch.zeros(16)}
    others["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    account = checkpoint.load(ours, {"model": state | others})
    assert account.complete
    assert set(account.ignored) == set(others)


def test_resnet_of_torchvision_and_timm(tmp_path):
    """Both call the parts of a ResNet as mmdet does, and have counters and a classifier besides."""
    options = settings()["backbone"]
    plain = build(options | dict(norm_cfg=dict(type="BN")))
    plain.eval()  # which returns None in mmdet
    state = {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in plain.state_dict().items()
    }
    plain.load_state_dict(state)
    assert {"conv1.weight", "bn1.running_var", "layer4.1.bn2.num_batches_tracked", "layer2.0.downsample.1.bias"} < {
        *state
    }
    file = tmp_path / "resnet.safetensors"
    checkpoint.save(file, state | {"fc.weight": torch.zeros(9, 64), "fc.bias": torch.zeros(9)})
    ours = build(options | dict(init_cfg=dict(type="Pretrained", checkpoint=str(file))))
    ours.init_weights()
    image = torch.randn(1, 3, 64, 64)
    ours.train()
    with torch.no_grad():
        for a, b in zip(ours(image), plain(image)):
            assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- configs ---------------------------------------------------------------------------------------------------------

CONFIGS = Path(__file__).parents[3] / "configs" / "relation_detr"


@pytest.mark.parametrize(
    ("name", "total", "trainable"), [("r50", 48_869_312, 48_646_912), ("swin_l", 218_997_780, 217_799_784)]
)
def test_parameters_of_the_authors(name, total, trainable):
    config = load_config(CONFIGS / f"relation_detr_{name}_coco.py", {"model.bbox_head.num_classes": 91})
    model = build(config.model).train()
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == total
    assert sum(p.numel() for p in parameters if p.requires_grad) == trainable


@pytest.mark.parametrize("name", ["r50", "r50_2x", "r50_mixer", "swin_l"])
def test_a_step(name):
    """At a small size: forward, backward, predictions. Those of the backbones of the atlas are in `test_configs.py`."""
    small = {
        "bbox_head.num_classes": 80,
        "num_queries": 20,
        "num_hybrid_queries": 30,
        "encoder.num_layers": 1,
        "decoder.num_layers": 2,
        "encoder.layer_cfg.ffn_cfg.feedforward_channels": 64,
        "decoder.layer_cfg.ffn_cfg.feedforward_channels": 64,
        "dn_cfg.group_cfg.num_dn_queries": 6,
        "test_cfg.max_per_img": 5,
    }
    if "swin" in name:
        small |= {"backbone.embed_dims": 24, "backbone.depths": [1, 1, 2, 1], "backbone.num_heads": [1, 2, 4, 8]}
        small |= {"neck.in_channels": [48, 96, 192]}
    overrides = {f"model.{key}": value for key, value in small.items()}
    config = load_config(CONFIGS / f"relation_detr_{name}_coco.py", overrides)
    model = build(config.model).train()
    torch.nn.init.normal_(model.level_embed)  # which mmdet leaves uninitialized until init_weights()
    images, samples = scene(2, 1, side=64, classes=80)
    losses = model.loss(images, samples)
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert len(model.eval().predict(images, samples)[0].pred_instances.bboxes) == 5
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    rates = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name, p in model.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert rates["bbox_head.cls_branches.0.weight"] == (1e-4, 1e-4)
    assert rates["bbox_head.cls_branches.0.bias"] == (1e-4, 0)
    assert rates["encoder.layers.0.norms.0.weight"] == (1e-4, 0)
    assert rates["decoder.layers.0.cross_attn.sampling_offsets.weight"] == (1e-5, 1e-4)
    assert rates["decoder.layers.0.cross_attn.sampling_offsets.bias"] == (1e-5, 0)
    assert {rate for name, (rate, _) in rates.items() if name.startswith("backbone.")} == {1e-5}
