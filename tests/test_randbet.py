"""Error-aware training of base models: weight clipping and random bit errors, against oracles made by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from helpers.training import Watching
from neuralfuse.config import QatConfig
from neuralfuse.data import load_data
from neuralfuse.errors import NeuralFuseError
from neuralfuse.evaluation import evaluate, t_interval
from neuralfuse.faults import Chip, fault_model, training_chip
from neuralfuse.memory import deploy
from neuralfuse.methods import Protected, TrainingContext, parse
from neuralfuse.nets import DeployedBase, base_model, load_base
from neuralfuse.pipeline import make_base
from neuralfuse.quant import Layers, Scheme
from neuralfuse.ranges import InputRange
from neuralfuse.train import error_config, train_base
from neuralfuse.train.loop import Batches
from neuralfuse.train.randbet import perturbed_call, perturbed_parameters

CHIP = Chip(fault_model("flip", ber=0.2), 3)
SHORT = QatConfig(epochs=2, batch=16, lr=0.05, augment="none", label_smoothing=0.0)


def test_weights_are_read_through_the_chip_as_deployed_ones_are(small_net):
    made = perturbed_parameters(small_net, CHIP, Scheme())
    deployed = deploy(small_net)
    reading = deployed.memory.read(CHIP)
    by_hand = deployed.memory.values.clone()
    by_hand[reading.index] = reading.values
    for name, tensor in deployed.memory.parameters(by_hand).items():
        assert torch.equal(made[name], tensor)
    assert set(made) == {stored.parameter for stored in deployed.memory.stored}


def test_the_gradient_is_the_one_at_the_faulty_weights(small_net):
    x = torch.linspace(-1, 1, 2 * 36).view(2, 1, 6, 6)
    perturbed_call(small_net, x, CHIP, Scheme()).square().sum().backward()
    faulty = copy.deepcopy(small_net)
    faulty.zero_grad()
    read = {name: tensor.detach() for name, tensor in perturbed_parameters(small_net, CHIP, Scheme()).items()}
    faulty.load_state_dict({**faulty.state_dict(), **read})
    faulty(x).square().sum().backward()
    for (name, one), other in zip(small_net.named_parameters(), faulty.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5), name


def _module(seed: int = 0):
    return base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=seed)


def _one_step(module, data, faults=None):
    """What one step of training does to a copy of a module."""
    module = copy.deepcopy(module)
    seen = Watching(module)
    train_base(module, data, replace(SHORT, batch=32, max_steps=1), faults=faults, listeners=[seen])
    return seen


def test_errors_begin_once_the_model_has_learned_something(data):
    module = _module()
    with torch.no_grad():
        module.fc.weight.zero_()
        module.fc.bias.zero_()  # guesses at first: the loss is log 2
    seen = Watching(module)
    train_base(module, data, replace(SHORT, epochs=4), faults=fault_model("flip", ber=0.01), listeners=[seen])
    learned = [losses["loss"] < 0.76 * math.log(2) for losses in seen.losses]
    assert ["perturbed" in losses for losses in seen.losses] == learned
    assert seen.losses[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and any(learned)


def test_the_step_adds_the_gradients_of_both_losses(data):
    module = _module()
    train_base(module, data, replace(SHORT, epochs=5))
    faults = fault_model("flip", ber=0.05)
    plain, both = (_one_step(module, data, one) for one in (None, faults))
    images, labels = Batches(data.train, 32, SHORT.seed).at(0)
    chip = training_chip(faults, SHORT.seed, 0)
    twin = copy.deepcopy(module).train()
    F.cross_entropy(perturbed_call(twin, InputRange().from_bytes(images), chip, Scheme()), labels).backward()
    for name, one in twin.named_parameters():
        wanted = plain.gradients[0][name] + one.grad
        assert torch.allclose(both.gradients[0][name], wanted, rtol=1e-3, atol=1e-5), name
    counted = [int(one.bn1.num_batches_tracked) for one in (module, plain.after[0], both.after[0])]
    assert counted == [counted[0], counted[0] + 1, counted[0] + 2]


def test_clipped_weights_stay_in_their_limits(data):
    module = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    before = max(float(stored.tensor.detach().abs().max()) for stored in Layers().select(module))
    train_base(module, data, replace(SHORT, clip=0.07))
    largest = [float(stored.tensor.detach().abs().max()) for stored in Layers().select(module)]
    assert before > 0.07 and max(largest) <= 0.07 + 1e-7
    assert float(module.bn1.weight.detach().abs().max()) > 0.07  # what is not stored is not clipped


def test_options_that_are_not_used_leave_records_as_they_were():
    assert "clip" not in QatConfig().to_config()
    assert QatConfig(clip=0.1).to_config()["clip"] == 0.1
    assert error_config(None) == error_config(fault_model("flip", ber=0.0)) == {}
    assert error_config(fault_model("flip", ber=0.01)) == {"ber": 0.01, "faults": "flip"}
    more = fault_model("stuck", ber=0.01, stuck_at_1=0.9)
    assert error_config(more) == {"ber": 0.01, "faults": "stuck", "fault_model": more.to_config()}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clip": -0.1}, "clip must be at least 0"),
        ({"bits": 0}, "bits must be 2 or more to train with bit errors"),
        ({"awp": 0.01}, "awp must be 0 to train with bit errors: got awp=0.01"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says, data):
    model = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    with pytest.raises(NeuralFuseError, match=says):
        train_base(model, data, QatConfig(**options), faults=fault_model("flip", ber=0.01))


@pytest.mark.slow
def test_randbet_makes_fewer_errors_than_plain_qat(tmp_path):
    """At 0.5% and 1% flips, over the same chips, on each of three training seeds; made as `compare` makes it."""
    data, device = load_data("digits"), torch.device("cpu")
    (method,) = parse("randbet:limit=0.2")
    for seed in range(3):
        config = QatConfig(epochs=15, batch=64, seed=seed)
        make_base("vgg11-tiny", data, config, out=tmp_path / f"plain-{seed}", device=device)
        model = load_base(tmp_path / f"plain-{seed}")
        plain = Protected(base=DeployedBase.of(model))
        faults = fault_model("flip", ber=0.01)
        setting = TrainingContext(data=data, faults=faults, folder=tmp_path / f"randbet-{seed}", device=device)
        models = plain.deployed, method.protect(plain, setting).deployed
        for ber in (0.005, 0.01):
            chips = fault_model("flip", ber=ber).chips(20)
            plain, randbet = (evaluate(model, data.test, chips) for model in models)
            pairs = zip(plain.per_chip, randbet.per_chip, strict=True)
            low, _ = t_interval([other.pa - one.pa for one, other in pairs])
            assert low > 0, (seed, ber, plain.pa, randbet.pa)
