"""Adversarial bits against trying every bit; adversarial weights against their definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.training import Watching
from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.errors import ConfigError
from neuralfuse.faults import Chip, Stuck
from neuralfuse.memory import deploy
from neuralfuse.nets import base_model
from neuralfuse.quant import FloatWords, Layers, Scheme
from neuralfuse.train import train_base
from neuralfuse.train.adversarial import WorstBits, weight_gradient, worst_chip
from neuralfuse.train.awp import worst_weights


def linear(seed: int = 0, shape: tuple[int, int] = (4, 3)) -> nn.Module:
    line = nn.utils.skip_init(nn.Linear, *shape, bias=False)
    with torch.no_grad():
        line.weight.copy_(torch.randn(shape[1], shape[0], generator=torch.Generator().manual_seed(seed)))
    return nn.Sequential(line).eval()


def batch(count: int = 6, inputs: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, inputs, generator=draw), torch.arange(count) % classes


def loss_of(base, chip, x, labels) -> float:
    model = base if chip is None else base.perturbed(chip)
    return float(F.cross_entropy(model(x), labels))


def test_the_gradient_is_that_of_the_quantized_weights():
    base, (x, labels) = deploy(linear()), batch()
    weight = base.memory.values.view(3, 4).clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(x @ weight.T, labels), weight)
    assert torch.allclose(weight_gradient(base, x, labels), expected.flatten(), atol=1e-7)


def test_the_worst_bits_are_those_whose_first_order_harm_is_largest():
    base, (x, labels) = deploy(linear()), batch()
    slopes = weight_gradient(base, x, labels)
    harms = []
    for cell in range(base.memory.layout.cells):
        reading = base.memory.read(Chip(WorstBits(cell=torch.tensor([cell])), 0))
        assert reading.index.tolist() == [cell // 8]
        harms.append(float(slopes[cell // 8] * (reading.values[0] - base.memory.values[cell // 8])))
    for count in (1, 5, 20):
        chosen = worst_chip(base, x, labels, count).faults.cell.tolist()
        expected = sorted(range(len(harms)), key=lambda cell: -harms[cell])[:count]
        assert chosen == sorted(expected)


def test_they_hurt_more_than_bits_by_chance():
    base, (x, labels) = deploy(linear()), batch()
    worst = loss_of(base, worst_chip(base, x, labels, 3), x, labels)
    draw = torch.Generator().manual_seed(2)
    for _ in range(20):
        cells = torch.randperm(base.memory.layout.cells, generator=draw)[:3].sort().values
        assert worst > loss_of(base, Chip(WorstBits(cell=cells), 0), x, labels)


def test_more_bits_than_there_are_means_all():
    base, (x, labels) = deploy(linear()), batch()
    assert len(worst_chip(base, x, labels, 10**6).faults.cell) == base.memory.layout.cells


def test_only_integer_codes_in_a_plain_memory():
    base, (x, labels) = deploy(linear(), scheme=FloatWords(coding="fp16")), batch()
    with pytest.raises(ConfigError, match="adversarial bits must lie in a plain memory of integer codes"):
        worst_chip(base, x, labels, 1)


def test_a_module_is_trained_against_them(data):
    from neuralfuse.fuse import NeuralFuse
    from neuralfuse.train import train_fuse

    module = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    config = EopmConfig(adversarial_bits=50, epochs=1, max_steps=2, batch=16, validation_images=20)
    fuse = NeuralFuse("unets", channels=1, image_size=(8, 8), input_range=deploy(module).input_range, seed=0)
    before = copy.deepcopy(fuse.state_dict())
    state = train_fuse(fuse, deploy(module), data, config, faults=Stuck(ber=0.1))
    assert state.step == 2
    assert fuse.trained["adversarial_bits"] == 50
    assert any(not torch.equal(before[name], value) for name, value in fuse.state_dict().items())
    with pytest.raises(ConfigError, match="adversarial bits must be searched for in one base model: got 2"):
        train_fuse(fuse, [deploy(module), deploy(module)], data, config, faults=Stuck(ber=0.1))


def test_weights_go_up_their_gradient_by_a_share_of_their_norm_and_come_back():
    model, (x, labels) = linear(), batch()
    weight = model[0].weight

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(x), labels)

    before = weight.detach().clone()
    (gradient,) = torch.autograd.grad(loss(), weight)
    at_rest = float(loss().detach())
    with worst_weights(model, [weight], loss, 0.1):
        moved = weight.detach() - before
        assert float(moved.norm()) == pytest.approx(0.1 * float(before.norm()), rel=1e-5)
        assert torch.allclose(moved / moved.norm(), gradient / gradient.norm(), atol=1e-5)
        assert float(loss().detach()) > at_rest
    assert torch.equal(weight.detach(), before)


def one_step(data, module=None, **options):
    """What one step of training does to a small model."""
    module = module or base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    seen = Watching(module)
    train_base(module, data, QatConfig(augment="none", batch=16, max_steps=1, **options), listeners=[seen])
    return seen


def test_finding_the_worst_weights_leaves_running_statistics_alone(data):
    plain, adversarial = (one_step(data, awp=awp) for awp in (0.0, 0.02))
    for one in (plain, adversarial):
        assert int(one.after[0].bn1.num_batches_tracked) == 1
    assert not torch.equal(plain.gradients[0]["fc.weight"], adversarial.gradients[0]["fc.weight"])


def test_the_step_s_gradient_is_the_one_at_the_worst_weights(data):
    """The worst weights are found by hand: up the gradient of the plain step, each tensor by a share of its norm."""
    module = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    (at_rest,), (adversarial,) = one_step(data).gradients, one_step(data, awp=0.05).gradients
    stored = {one.parameter: one.tensor for one in Layers().select(module)}
    with torch.no_grad():
        for name, weight in stored.items():
            weight.add_(0.05 * weight.norm() * at_rest[name] / at_rest[name].norm())
    (moved,) = one_step(data, module).gradients
    for name, one in moved.items():
        assert torch.allclose(one, adversarial[name], rtol=1e-3, atol=1e-5), name
    assert not torch.allclose(at_rest["fc.weight"], moved["fc.weight"], rtol=0.1)


def test_a_base_model_is_trained_with_it(data):
    module = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    state = train_base(module, data, QatConfig(awp=0.01, epochs=10, batch=16, lr=0.05))
    assert state.best_score > 90


def test_max_steps_ends_a_run(data):
    module = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    state = train_base(module, data, QatConfig(max_steps=3, epochs=2, batch=16, lr=0.05))
    assert state.step == state.history[-1]["step"] == 3


def test_zero_scheme_is_untouched():
    base, (x, labels) = deploy(linear(), scheme=Scheme(bits=4)), batch()
    chosen = worst_chip(base, x, labels, 4).faults.cell
    assert int(chosen.max()) < 12 * 4
