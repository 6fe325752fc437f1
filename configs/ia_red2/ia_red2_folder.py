# IA-RED2 on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/ia_red2/ia_red2_folder.py
# This first run keeps all tokens: a DeiT learns, and pretrained=deit_small.pth gives it a start. Then its interpreters
# learn to drop tokens and its blocks to do without, in turns: --cfg-options load_from=LAST.pth
#   model.backbone.threshold=0.5 model.backbone.learns=interpreter,0    then blocks,0 and interpreter,1 and so on
# Trains ia_red2_deit_tiny unless told otherwise: --cfg-options name=ia_red2_deit_small max_epochs=30
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:ia_red2_deit_tiny}}"
model = dict(backbone=dict(threshold=0.0))
