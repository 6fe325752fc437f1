# Registers for DINOv2, as the authors train them: pictures of Flickr30k, data/flickr30k/images/*.jpg, without labels; 8
# a step, ten views of each, 100 epochs in bfloat16. Two of a hundred are held out, to watch the artefacts.
#   TEACHER=dinov2_vitb14_pretrain.pth python tools/train.py configs/ph_reg/ph_reg_flickr30k.py --amp
# The authors have not published the training of CLIP. With name=ph_reg_clip_base_patch16 and a file of ViT-B/16, the
# recipe is ours.
import importlib

_base_ = "../_base_/default_runtime.py"

name = "{{$BACKBONE:ph_reg_dinov2_base}}"
teacher = "{{$TEACHER:dinov2_vitb14_pretrain.pth}}"
work_dir = f"work_dirs/{name}_flickr30k"
variant = importlib.import_module("attlas.backbones").variant(name)[1]
size = variant.size

model = dict(
    type="RegisterDistiller",
    # the same network without registers
    teacher=dict(
        type="NamedBackbone",
        name=name,
        registers=0,
        out_indices=(-1,),
        init_cfg=dict(type="Pretrained", checkpoint=teacher),
    ),
    backbone=dict(type="NamedBackbone", name=name, out_indices=(-1,)),
    count=10,
    shift=0.15,
    mean=variant.mean,
    std=variant.std,
)
loader = dict(
    batch_size=8, num_workers=8, persistent_workers=True, pin_memory=True, collate_fn=dict(type="default_collate")
)
pictures = dict(type="ImageFolder", root="data/flickr30k", test_share=0.02)
resize = dict(type="Resize", size=size, interpolation="bicubic")
pack = dict(type="PackImage", mean=variant.mean, std=variant.std)
train_dataloader = dict(
    **loader,
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    dataset=dict(**pictures, split="train", transforms=[resize, dict(type="RandomCrop", size=size), pack]),
)
val_dataloader = test_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**pictures, split="val", transforms=[resize, dict(type="CenterCrop", size=size), pack]),
)
val_evaluator = test_evaluator = dict(type="Means")
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-2))
param_scheduler = dict(type="ExponentialLR", gamma=0.05**0.01)  # from 1e-4 to 5e-6 in 100 epochs
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)
default_hooks = dict(checkpoint=dict(interval=10))
auto_scale_lr = dict(base_batch_size=8)
del variant, loader, pictures, resize, pack
