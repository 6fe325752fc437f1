import torch
from golden_records import Record
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch.testing import assert_close

from attlas import checkpoint
from attlas.dense.detection import PositionRelation
from attlas.kernels.position_relation import relation_terms

TOLERANCE = dict(rtol=0, atol=2e-4)


def settings(layers=2, num_classes=5, dim=32, levels=3, queries=10, hybrid=14, decoder_layers=3, heads=4, points=4):
    """A small detector on a small ResNet."""
    attention = dict(embed_dims=dim, num_levels=levels, num_heads=heads, num_points=points, dropout=0.0)
    ffn = dict(embed_dims=dim, feedforward_channels=2 * dim, ffn_drop=0.0)
    return dict(
        type="attlas.RelationDETR",
        num_queries=queries,
        num_hybrid_queries=hybrid,
        num_feature_levels=levels,
        with_box_refine=True,
        as_two_stage=True,
        backbone=dict(
            type="ResNet",
            depth=18,
            base_channels=8,
            out_indices=(1, 2, 3),
            norm_cfg=dict(type="attlas.FrozenBatchNorm2d"),
        ),
        neck=dict(
            type="ChannelMapper",
            in_channels=[16, 32, 64],
            out_channels=dim,
            kernel_size=1,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=4),
            num_outs=levels,
        ),
        encoder=dict(num_layers=layers, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
        decoder=dict(
            num_layers=decoder_layers,
            position_relation=dict(num_heads=heads),
            scale_queries=True,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=dim, num_heads=heads, dropout=0.0), cross_attn_cfg=attention, ffn_cfg=ffn
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=dim // 2, normalize=True, offset=-0.5, temperature=10000),
        bbox_head=dict(
            type="attlas.RelationDETRHead",
            num_classes=num_classes,
            embed_dims=dim,
            sync_cls_avg_factor=True,
            hybrid_repeats=2,
            loss_cls=dict(type="attlas.DenoisedVarifocalLoss"),
            loss_bbox=dict(type="L1Loss", loss_weight=5.0),
            loss_iou=dict(type="GIoULoss", loss_weight=2.0),
        ),
        dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(num_dn_queries=8)),
        train_cfg=dict(
            assigner=dict(
                type="HungarianAssigner",
                match_costs=[
                    dict(type="FocalLossCost", weight=2.0),
                    dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                    dict(type="IoUCost", iou_mode="giou", weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=10),
    )


def build(options):
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(ConfigDict(options))


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
