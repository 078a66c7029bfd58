"""The paper's tables: transcribed whole, found by what was measured, shown beside it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from helpers.places import SHARED
from neuralfuse import published
from neuralfuse.data import DataSet, Split
from neuralfuse.errors import NeuralFuseError
from neuralfuse.evaluation import evaluation_text
from neuralfuse.faults import Flip, Reference, Stuck
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.memory.readout import Secded
from neuralfuse.nets import BaseModel, DeployedBase
from neuralfuse.pipeline import make_evaluation


def test_the_published_tables_are_the_transcription():
    path = SHARED / "spec" / "paper_tables.json"
    if not path.exists():
        pytest.skip("the transcription of the paper's tables is not here")
    original, ours = json.loads(path.read_text()), published.paper()
    assert ours["tables"] == {name: table for name, table in original.items() if name.startswith("table")}
    assert len(ours["misprints"]) == sum(one["kind"] != "copy" for one in original["anomalies"])


def test_published_rows_are_found_by_their_entries():
    (row,) = published.rows("table12", base="ResNet18", ber=0.01, generator="ConvL")
    assert (row["pa"], row["pa_nf"], row["rp"]) == (38.9, 87.8, 48.8)
    assert published.misprint("table12", row) is None
    (row,) = published.rows("table12", base="VGG16", ber=0.005, generator="DeConvL")
    assert "rp printed 21.4" in published.misprint("table12", row)
    with pytest.raises(NeuralFuseError, match="unknown table 'table4'. Did you mean"):
        published.rows("table4")


@pytest.mark.parametrize(
    ("changes", "table", "pa_nf"),
    [
        ({}, "table12", 87.8),
        ({"data": "gtsrb"}, "table13", 91.1),
        ({"generator": "uip"}, "table11", 37.9),
        ({"lam": 10.0}, "table10", 88.0),
        ({"data": "gtsrb", "base": "vgg19", "generator": "unetl", "train_ber": 0.015}, "table17", 60.8),
        (
            {"base": "vgg19", "generator": "unetl", "sources": ["vgg19", "resnet18"], "train_ber": 0.015},
            "table21",
            83.0,
        ),
        ({"ber": 0.005}, "table16", 89.5),
        ({"ber": 0.005, "bits": 7}, "table22", 89.5),
        ({"generator": "unets", "sources": ["vgg19"]}, None, None),
        ({"data": "digits"}, None, None),
        ({"ber": 0.02}, None, None),
    ],
)
def test_a_measurement_finds_its_counterpart(changes, table, pa_nf):
    asked = {"data": "cifar10", "base": "resnet18", "generator": "convl", "sources": ["resnet18"]}
    found = published.counterpart(**{**asked, "ber": 0.01, "train_ber": 0.01} | changes)
    assert (found and found["table"], found and found["pa_nf"]) == (table, pa_nf)


def test_a_base_model_alone_has_a_counterpart_without_recovery():
    found = published.counterpart(data="cifar100", base="VGG19", ber=0.01)
    assert found == {"table": "table15", "ca": 67.8, "pa": 10.6, "pa_std": 4.3, "misprint": None}


def test_records_hold_the_paper_s_row_where_they_measure_the_same():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    split = Split(images, torch.arange(4) % 10)
    data = DataSet("cifar10", tuple("abcdefghij"), split, split, split)
    module = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 192, 10)).eval()
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)
    model = BaseModel(name="resnet18", module=module, classes=10, channels=3, image_size=(8, 8))
    trained = {"ber": 0.01, "lam": 5.0, "bases": [{"name": "resnet18"}]}
    fuse = NeuralFuse("convl", image_size=(8, 8), seed=0, trained=trained).eval()

    def row(faults, fuse=fuse, **options):
        return make_evaluation(fuse, DeployedBase(model, deploy(module, **options)), data, faults, chips=1)

    record = row(Reference(ber=0.01))
    assert record["published"]["table"] == "table12"
    assert "the paper, Table 12: CA 92.6, PA 38.9 +- 12.4, CA(NF) 89.8, PA(NF) 87.8 +- 1.7, RP 48.8" in evaluation_text(
        record
    )
    assert row(Stuck(ber=0.01))["published"] is not None, "the paper's meaning of the rate"
    assert row(Flip(ber=0.01))["published"] is None, "another meaning of the rate"
    assert row(Reference(ber=0.01), readout=Secded())["published"] is None
    alone = row(Reference(ber=0.01), fuse=None)
    assert alone["published"] == {"table": "table12", "ca": 92.6, "pa": 38.9, "pa_std": 12.4, "misprint": None}
    assert "the paper, Table 12: CA 92.6, PA 38.9 +- 12.4" in evaluation_text(alone)
