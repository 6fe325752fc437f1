# VGG on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/vgg/vgg_folder.py
# Trains vgg16 unless told otherwise: --cfg-options name=vgg_face max_epochs=30 pretrained=weights.pth
# It has no drop path.
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:vgg16}}"
options = {option: value for option, value in _base_.model.backbone.items() if option != "drop_path_rate"}
model = dict(backbone=dict(_delete_=True, **options))
del options
