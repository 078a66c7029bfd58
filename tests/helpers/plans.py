"""A plan that is quick to make: a model whose stored weights errors spoil, and hardware made up for tests."""

from __future__ import annotations

import torch
from torch import nn

from neuralfuse.data import DataSet, Split
from neuralfuse.energy import SystolicArray, Technology
from neuralfuse.evaluation import Target
from neuralfuse.faults import Stuck, VoltageCurve, VoltagePoint
from neuralfuse.nets import BaseModel, DeployedBase
from neuralfuse.plan import Hardware, make_plan


class Halves(nn.Sequential):
    """Tells which half of an image is bright: stored weights of +1 and -1, which errors spoil."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__(nn.AvgPool2d(stride), nn.Flatten(), nn.utils.skip_init(nn.Linear, 64 // stride**2, 2))
        side = torch.ones(8 // stride, 8 // stride)
        side[: 4 // stride] = -1
        with torch.no_grad():
            self[2].weight.copy_(torch.stack([side.flatten(), -side.flatten()]))
            self[2].bias.zero_()


def faint_data() -> DataSet:
    """Images whose brighter half shows only in the mean of many pixels."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.arange(240) % 2
    images = torch.randint(0, 120, (240, 1, 8, 8), generator=draw, dtype=torch.uint8)
    images[labels == 1, :, :4] += 40
    images[labels == 0, :, 4:] += 40
    parts = [Split(images[k : k + 60], labels[k : k + 60]) for k in (0, 60)]
    return DataSet("faint", ("lower", "upper"), *parts, Split(images[120:], labels[120:]))


CURVE = VoltageCurve(
    points=[
        VoltagePoint(voltage=v, ber=ber, energy=energy)
        for v, ber, energy in [(0.5, 0.8, 2.0), (0.6, 0.4, 3.0), (0.7, 0.0, 4.0), (1.0, 0.0, 8.0)]
    ],
    source="made up for a test",
)
HARDWARE = Hardware(curve=CURVE, array=SystolicArray(), technology=Technology.named("45nm"), kib=8)
TARGET = Target(accuracy=90)


def faults_at(voltage: float) -> Stuck:
    return Stuck(ber=CURVE.ber(voltage))


def base(stride: int = 2):
    module = Halves(stride).eval()
    return DeployedBase.of(BaseModel(name="halves", module=module, classes=2, channels=1, image_size=(8, 8)))


def plan_with(out, fuse, **options):
    given = {"faults_at": faults_at, "hardware": HARDWARE, "target": TARGET, "chips": 12, "voltages": (0.5, 0.6, 0.7)}
    given |= {"protect": [4], "smaller": {"half": base(4)}, "out": out} | options
    return make_plan(base(), {"u": fuse}, faint_data(), **given)
