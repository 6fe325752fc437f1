# The recipe of the release: Adam at 1e-3, times 0.7 every 20 epochs, set back to 1e-3 at epoch 300 of 450.
optim_wrapper = dict(optimizer=dict(type="Adam", lr=1e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type="StepLR", step_size=20, gamma=0.7),
    dict(type="MultiStepLR", milestones=[300], gamma=0.7**-15),  # undoes the fifteen steps until then
]
train_cfg = dict(by_epoch=True, max_epochs=450, val_interval=10)
