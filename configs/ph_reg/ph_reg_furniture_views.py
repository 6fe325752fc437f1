# Registers for a small plain vision transformer that knows the built-in pictures of furniture, learned from its own
# denoised maps: minutes on a CPU. The teacher is trained first:
#   python tools/train.py configs/vit/vit_furniture_views.py
#   TEACHER=work_dirs/vit_furniture_views/epoch_20.pth python tools/train.py configs/ph_reg/ph_reg_furniture_views.py
# The validation says what became of the artefacts: of the teacher's maps ("plain"), of what they are denoised to, and
# of the student's.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py"]

teacher = "{{$TEACHER:work_dirs/vit_furniture_views/epoch_20.pth}}"
network = dict(dim=64, depth=6, heads=4, patch_size=8, img_size=64, out_indices=(5,))
model = dict(
    type="RegisterDistiller",
    teacher=dict(type="ViT", **network, init_cfg=dict(type="Pretrained", checkpoint=teacher, prefix="backbone.")),
    backbone=dict(type="PHReg", registers=8, **network),
    shift=0.25,  # of eight patches
    chunk=160,
)
train_dataloader = dict(batch_size=16)
val_evaluator = test_evaluator = dict(_delete_=True, type="Means")
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-2))
param_scheduler = dict(type="ExponentialLR", gamma=0.05**0.5)  # to a twentieth at the end, as the authors
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
auto_scale_lr = dict(base_batch_size=16)
del network
