# TCPA on pictures of your own, a folder for each class: prompts and the head learn, the transformer stays as it is.
# PRETRAINED says which, as timm's vit_base_patch16_224.augreg_in21k; without it there is nothing to be kept.
#   IMAGES=path/to/pictures PRETRAINED=weights.safetensors python tools/train.py configs/tcpa/tcpa_folder.py
# Trains tcpa_vfpt_base unless told otherwise: --cfg-options name=tcpa_vpt_base max_epochs=30
# What decides are the learning rate and the weight decay: --cfg-options optim_wrapper.optimizer.lr=1e-2 and so on (see
# tcpa_cub.py, tcpa_cifar100.py and tcpa_dtd.py for the authors').
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:tcpa_vfpt_base}}"
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay=None), optimizer=dict(lr=4e-3 * _base_.batch_size / 128, weight_decay=0.1)
)
custom_hooks = [dict(type="PromptHook", random_epochs=_base_.max_epochs // 10)]
