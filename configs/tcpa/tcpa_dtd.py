# TCPA on DTD (textures) after the authors' recipe; see tcpa_cub.py. The pictures lie in data/dtd/{train,test}/<class>/.
#   PRETRAINED=FILE python tools/train.py configs/tcpa/tcpa_dtd.py --amp
_base_ = "tcpa_cub.py"

model = dict(backbone=dict(num_classes=47, image_prompt=False))
train_dataloader = dict(dataset=dict(root="data/dtd"))
val_dataloader = test_dataloader = dict(dataset=dict(root="data/dtd"))
optim_wrapper = dict(optimizer=dict(lr=1e-2, weight_decay=0.1))
