# Relation-DETR with ResNet-50 and a mixer of the atlas in the encoder, in place of the deformable attention; each level
# is mixed by itself. Any of MIXERS: MIXER=GnConv in the environment, or --cfg-options mixer=GnConv. Nothing was
# published for it.
_base_ = ["./relation_detr_r50_coco.py"]

mixer = "{{$MIXER:BiLevelRouting}}"
work_dir = f"work_dirs/relation_detr_r50_{mixer}_coco"
model = dict(encoder=dict(mixer=mixer, layer_cfg=dict(self_attn_cfg=None)))
