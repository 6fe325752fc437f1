# HAT against the artifacts of JPEG of QUALITY (10, 20, 30, 40) on DFWB, grey, or in color (CHANNELS=3); validated on
# LIVE1. The recipe is that of hat_denoising_dfwb.py.
#   python tools/train.py configs/hat/hat_jpeg_dfwb.py --cfg-options quality=10
_base_ = "hat_denoising_dfwb.py"

name = "{{$NETWORK:hat}}"
mixer = "{{$MIXER:own}}"
channels = int("{{$CHANNELS:1}}")
quality = int("{{$QUALITY:40}}")
benchmark = "{{$BENCHMARK:data/LIVE1}}"
kind = name if mixer == "own" else f"{name}_{mixer}"
work_dir = f"work_dirs/{kind}_{'color' if channels == 3 else 'grey'}_jpeg{quality}_dfwb"
degradation = dict(_delete_=True, type="JPEG", quality=quality)
train_dataloader = dict(dataset=dict(degradation=degradation))
val_dataloader = test_dataloader = dict(dataset=dict(degradation=degradation, root=benchmark))
