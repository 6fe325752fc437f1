# Sparsifiner on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/sparsifiner/sparsifiner_folder.py
# Trains sparsifiner_small unless told otherwise, its predictors from its own attention:
#   --cfg-options name=sparsifiner_tiny max_epochs=30 pretrained=deit_tiny_patch16_224-a1311bcf.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:sparsifiner_small}}"
model = dict(type="SparsifinerDistiller", logits_weight=0.0, map_weight=0.0, self_weight=0.002)
