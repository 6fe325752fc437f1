# DuoFormer on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/duoformer/duoformer_folder.py
# Trains duoformer_resnet18_3 unless told otherwise: --cfg-options name=duoformer_resnet50_3 max_epochs=30
# duoformer_tiles.py is for tiles of tissue, and begins with weights of the pyramid.
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:duoformer_resnet18_3}}"
model = dict(backbone=dict(drop_path_rate=0.0))  # the authors have none
