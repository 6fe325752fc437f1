# TCPA on CUB-200-2011 after the authors' recipe, which is the same for all data sets of the HTA benchmark but for the
# learning rate, the weight decay and image_prompt: tcpa_dtd.py and tcpa_cifar100.py differ in these and in the data.
# Prompts, keys and head learn; the transformer is timm's vit_base_patch16_224.augreg_in21k, given as PRETRAINED=FILE.
# The pictures lie in data/cub/{train,test}/<class>/. One GPU, in mixed precision:
#   PRETRAINED=FILE python tools/train.py configs/tcpa/tcpa_cub.py --amp
# The results were published as a figure alone. The authors' README has distance_weight=10, their scripts 0.01.
import importlib

_base_ = "../_base_/default_runtime.py"

name = "{{$BACKBONE:tcpa_vfpt_base}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
variant = importlib.import_module("attlas.backbones").variant(name)[1]
pack = dict(type="PackImage", mean=variant.mean, std=variant.std)
del variant

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="NamedBackbone",
        name=name,
        num_classes=200,
        pretrained=pretrained,
        image_prompt=True,
        distance_weight=0.01,
    ),
    label_smoothing=0.1,
    mixup=0.8,
    mix_probability=0.5,
)
resize = dict(type="Resize", size=256)
crops = [resize, dict(type="RandomCrop", size=224), dict(type="RandomFlip"), pack]
views = [resize, dict(type="CenterCrop", size=224), pack]
loader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type="default_collate"),
)
train_dataloader = dict(
    **loader,
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    dataset=dict(type="ImageFolder", root="data/cub", split="train", transforms=crops),
)
val_dataloader = test_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ImageFolder", root="data/cub", split="test", transforms=views),
)
val_evaluator = test_evaluator = dict(type="ImageAccuracy")
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(constructor="LayerDecayConstructor", optimizer=dict(type="AdamW", lr=1.5e-3, weight_decay=0.5))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=100, T_max=80, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)
custom_hooks = [dict(type="PromptHook", random_epochs=10)]
auto_scale_lr = dict(base_batch_size=128)
