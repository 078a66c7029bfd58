"""Protect a model of your own: a timm classifier, unmodified, on the digits."""

import timm

import neuralfuse as nf

data = nf.load_data("digits", image_size=(32, 32))  # or load_data("folder", "path/to/images")
model = timm.create_model("resnet18", num_classes=10, in_chans=1)
nf.train_base(model, data, nf.QatConfig(epochs=8, lr=0.05))  # skip this for a model that is trained already

base = nf.deploy(model, input_range="symmetric")  # "imagenet" for models of torchvision and timm
faults = nf.Stuck(ber=0.015)  # 1.5% of the cells are stuck
fuse = nf.NeuralFuse.for_(base, data, "unets", seed=0)
nf.train_fuse(fuse, base, data, faults=faults, epochs=12, batch=64, lr=4e-3, n_chips=2, seed=0)
print(nf.evaluate(base, data.test, faults.chips(10), fuse=fuse))
fuse.save_pretrained("my-fuse")
