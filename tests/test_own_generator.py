"""Generators of a user's own: by reference, as a module, from a plugin; refused where they cannot be used."""

from __future__ import annotations

import json
import shlex
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.places import ROOT
from helpers.toy import toy_data
from neuralfuse.cli.main import run
from neuralfuse.config import EopmConfig
from neuralfuse.errors import ConfigError, FileFormatError, NeuralFuseError, ShapeError, UnknownNameError
from neuralfuse.faults import Stuck
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.methods import parse
from neuralfuse.nets.generators import encoder, registry, sizes, uip, unet
from neuralfuse.train import train_fuse

BEFORE = Path(__file__).parent / "before"
MODULE = '''
import torch
from torch import nn

class Tiny(nn.Module):
    """Halves the image, mixes, and doubles it."""

    def __init__(self, channels):
        super().__init__()
        self.down = nn.Conv2d(channels, 4, 2, 2)
        self.up = nn.ConvTranspose2d(4, channels, 2, 2)
        self.narrowest = (self.down, 4)

    def forward(self, x):
        return torch.tanh(self.up(torch.relu(self.down(x))))

def tiny(channels, image_size):
    return Tiny(channels)

def blind(channels, image_size):
    return nn.Conv2d(channels, channels, 3, padding=1)

def narrow(channels, image_size):
    return nn.Conv2d(channels, channels, 3)

def words(channels, image_size):
    return "no module"

def broken(channels, image_size):
    raise RuntimeError("out of order")

def mixed(channels, image_size):
    class Mixed(nn.Conv2d):
        def forward(self, x):
            return super().forward(x)[:1]
    return Mixed(channels, channels, 3, padding=1)

def greedy(channels, image_size):
    return nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 3, padding=1))

def whole(channels, image_size):
    class Whole(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).int()
    return Whole(channels, channels, 3, padding=1)

def double(channels, image_size):
    return nn.Conv2d(channels, channels, 3, padding=1).double()

def lazy(channels, image_size):
    return nn.LazyConv2d(channels, 3, padding=1)

def nothing(channels, image_size):
    return nn.Identity()

def pair(channels, image_size):
    class Pair(nn.Conv2d):
        def forward(self, x):
            made = super().forward(x)
            return (made, made) if self.training else made
    return Pair(channels, channels, 3, padding=1)

class Moody(nn.Conv2d):
    def forward(self, x):
        if x.device.type == "meta":
            raise NotImplementedError("real images only")
        return super().forward(x)

def moody(channels, image_size):
    return Moody(channels, channels, 3, padding=1)
'''


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A working folder with a module of generators, and a small base model."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "base").symlink_to(BEFORE / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)
    sys.path[:] = [one for one in sys.path if one != str(tmp_path)]


TRAIN = "train --base base --ber 0.02 --max-steps 2 --batch 16 --n-chips 1 --validation-images 20 --out fuse"


def fails(capsys, command: str, message: str) -> None:
    """The command ends in one line that says this."""
    assert run(command.split()) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("neuralfuse: ")]
    assert len(lines) == 1 and message in lines[0], lines


def test_every_command_takes_a_generator_by_reference(own, capsys):
    assert run([*TRAIN.split(), "--generator", "mine:tiny", "--class-head", "1"]) == 0
    config = json.loads((own / "fuse" / "config.json").read_text())
    assert config["generator"] == config["trained"]["generator"] == "mine:tiny"
    np.save("x.npy", np.zeros((3, 1, 8, 8), np.uint8))
    for command in (
        "evaluate fuse --base base --ber 0.02 --chips 2 --out record.json",
        "plan --base base --fuse fuse --target 10 --voltages 1 --chips 2 --images 20 --out plan",
        "energy base --generator fuse",
        "compare given:folder=fuse --scale smoke --data GTSRB --base vgg11-tiny --rates 0.02 --faults stuck --dry-run",
        "export fuse --to torch --out fuse.pt2",
        "apply fuse x.npy y.npy",
        "serve fuse --upstream http://127.0.0.1:9",
        "train --base base --generator mine:tiny --ber 0.02 --max-steps 1 --start fuse --out more",
        "energy base --generator mine:tiny --ber 0.01",
        "compare mine:tiny --scale smoke --data GTSRB --base vgg11-tiny --rates 0.02 --faults stuck --dry-run",
    ):
        needs_word = "mine:tiny" not in command
        if needs_word:
            fails(capsys, command, "names the generator mine:tiny, whose code would be run: pass --allow-code")
        if not command.startswith("serve"):
            assert run([*shlex.split(command), *(["--allow-code"] if needs_word else [])]) == 0, command
    assert json.loads((own / "record.json").read_text())["config"]["fuse"]["generator"] == "mine:tiny"


def test_a_comparison_trains_it_and_notices_that_its_code_has_changed(own, capsys):
    command = (
        "compare mine:tiny mine:blind --scale tiny.toml --data GTSRB --base vgg11-tiny --rates 0.02 --faults stuck "
        "--chips 2 --workers 0 --out out"
    )
    (own / "tiny.toml").write_text((BEFORE / "tiny.toml").read_text())
    assert run(command.split()) == 0
    (record,) = (json.loads(path.read_text()) for path in (own / "out").glob("comparison-*.json"))
    assert [row["method"] for row in record["rows"]] == ["none", "mine:tiny", "mine:blind"]
    assert all(row["measured"]["energy"] > 0 for row in record["rows"])
    assert record["rows"][1]["stages"][0]["code"]
    capsys.readouterr()
    assert run([*command.split(), "--status"]) == 0
    assert " 0 waiting" in capsys.readouterr().out
    (own / "mine.py").write_text(MODULE + "\n# changed\n")
    del sys.modules["mine"]
    assert run([*command.split(), "--status"]) == 0
    assert " 0 waiting" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("generator", "says"),
    [
        (
            "mine:narrow",
            "mine:narrow must return images of the shape that it takes: for (1, 8, 8) it returns 6x6",
        ),
        ("mine:mixed", "it returns shape (1, 1, 8, 8) for 2 images"),
        ("mine:greedy", "generator mine:greedy must not change its input in place"),
        ("mine:whole", "it returns torch.int32"),
        ("mine:double", "generator mine:double must have float32 weights: got torch.float64"),
        ("mine:lazy", "generator mine:lazy must have its weights from the start: it has lazy layers"),
        ("mine:nothing", "a module must have parameters to be trained: it has none"),
        ("mine:pair", "generator mine:pair must return the same shape in training as in eval mode"),
        ("mine:words", "generator mine:words must return an nn.Module: got str"),
        (
            "mine:broken",
            "mine:broken must be a factory(channels, image_size) that runs: RuntimeError: out of order",
        ),
        ("mine:missing", "generator mine:missing must be importable"),
        ("nowhere:tiny", "generator nowhere:tiny must be importable as package.module:name: No module named"),
        ("unet", "unknown generator 'unet'. Did you mean 'unets'"),
    ],
)
def test_a_generator_that_cannot_be_used_ends_in_one_line(generator, says, own, capsys):
    fails(capsys, f"{TRAIN} --generator {generator}", says)
    assert not (own / "fuse").exists()


def test_without_a_narrowest_layer_it_learns_no_classes(own, capsys):
    fails(capsys, f"{TRAIN} --generator mine:blind --class-head 1", "Train it without --class-head")
    fails(
        capsys, "pretrain --generator mine:blind --epochs 1 --out start", "must encode the image to be taught classes"
    )
    assert run([*TRAIN.split(), "--generator", "mine:blind"]) == 0


def test_sizes_are_found_by_trying_on_the_cpu_where_the_meta_device_is_refused(own):
    assert NeuralFuse("mine:moody", channels=1, image_size=(9, 7), seed=0)(torch.zeros(2, 1, 9, 7)).shape[2:] == (9, 7)
    with pytest.raises(ShapeError, match=r"for 9x7 it returns 8x6. Resize to 8x6 or 10x8, or use fit=\"pad\""):
        NeuralFuse("mine:tiny", channels=1, image_size=(9, 7), seed=0)
    padded = NeuralFuse("mine:tiny", channels=1, image_size=(9, 7), fit="pad", seed=0)
    assert padded(torch.zeros(2, 1, 9, 7)).shape == (2, 1, 9, 7)


def test_a_module_is_taken_saved_and_given_back_to_its_weights(tmp_path):
    class Mine(nn.Conv2d):
        pass

    with torch.random.fork_rng():
        module = Mine(1, 1, 3, padding=1)
    fuse = NeuralFuse(module, channels=1, image_size=(8, 8))
    base = deploy(_small())
    train_fuse(fuse, base, toy_data(), EopmConfig(max_steps=1, batch=16, validation_images=10), faults=Stuck(ber=0.02))
    fuse.save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="If it is a module of your own, pass it"):
        NeuralFuse.from_pretrained(tmp_path, allow_code=True)
    with torch.random.fork_rng():
        again = NeuralFuse.from_pretrained(tmp_path, generator=Mine(1, 1, 3, padding=1))
        with pytest.raises(FileFormatError, match="another architecture"):
            NeuralFuse.from_pretrained(tmp_path, generator=nn.Conv2d(1, 1, 5, padding=2))
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), fuse(x)) and again.name == fuse.name
    with pytest.raises(ConfigError, match="a generator must be a name or an nn.Module: got 3"):
        NeuralFuse(3)
    with pytest.raises(ConfigError, match="seed must be given, because the weights of unets are drawn"):
        NeuralFuse("unets")


def _small() -> nn.Module:
    with torch.random.fork_rng():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()


def test_a_plugin_registers_a_name(own, monkeypatch, capsys):
    sys.path.insert(0, str(own))
    entry = EntryPoint(name="tinier", value="mine:tiny", group="neuralfuse.generators")
    lost = EntryPoint(name="lost", value="nowhere:tiny", group="neuralfuse.generators")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry, lost] if group == entry.group else [])
    fuse = NeuralFuse("tinier", channels=1, image_size=(8, 8), seed=0)
    fuse.save_pretrained(own / "fuse")
    with pytest.raises(ConfigError, match="names the generator tinier, whose code would be run"):
        NeuralFuse.from_pretrained(own / "fuse")
    assert NeuralFuse.from_pretrained(own / "fuse", allow_code=True).name == "tinier"
    assert parse("tinier")[0].generator == "tinier"
    assert run(["models"]) == 0
    assert "tinier" in (shown := capsys.readouterr().out) and "of a plugin: mine:tiny" in shown
    with pytest.raises(ConfigError, match="generator lost must be a plugin that can be imported"):
        NeuralFuse("lost", channels=1, seed=0)
    with pytest.raises(UnknownNameError, match="Legal: .*tinier, lost, package.module:factory"):
        NeuralFuse("tiniest", channels=1, seed=0)
    (own / "mine.py").write_text(MODULE + "\n# changed\n")
    del sys.modules["mine"]
    with pytest.warns(UserWarning, match="code of the generator tinier has changed since .* was saved"):
        NeuralFuse.from_pretrained(own / "fuse", allow_code=True)


def test_a_new_generator_is_one_short_file():
    for module in (encoder, unet, uip):
        assert len(Path(module.__file__).read_text().splitlines()) <= 60, module
    assert "narrowest" in (registry.__doc__ or "") and sizes.__doc__
    assert (ROOT / "examples" / "own_generator.py").exists()


def test_a_plugin_takes_no_name_of_the_library_s(own, monkeypatch):
    sys.path.insert(0, str(own))
    taken = ["none", "randbet", "convl", "resnet18", "a+b", "a:b", "a.b"]
    entries = [EntryPoint(name=name, value="mine:tiny", group="neuralfuse.generators") for name in taken]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == "neuralfuse.generators" else [])
    assert set(registry.plugins()) == {"none", "randbet"}
    assert [parse(name)[0].name for name in ("none", "randbet", "convl")] == ["none", "randbet", "neuralfuse"]


def test_the_digest_is_of_the_code_that_makes_the_generator(own):
    (own / "parts.py").write_text("from functools import partial\nfrom mine import tiny\nsmall = partial(tiny)\n")
    sys.path.insert(0, str(own))
    digests = [registry.code_of("parts:small")["code"]]
    (own / "mine.py").write_text(MODULE + "\n# changed\n")
    digests.append(registry.code_of("parts:small")["code"])
    (own / "parts.py").write_text("from functools import partial\nfrom mine import tiny\nsmall = partial(tiny) \n")
    digests.append(registry.code_of("parts:small")["code"])
    assert len(set(digests)) == 3
    sys.modules.pop("parts")


def test_the_word_is_for_the_code_that_was_named(own):
    fuse = NeuralFuse("mine:tiny", channels=1, image_size=(8, 8), seed=0)
    fuse.save_pretrained(own / "fuse")
    assert NeuralFuse.from_pretrained(own / "fuse", allow_code="mine:tiny").name == "mine:tiny"
    with pytest.raises(ConfigError, match="whose code would be run"):
        NeuralFuse.from_pretrained(own / "fuse", allow_code="mine:blind")


@pytest.mark.parametrize(
    "changes",
    [{"fit": 5}, {"image_size": [float("inf"), 8]}, {"channels": 0}, {"trained": {"bases": 5}},
     {"input_range": {"mean": [float("nan")], "std": [1.0]}}],
)  # fmt: skip
def test_a_saved_module_with_a_damaged_config_is_refused(changes, tmp_path):
    NeuralFuse("unets", channels=1, image_size=(8, 8), seed=0).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(NeuralFuseError):
        NeuralFuse.from_pretrained(tmp_path)


def test_a_class_of_one_s_own_is_not_taken_for_the_library_s(tmp_path):
    with torch.random.fork_rng():
        module = type("convs", (nn.Conv2d,), {})(1, 1, 3, padding=1)
    NeuralFuse(module, channels=1, image_size=(8, 8)).save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="got 'test_own_generator.convs'"):
        NeuralFuse.from_pretrained(tmp_path)
