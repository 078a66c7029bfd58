"""Protect a model of your own: a timm classifier, unmodified, on the digits."""

import timm
import torch

import neuralfuse as nf

torch.manual_seed(0)
data = nf.load_data("digits", image_size=(32, 32))  # or load_data("folder", "path/to/images")
model = timm.create_model("resnet18", num_classes=10, in_chans=1)
nf.train_base(model, data, nf.QatConfig(epochs=8, lr=0.05))  # skip this for a model that is trained already

base = nf.deploy(model, input_range="symmetric")  # its weights now lie in a memory; "imagenet" for pretrained ones
faults = nf.fault_model("stuck", ber=0.015)  # 1.5% of the cells are stuck
fuse = nf.NeuralFuse("unets", channels=1, image_size=(32, 32), input_range="symmetric", seed=0)
nf.train_fuse(fuse, base, data, nf.EopmConfig(epochs=12, batch=64, lr=4e-3, n_chips=2))

result = nf.evaluate(base, data.test, nf.faults.chips(10), fuse=fuse)
print(f"CA {result.ca:.1f}%  PA {result.pa:.1f}%  CA(NF) {result.ca_nf:.1f}%  PA(NF) {result.pa_nf:.1f}%")
fuse.save_pretrained("my-fuse")
