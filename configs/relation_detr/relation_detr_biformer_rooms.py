# The DINO of ../dino/dino_biformer_rooms.py made a Relation-DETR: position relation, hybrid branch, fused encoder.
_base_ = ["../dino/dino_biformer_rooms.py"]

model = dict(
    type="attlas.RelationDETR",
    num_hybrid_queries=150,
    decoder=dict(position_relation=dict(num_heads=_base_.heads), scale_queries=True),
    positional_encoding=dict(offset=-0.5, temperature=10000),
    bbox_head=dict(
        type="attlas.RelationDETRHead",
        hybrid_repeats=4,
        loss_cls=dict(_delete_=True, type="attlas.DetachedVarifocalLoss", alpha=0.75, gamma=2.0, loss_weight=1.0),
    ),
)
