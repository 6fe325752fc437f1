# One turn of the training of IA-RED2 on the built-in pictures of furniture: an interpreter learns by rewards, or the
# blocks of its group learn on the tokens that are left. A minute or two on a CPU. All turns, in a shell:
#   python tools/train.py configs/ia_red2/ia_red2_furniture_views.py --work-dir work_dirs/turn
#   for GROUP in 0 1 2; do for PART in interpreter blocks; do
#     export GROUP PART; cp $(cat work_dirs/turn/last_checkpoint) before.pth; rm work_dirs/turn/last_checkpoint
#     python tools/train.py configs/ia_red2/ia_red2_turn_furniture_views.py --work-dir work_dirs/turn
#   done; done
_base_ = "ia_red2_furniture_views.py"

part, group = "{{$PART:interpreter}}", int("{{$GROUP:0}}")
load_from = "before.pth"
model = dict(backbone=dict(threshold=0.5, learns=(part, group)), label_smoothing=0.0)
optim_wrapper = dict(_delete_=True, optimizer=dict(type="AdamW", lr=1e-3 if part == "interpreter" else 2e-4))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=5, eta_min=1e-5, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=5, val_interval=5)
custom_hooks = []
