# DuoFormer on tiles of tissue, or other medical pictures that have no upright, a folder for each class: what the papers
# are about, by the optimizer of the authors' script. (How they trained on their tiles was not to be found.)
#   IMAGES=path/to/tiles PYRAMID_WEIGHTS=resnet50.pth python tools/train.py configs/duoformer/duoformer_tiles.py
# PYRAMID_WEIGHTS are those of the ResNet alone, in the names of torchvision, as Lunit's weights of SwAV on tissue have
# them. With few tiles, keep it as it is: --cfg-options model.backbone.frozen_stages=4
# Trains duoformer_resnet50_3 unless told otherwise: --cfg-options name=duoformer_resnet50_4 max_epochs=50
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:duoformer_resnet50_3}}"
weights = {"None": None}.get("{{$PYRAMID_WEIGHTS:None}}", "{{$PYRAMID_WEIGHTS:None}}")
work_dir = f"work_dirs/{name}_tiles"

resnet = "resnet18" if "resnet18" in name else "resnet50"
model = dict(
    backbone=dict(pyramid=dict(type="NamedBackbone", name=resnet, pretrained=weights), drop_path_rate=0.0),
    label_smoothing=0.0,
)
crop, flip, _, pack = _base_.train_dataloader.dataset.transforms
stains = dict(type="ColorJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)
turned = [dict(type="RandomFlip", direction="vertical"), dict(type="RandomRotate", degrees=180), stains]
train_dataloader = dict(dataset=dict(transforms=[crop, flip, *turned, pack]))
optim_wrapper = dict(_delete_=True, optimizer=dict(type="Adam", lr=5e-5 * _base_.batch_size / 64, weight_decay=1e-4))
rate, epochs = optim_wrapper["optimizer"]["lr"], _base_.max_epochs
param_scheduler = [dict(type="OneCycleLR", eta_max=rate, total_steps=epochs, convert_to_iter_based=True)]
