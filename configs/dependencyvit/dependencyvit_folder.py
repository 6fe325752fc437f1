# DependencyViT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/dependencyvit/dependencyvit_folder.py
# Trains dependencyvit_tiny unless told otherwise: --cfg-options name=dependencyvit_lite_tiny max_epochs=30
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:dependencyvit_tiny}}"
