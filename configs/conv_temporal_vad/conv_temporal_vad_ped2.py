# ConvTTrans with LI-ConvLSTM on UCSD Ped2, grey, as the authors: DATA is the folder UCSDped2.
_base_ = ["../_base_/conv_temporal_vad.py"]

data_root = "{{$DATA:data/UCSD_Anomaly_Dataset.v1p2/UCSDped2}}"
transforms = [dict(type="PackClip", size=(256, 256), grey=True)]
model = dict(network=dict(in_channels=1))
_data = dict(type="UCSDPed", root=data_root, transforms=transforms)
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=_data)
test_dataloader = dict(dataset=_data)
