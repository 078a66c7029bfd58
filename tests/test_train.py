"""The loop, EOPM's gradient against plain autograd, resume, early stopping."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.models import SmallNet
from helpers.toy import toy_data
from helpers.training import Watching
from neuralfuse.config import BASE_RECIPES, EopmConfig, QatConfig, Running, base_recipe
from neuralfuse.data import Split
from neuralfuse.errors import (
    ConfigError,
    DivergenceError,
    FileFormatError,
    MissingExtraError,
    OutputError,
    UnknownNameError,
)
from neuralfuse.faults import Chip, OneChip, Stuck, fault_model
from neuralfuse.files import read_tensors
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets import base_model
from neuralfuse.nets.base import seeded
from neuralfuse.quant import Layers, Scheme, fake_quantize
from neuralfuse.train import Pass, ProgressBar, TensorBoard, eopm_backward, passes, pretrain, train_base, train_fuse
from neuralfuse.train.classes import WithClassHead
from neuralfuse.train.loop import CHECKPOINT, Batches
from neuralfuse.train.qat import fastest_layout


def faulted_copy(model: nn.Module, chip: Chip) -> nn.Module:
    """A second model with the weights that the chip makes of the first one's."""
    twin = copy.deepcopy(model)
    memory = deploy(model).memory
    reading = memory.read(chip)
    values = memory.split(memory.values.index_copy(0, reading.index, reading.values))
    for stored in Layers().select(twin):
        stored.tensor.data = values[stored.name].to(stored.tensor.dtype)
    return twin


def clean_copy(model: nn.Module) -> nn.Module:
    return faulted_copy(model, Chip(Stuck(ber=0.0), 0))


@pytest.fixture
def case(small_net):
    """A base model in float64, transformed images and labels."""
    draw = torch.Generator().manual_seed(3)
    base = deploy(small_net.double())
    transformed = torch.randn(6, 1, 8, 8, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 5, (6,), generator=draw)
    return small_net, base, transformed, labels


def oracle_loss(model, transformed, labels, chips, lam):
    """CE(M0) + lam * mean over copies of CE(Mp), with copies made in advance."""
    clean = F.cross_entropy(clean_copy(model)(transformed), labels)
    faulty = [F.cross_entropy(faulted_copy(model, chip)(transformed), labels) for chip in chips]
    return clean + lam * torch.stack(faulty).mean()


def test_crossed_gradient_equals_autograd_through_copies(case):
    model, base, transformed, labels = case
    chips = [Chip(Stuck(ber=0.05), seed) for seed in range(4)]
    wanted = transformed.clone().requires_grad_()
    oracle_loss(model, wanted, labels, chips, 5.0).backward()
    leaf = transformed.clone().requires_grad_()
    losses = eopm_backward(base, leaf, labels, [Pass(chip, torch.arange(6)) for chip in chips], lam=5.0)
    assert torch.allclose(leaf.grad, wanted.grad, rtol=1e-10, atol=1e-14)
    assert sum(factor * loss for factor, loss in zip((1, 5.0), losses, strict=True)) == pytest.approx(
        float(oracle_loss(model, transformed, labels, chips, 5.0).detach()), rel=1e-10
    )


def test_split_equals_crossed_in_expectation(case):
    """The mean over all deals of six images to two chips is the crossed gradient, exactly."""
    _, base, transformed, labels = case
    chips = [Chip(Stuck(ber=0.05), seed) for seed in (1, 2)]
    crossed = transformed.clone().requires_grad_()
    eopm_backward(base, crossed, labels, [Pass(chip, torch.arange(6)) for chip in chips], lam=5.0)
    total = torch.zeros_like(transformed)
    deals = list(itertools.combinations(range(6), 3))
    for first in deals:
        rest = [row for row in range(6) if row not in first]
        leaf = transformed.clone().requires_grad_()
        dealt = [Pass(chips[0], torch.tensor(first)), Pass(chips[1], torch.tensor(rest))]
        eopm_backward(base, leaf, labels, dealt, lam=5.0)
        total += leaf.grad
    assert torch.allclose(total / len(deals), crossed.grad, rtol=1e-10, atol=1e-14)


def test_an_ensemble_s_gradient_is_the_mean(case):
    model, base, transformed, labels = case
    other = deploy(base_model("resnet8", classes=5, channels=1, image_size=(8, 8), seed=1).double())
    chips = [Pass(Chip(Stuck(ber=0.05), 7), torch.arange(6))]
    leaf, one, two = (transformed.clone().requires_grad_() for _ in range(3))
    eopm_backward([base, other], leaf, labels, chips, lam=2.0)
    eopm_backward(base, one, labels, chips, lam=2.0)
    eopm_backward(other, two, labels, chips, lam=2.0)
    assert torch.allclose(leaf.grad, (one.grad + two.grad) / 2, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("estimator", "class_head", "answers"),
    [("crossed", 0.0, "data"), ("split", 0.0, "data"), ("split", 0.5, "data"), ("split", 0.0, "model")],
)
def test_the_whole_step_equals_autograd_through_the_generator(estimator, class_head, answers, small_net, data):
    """G's parameters get the gradient of one loss written out plainly, quantized weights and BatchNorm included."""
    fuse = NeuralFuse("convs", channels=1, image_size=(8, 8), seed=0)
    twin, seen = copy.deepcopy(fuse).train(), Watching(fuse)
    config = EopmConfig(
        n_chips=3, estimator=estimator, batch=8, class_head=class_head, labels=answers, max_steps=1, validation_chips=1
    )
    train_fuse(fuse, deploy(small_net), data, config, faults=Stuck(ber=0.05), listeners=[seen])

    images, labels = Batches(data.train, 8, config.seed).at(0)
    x = images.float() / 127.5 - 1  # no augmentation is known for the toy data
    if answers == "model":  # what the clean model says is learned from, whatever the labels are
        with torch.no_grad():
            labels = clean_copy(small_net)(x).softmax(1)
    weights = {one.parameter: fake_quantize(one.tensor, Scheme()) for one in Layers().select(twin)}
    z = torch.func.functional_call(twin, weights, (x,))
    loss = F.cross_entropy(clean_copy(small_net)(z), labels)
    chosen = passes(config, fault_model("stuck", ber=0.05), 8, 0)
    for one in chosen:
        part = F.cross_entropy(faulted_copy(small_net, one.chip)(z[one.rows]), labels[one.rows], reduction="sum")
        loss = loss + 5.0 * part / (24 if estimator == "crossed" else 8)
    if class_head:
        encoder = copy.deepcopy(twin).generator.layers[:12]  # three times convolution, BatchNorm, ReLU and pool
        parts = {**dict(twin.named_parameters()), **weights}
        own = {name: parts[f"generator.layers.{name}"] for name, _ in encoder.named_parameters()}
        features = torch.func.functional_call(encoder, own, (x,)).mean(dim=(2, 3))
        head = WithClassHead(twin, classes=2, seed=config.seed).head
        loss = loss + 0.5 * F.cross_entropy(head(features), labels)
    loss.backward()
    for name, parameter in twin.named_parameters():
        assert torch.allclose(seen.gradients[0][name], parameter.grad, rtol=1e-3, atol=1e-5), name
    after = dict(seen.after[0].named_buffers())
    for name, buffer in twin.named_buffers():
        assert torch.equal(after[name], buffer), name
    assert all(parameter.grad is None for parameter in small_net.parameters())


def test_images_of_a_pass_that_see_each_other_stay_together(case, threads):
    """Whatever the number of threads."""
    model, _, x, labels = case
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    deployed = deploy(model, running=Running(fold=False, micro_batch=0))
    assert deployed.at_once(x) == threads
    sizes.clear()
    chip = Chip(Stuck(ber=0.05), 0)
    eopm_backward(deployed, x.clone().requires_grad_(), labels, [Pass(chip, torch.arange(len(x)))], lam=1.0)
    assert sizes == [len(x), len(x)]


def test_split_deals_every_image_once_into_equal_groups():
    config = EopmConfig(n_chips=4)
    for step in range(5):
        dealt = passes(config, Stuck(ber=0.1), 10, step)
        assert sorted(len(one.rows) for one in dealt) == [2, 2, 3, 3]
        assert sorted(torch.cat([one.rows for one in dealt]).tolist()) == list(range(10))
    assert len(passes(config, Stuck(ber=0.1), 3, 0)) == 3
    orders = {tuple(passes(config, Stuck(ber=0.1), 10, step)[0].rows.tolist()) for step in range(8)}
    assert len(orders) > 4


def test_chips_of_a_step_are_fresh():
    config = EopmConfig(n_chips=10)
    seeds = [[one.chip.seed for one in passes(config, Stuck(ber=0.1), 20, step)] for step in range(3)]
    assert len({seed for step in seeds for seed in step}) == 30


def small_fuse():
    return NeuralFuse("convs", channels=1, image_size=(8, 8), seed=0)


QAT = QatConfig(epochs=2, batch=16, lr=0.05, validate_every=3)
FAULTS = Stuck(ber=0.05)
EOPM = EopmConfig(n_chips=2, epochs=2, batch=16, validate_every=3, validation_chips=2)


class Kill(Exception):
    """Stands for the end of the process."""


class KillAt:
    def __init__(self, step):
        self.step = step

    def stepped(self, step, total, losses):
        if step == self.step:
            raise Kill

    def validated(self, step, metrics):
        pass

    def close(self):
        pass


def run_base(data, folder, **options):
    model = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    state = train_base(model, data, QAT, out=folder, **options)
    return model, state


def run_fuse(data, folder, base, config=EOPM, **options):
    fuse = small_fuse()
    state = train_fuse(fuse, base, data, config, faults=FAULTS, out=folder, **options)
    return fuse, state


@pytest.fixture(scope="module")
def whole_base(tmp_path_factory):
    """A base run that nothing interrupts: the weights at its end, its history, and its folder, not to be changed."""
    folder = tmp_path_factory.mktemp("whole-base")
    model, state = run_base(toy_data(), folder)
    return model.state_dict(), state.history, folder


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_resumed_base_run_equals_the_uninterrupted_one(step, whole_base, data, tmp_path):
    with pytest.raises(Kill):
        run_base(data, tmp_path, listeners=[KillAt(step)])
    again, state = run_base(data, tmp_path, resume=True)
    assert same_end(again, state, whole_base)


@pytest.fixture(scope="module")
def whole_fuse(tmp_path_factory):
    """The same of EOPM runs, each trained once, by configuration."""

    @cache
    def made(config):
        folder = tmp_path_factory.mktemp("whole-fuse")
        module, state = run_fuse(toy_data(), folder, deploy(seeded(SmallNet, 5).eval()), config)
        return module.state_dict(), state.history, folder

    return made


@pytest.mark.parametrize(("average", "class_head"), [(0.0, 0.0), (0.8, 0.0), (0.8, 1.0)])
@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_resumed_eopm_run_equals_the_uninterrupted_one(step, average, class_head, whole_fuse, data, tmp_path):
    base = deploy(seeded(SmallNet, 5).eval())
    config = replace(EOPM, average=average, class_head=class_head)
    with pytest.raises(Kill):
        run_fuse(data, tmp_path, base, config, listeners=[KillAt(step)])
    again, state = run_fuse(data, tmp_path, base, config, resume=True)
    assert same_end(again, state, whole_fuse(config))


def same_end(module, state, whole) -> bool:
    """Whether a run ended with the weights and the history of another."""
    weights, history, _ = whole
    same = all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in weights.items())
    return same and state.history == history


class Weights:
    """Remembers what a module is after each step, and at each validation."""

    def __init__(self, module):
        self.module, self.stepwise, self.validated_with = module, [], []

    def stepped(self, step, total, losses):
        self.stepwise.append({name: tensor.clone() for name, tensor in self.module.state_dict().items()})

    def validated(self, step, metrics):
        self.validated_with.append({name: tensor.clone() for name, tensor in self.module.state_dict().items()})

    def close(self):
        pass


def test_what_is_validated_and_kept_is_the_average_over_steps(data, small_net):
    config = dataclasses.replace(EOPM, average=0.8, generator_bits=0, validate_every=1, epochs=1)
    fuse = small_fuse()
    average = {name: tensor.double() for name, tensor in fuse.state_dict().items()}
    seen = Weights(fuse)
    state = train_fuse(fuse, deploy(small_net), data, config, faults=FAULTS, listeners=[seen])
    assert len(seen.stepwise) == len(seen.validated_with) == state.step > 3
    for step, (latest, validated) in enumerate(zip(seen.stepwise, seen.validated_with, strict=True), 1):
        decay = min(0.8, step / (9 + step))
        for name, tensor in latest.items():
            exact = tensor.is_floating_point()
            average[name] = decay * average[name] + (1 - decay) * tensor.double() if exact else tensor.double()
            torch.testing.assert_close(validated[name].double(), average[name], rtol=1e-4, atol=1e-6)
    best = seen.validated_with[state.best_step - 1]
    assert all(torch.equal(tensor, best[name]) for name, tensor in fuse.state_dict().items())
    assert not all(torch.equal(tensor, seen.stepwise[-1][name]) for name, tensor in fuse.state_dict().items())


def test_resuming_a_finished_run_changes_nothing(whole_base, data, tmp_path):
    shutil.copytree(whole_base[2], tmp_path, dirs_exist_ok=True)
    again, state = run_base(data, tmp_path, resume=True, listeners=[KillAt(1)])
    assert same_end(again, state, whole_base)


def test_another_run_s_checkpoint_is_refused(whole_fuse, data, tmp_path):
    base, changed = (deploy(seeded(SmallNet, 5).eval()) for _ in range(2))
    config = replace(EOPM, average=0.0, class_head=0.0)
    shutil.copytree(whole_fuse(config)[2], tmp_path, dirs_exist_ok=True)
    other = replace(config, lam=1.0)
    with pytest.raises(FileFormatError, match=r"checkpoint of the same run .* in 'lam' \(5.0 there, 1.0 here\)"):
        train_fuse(small_fuse(), base, data, other, faults=FAULTS, out=tmp_path, resume=True)
    changed.model.norm.running_mean += 1
    with pytest.raises(FileFormatError, match="in 'bases'"):
        train_fuse(small_fuse(), changed, data, config, faults=FAULTS, out=tmp_path, resume=True)
    larger = NeuralFuse("unetl", channels=1, image_size=(8, 8), seed=0)
    with pytest.raises(FileFormatError, match="in 'generator'"):
        train_fuse(larger, base, data, config, faults=FAULTS, out=tmp_path, resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(FileFormatError, match="must be a whole safetensors file"):
        train_fuse(small_fuse(), base, data, config, faults=FAULTS, out=tmp_path, resume=True)


def test_another_base_s_checkpoint_is_refused(whole_base, data, tmp_path):
    shutil.copytree(whole_base[2], tmp_path, dirs_exist_ok=True)
    other = base_model("resnet18-quarter", classes=2, channels=1, image_size=(8, 8), seed=0)
    with pytest.raises(FileFormatError, match="in 'shapes'"):
        train_base(other, data, QAT, out=tmp_path, resume=True)
    model = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    with pytest.raises(FileFormatError, match="in 'data'"):
        train_base(model, toy_data(seed=1), QAT, out=tmp_path, resume=True)


def test_trained_generator_weights_lie_on_the_grid(data, small_net):
    fuse = small_fuse()
    train_fuse(fuse, deploy(small_net), data, EOPM, faults=FAULTS)
    assert not fuse.training
    for stored in Layers().select(fuse):
        coded = Scheme().encode(stored.tensor)
        assert torch.allclose(coded.codes * coded.scale, stored.tensor, atol=1e-7)
        assert coded.codes.abs().max() == 127


def test_uip_and_float_generators_train(data, small_net):
    for name, bits in (("uip", 8), ("convs", 0)):
        fuse = NeuralFuse(name, channels=1, image_size=(8, 8), seed=0)
        before = copy.deepcopy(fuse.state_dict())
        config = EopmConfig(**{**EOPM.to_config(), "epochs": 1, "generator_bits": bits})
        train_fuse(fuse, deploy(small_net), data, config, faults=FAULTS)
        assert any(not torch.equal(before[key], value) for key, value in fuse.state_dict().items())


def test_a_class_head_learns_beside_the_module_and_is_dropped(data, small_net, tmp_path):
    config = EopmConfig(**{**EOPM.to_config(), "class_head": 1.0})
    fuse, state = run_fuse(data, tmp_path / "a", deploy(small_net), config)
    assert fuse.state_dict().keys() == small_fuse().state_dict().keys()
    assert fuse.trained["class_head"] == 1.0
    assert {"head.weight", "head.bias"} < state.best.keys()
    plain, _ = run_fuse(data, tmp_path / "b", deploy(small_net), EOPM)
    assert any(not torch.equal(fuse.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())


def test_a_generator_that_does_not_look_takes_no_class_head(data, small_net):
    fuse = NeuralFuse("uip", channels=1, image_size=(8, 8), seed=0)
    with pytest.raises(ConfigError, match="must encode the image .*: uip does not. Train it without"):
        train_fuse(fuse, deploy(small_net), data, EopmConfig(class_head=1.0), faults=FAULTS)


@pytest.mark.parametrize("name", ["convs", "unets"])
def test_pretraining_teaches_the_encoder_alone(name, data):
    fuse = NeuralFuse(name, channels=1, image_size=(8, 8), seed=0)
    before = copy.deepcopy(fuse.state_dict())
    state = pretrain(fuse, data, QatConfig(epochs=6, batch=16, lr=0.05))
    assert state.best_score > 60, "five classes"
    assert fuse.trained["task"] == "classes"
    assert fuse.trained["accuracy"] == state.best_score
    changed = {key for key, tensor in fuse.state_dict().items() if not torch.equal(tensor, before[key])}
    drawing = ("up.", "merge.", "last.") if name == "unets" else tuple(f"layers.{place}." for place in range(12, 40))
    assert changed
    assert not any(key.removeprefix("generator.").startswith(drawing) for key in changed)


def test_pretraining_needs_a_generator_that_looks(data):
    with pytest.raises(ConfigError, match="must encode the image .*: uip does not. Train it without"):
        pretrain(NeuralFuse("uip", channels=1, image_size=(8, 8), seed=0), data)


def test_a_module_trained_before_says_so_in_what_it_becomes(data, small_net, tmp_path):
    fuse = small_fuse()
    fuse.trained = {"task": "classes", "accuracy": 90.0}
    train_fuse(fuse, deploy(small_net), data, EOPM, faults=FAULTS, out=tmp_path)
    assert fuse.trained["start"] == {"task": "classes", "accuracy": 90.0}
    with pytest.raises(FileFormatError, match="checkpoint of the same run"):
        run_fuse(data, tmp_path, deploy(small_net), resume=True)


def test_base_training_learns(data):
    model = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    state = train_base(model, data, QatConfig(epochs=6, batch=16, lr=0.05))
    assert state.best_score > 90
    assert not model.training


class Viewing(nn.Module):
    """Insists on the channel in second place, as many of other people's networks do; or in training only."""

    def __init__(self, always: bool = True) -> None:
        super().__init__()
        self.always = always

    def forward(self, x):
        return x.view(len(x), -1) if self.always or self.training else x.reshape(len(x), -1)


class Insisting(nn.Module):
    """Says so in its own way."""

    def forward(self, x):
        if not x.is_contiguous():
            raise ValueError("contiguous, please")
        return x.flatten(1)


class Unordered(nn.Module):
    """Flattens in the order of memory, whatever that means."""

    def forward(self, x):
        return torch.as_strided(x, (len(x), x[0].numel()), (x[0].numel(), 1))


def test_images_lie_with_the_channel_last_where_the_model_bears_it():
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def network(flatten: nn.Module) -> nn.Module:
        return seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), flatten, nn.Linear(4 * 36, 5)), 0)

    assert fastest_layout(network(nn.Flatten()), images) is torch.channels_last
    assert fastest_layout(network(Viewing()), images) is torch.contiguous_format
    assert fastest_layout(network(Unordered()), images) is torch.contiguous_format
    assert fastest_layout(network(Insisting()), images) is torch.contiguous_format
    assert fastest_layout(network(Viewing(always=False)), images) is torch.contiguous_format
    model = network(nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten()))
    before = copy.deepcopy(model.state_dict())
    assert fastest_layout(model, images) is torch.channels_last
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_early_stopping_waits_for_its_patience(data):
    model = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    config = QatConfig(epochs=40, batch=16, lr=0.05, validate_every=1, patience=3)
    state = train_base(model, data, config)
    assert state.done
    assert state.step == state.best_step + 3
    assert len(state.history) == state.step < 40 * 5


def test_dropout_draws_from_the_run_s_own_randomness(data):
    def train():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))
        train_base(model, data, QatConfig(epochs=1, batch=16))
        return model[2].weight

    assert torch.equal(train(), train())


def test_batches_cover_every_epoch_in_a_new_order(data):
    batches = Batches(data.train, 16, seed=0)
    assert batches.steps == len(data.train) // 16
    epochs = []
    for epoch in range(2):
        seen = [batches.at(epoch * batches.steps + place)[0] for place in range(batches.steps)]
        rows = [image.numpy().tobytes() for images in seen for image in images]
        assert len(set(rows)) == 16 * batches.steps
        epochs.append(rows)
    assert epochs[0] != epochs[1]
    assert torch.equal(batches.at(3)[0], Batches(data.train, 16, seed=0).at(3)[0])
    assert len(Batches(data.train, 10_000, seed=0).at(0)[0]) == len(data.train)


def test_a_loss_that_is_not_finite_stops_the_run(data):
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    config = QatConfig(epochs=5, batch=16, lr=1e30, bits=0)
    with pytest.raises(DivergenceError, match=r"loss became (nan|inf) at step \d+\. Lower --lr"):
        train_base(model, data, config)


def test_an_unwritable_folder_is_refused_before_training(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        run_base(data, tmp_path / "file" / "x", listeners=[KillAt(1)])


def test_base_model_and_module_must_have_one_input_range(data, small_net):
    with pytest.raises(ConfigError, match="must have one input range"):
        train_fuse(small_fuse(), deploy(small_net, input_range="unit"), data, EOPM, faults=FAULTS)
    with pytest.raises(ConfigError, match="at least one base model"):
        train_fuse(small_fuse(), [], data, EOPM, faults=FAULTS)


def test_a_training_is_configured_whole_or_by_its_options(data, small_net, tmp_path):
    """Both ways are one training; what is given twice, not at all or by a wrong name is refused."""
    options = {name: value for name, value in EOPM.to_config().items() if value != getattr(EopmConfig, name, None)}
    base, made = deploy(small_net), []
    for given in ({"config": EOPM}, {**options, "seed": 0}):
        fuse = small_fuse()
        made.append((train_fuse(fuse, base, data, faults=FAULTS, **given).history, fuse.trained))
    assert made[0] == made[1]
    for given, error, message in (
        ({}, ConfigError, "seed must be given, because training draws at random: pass seed=0"),
        ({"epochs": 1}, ConfigError, "seed must be given"),
        ({"config": EOPM, "epochs": 1}, ConfigError, "config must come without single options: got epochs too"),
        ({"epoch": 1, "seed": 0}, UnknownNameError, "Did you mean 'epochs'"),
        ({"ber": 0.05, "seed": 0}, UnknownNameError, "unknown option of EopmConfig 'ber'"),
        ({"seed": 0, "faults": "stuck"}, ConfigError, "faults must be a fault model, e.g. Stuck"),
    ):
        with pytest.raises(error, match=message):
            train_fuse(small_fuse(), base, data, **{"faults": FAULTS, **given})


def test_a_fault_model_with_more_to_it_is_trained_against(data, small_net):
    fuse = small_fuse()
    train_fuse(fuse, deploy(small_net), data, EOPM, faults=Stuck(ber=0.05, stuck_at_1=0.9))
    assert fuse.trained["fault_model"] == {"kind": "stuck", "ber": 0.05, "stuck_at_1": 0.9}
    assert fuse.trained["bases"][0]["scheme"]["bits"] == 8
    assert fuse.trained["data"]["name"] == "toy"


# One chip, its own answers


def test_no_labels_and_no_other_images_are_looked_at(small_net, data):
    config = replace(EOPM, labels="model", images=12, max_steps=6)
    chosen = data.train.order("toy", "calibration images")[:12]
    rest = torch.ones(len(data.train), dtype=torch.bool)
    rest[chosen] = False
    images = data.train.images.clone()
    images[rest] = 0
    without = Split(images, 1 - data.train.labels)
    other = replace(data, train=without, validation=without)
    faults = OneChip(faults=Stuck(ber=0.05), seed=3)
    made = []
    for given in (data, other):
        fuse = small_fuse()
        state = train_fuse(fuse, deploy(small_net), given, config, faults=faults)
        made.append((fuse.state_dict(), state.history))
    assert made[0][1] == made[1][1]
    assert all(torch.equal(tensor, made[1][0][name]) for name, tensor in made[0][0].items())
    with pytest.raises(ConfigError, match=r"images must be in 0\.\.\d+: got images=1000"):
        train_fuse(small_fuse(), deploy(small_net), data, replace(config, images=1000), faults=faults)


def test_options_that_came_later_are_told_where_they_are_used_only():
    assert not {"labels", "images"} & set(EOPM.to_config())
    assert replace(EOPM, images=3).to_config()["images"] == 3
    assert replace(EOPM, labels="model").to_config()["labels"] == "model"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": "modal"}, UnknownNameError, "Did you mean 'model'"),
        ({"images": -1}, ConfigError, "images must be at least 0"),
        ({"images": 1}, ConfigError, "images must be 0 or at least 2"),
        ({"epochs": 0}, ConfigError, "epochs must be at least 1"),
        ({"lr": 0.0}, ConfigError, "lr must be positive"),
        ({"lr": float("nan")}, ConfigError, "lr must be positive"),
        ({"average": 1.0}, ConfigError, "average must be in \\[0, 1\\): got average=1.0"),
        ({"lam": -1.0}, ConfigError, "lam must be at least 0"),
        ({"class_head": -1.0}, ConfigError, "class_head must be at least 0"),
        ({"n_chips": 0}, ConfigError, "n_chips must be at least 1"),
        ({"generator_bits": 1}, ConfigError, "generator_bits must be 0"),
        ({"estimator": "crosed"}, UnknownNameError, "Did you mean 'crossed'"),
        ({"schedule": "cosin"}, UnknownNameError, "Did you mean 'cosine'"),
        ({"optimizer": "adamw"}, UnknownNameError, "Did you mean 'adam'"),
    ],
)
def test_impossible_configurations_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        EopmConfig(**options)


def test_recipes():
    assert base_recipe("paper", seed=3) == QatConfig(**{**BASE_RECIPES["paper"].to_config(), "seed": 3})
    with pytest.raises(UnknownNameError, match="Did you mean 'paper'"):
        base_recipe("papers")


def test_schedules():
    constant, stepped, cosine = (EopmConfig(lr=1.0, schedule=name) for name in ("constant", "step", "cosine"))
    assert constant.lr_at(999, 1000) == 1
    assert stepped.lr_at(499, 5000) == 1
    assert stepped.lr_at(1000, 5000) == pytest.approx(0.96**2)
    rates = [cosine.lr_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1
    assert rates[99] < 0.01


def test_listeners_write_what_they_are_told(data, tmp_path, capsys):
    pytest.importorskip("torch.utils.tensorboard")
    model = base_model("resnet8", classes=2, channels=1, image_size=(8, 8), seed=0)
    train_base(model, data, QAT, listeners=[ProgressBar("base"), TensorBoard(tmp_path)])
    shown = capsys.readouterr()
    assert "base: step 3: score" in shown.err
    assert shown.out == ""
    assert any(path.name.startswith("events") for path in tmp_path.iterdir())


def test_a_missing_tensorboard_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'neuralfuse\[tracking\]'"):
        TensorBoard(tmp_path)


def test_a_checkpoint_is_plain_safetensors(whole_base):
    tensors, metadata = read_tensors(whole_base[2] / CHECKPOINT)
    assert {name.split(".")[0] for name in tensors} == {"module", "best", "optimizer"}
    assert "progress" in metadata
