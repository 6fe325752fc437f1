# CrossViT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/crossvit/crossvit_folder.py
# Trains crossvit_tiny unless told otherwise: --cfg-options name=crossvit_small max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:crossvit_tiny}}"
