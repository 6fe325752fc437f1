# HyperZZW (Terminator) on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/hyperzzw/hyperzzw_folder.py
# Trains hyperzzw_cifar10 unless told otherwise: --cfg-options name=hyperzzw_cifar100 max_epochs=30
# Its pictures are of 32 pixels, and its blocks have no drop path.
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:hyperzzw_cifar10}}"
options = {option: value for option, value in _base_.model.backbone.items() if option != "drop_path_rate"}
model = dict(backbone=dict(_delete_=True, **options, slow_loss=1.0, weight_norm=5e-5))
del options
