"""Perturbed models beside each other, the memory they use, and activations in faulty cells, against naive models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.models import AS_IT_IS, Wrapper
from helpers.oracles import faulty_words, set_by_hand, x_of
from neuralfuse import NeuralFuse
from neuralfuse.errors import ConfigError
from neuralfuse.faults import BitRates, Chip, Combined, Flip, Stuck, Transient
from neuralfuse.memory import Activations, deploy
from neuralfuse.memory.activations import ActivationMemory
from neuralfuse.memory.buffers import BufferPool
from neuralfuse.quant import Scheme

FRESH = Combined(parts=(Stuck(ber=0.02), Transient(faults=Flip(ber=0.02))))


def chips(count: int, ber: float = 0.02) -> list[Chip]:
    return [Chip(Stuck(ber=ber), seed) for seed in range(count)]


def gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    run(leaf).square().sum().backward()
    return leaf.grad


def naive_buffer(x: Tensor, name: str, *, scheme: Scheme, chip: Chip | None = None, read: int = 0) -> Tensor:
    """Each sample quantized by its own range, each of its words read through the cells of one buffer."""
    rows = [sample.flatten().numpy() for sample in x.detach()]
    bits, limit, offset = scheme.bits, np.float32(scheme.limit), scheme.offset
    out = []
    for row in rows:
        low, high = (row.min(), row.max()) if scheme.coding == "asymmetric" else (-abs(row).max(), abs(row).max())
        center = (low + high) / np.float32(2)
        scale = (high - center) / limit
        steps = [np.rint((value - center) / (scale or np.float32(1))) for value in row]
        words = [int(min(max(step, -limit), limit)) + offset & (1 << bits) - 1 for step in steps]
        if chip is not None:
            words = faulty_words(words, name, bits, chip, read)
        if scheme.coding == "signed":
            words = [word - (1 << bits) * (word >> bits - 1) for word in words]
            out.append([np.float32(word) * (scale or np.float32(1)) for word in words])
        else:
            out.append([np.float32(min(max(word - offset, -limit), limit)) * scale + center for word in words])
    values = torch.from_numpy(np.array(out, np.float32)).view(x.shape)
    return values + (x - x.detach())


DEFAULT = ("input", "conv", "up", "line", "head")
Read = Callable[[Tensor, str], Tensor]


def through_buffers(net: nn.Module, x: Tensor, read: Read, buffers: Iterable[str] = DEFAULT) -> Tensor:
    """What `SmallNet` computes when these things lie in buffers."""

    def buffer(name: str, x: Tensor) -> Tensor:
        return x if name not in buffers else read(x, "input" if name == "input" else f"activation.{name}")

    x = buffer("norm", net.norm(buffer("conv", net.conv(buffer("input", x)))))
    x = buffer("up", net.up(torch.relu(x))).flatten(2)
    return buffer("head", net.head(buffer("line", net.line(x)).mean(2)))


SCHEMES = [Scheme(), Scheme(bits=4), Scheme(bits=12), Scheme(coding="asymmetric"), Scheme(bits=3, coding="asymmetric")]


@pytest.mark.parametrize("scheme", [*SCHEMES, *(Scheme(bits=bits, coding="unsigned") for bits in (5, 8, 16))])
@pytest.mark.parametrize("faults", [Flip(ber=0.01), FRESH])
def test_activations_equal_buffers_read_sample_by_sample(scheme, faults, small_net):
    base, x, chip = deploy(small_net, activations=Activations(scheme=scheme)), x_of(), Chip(faults, 4)
    perturbed = base.perturbed(chip)
    for turn in range(2):
        read = turn if faults is FRESH else 0
        twin = set_by_hand(small_net, base, chip, read)
        wanted = through_buffers(twin, x, partial(naive_buffer, scheme=scheme, chip=chip, read=read))
        assert torch.equal(perturbed(x), wanted)
    clean = set_by_hand(small_net, base, Chip(Flip(ber=0), 0))
    assert torch.equal(base(x), through_buffers(clean, x, partial(naive_buffer, scheme=scheme)))


def test_gradients_pass_straight_through_activations(small_net):
    base, chip = deploy(small_net, activations=Activations()), Chip(Stuck(ber=0.02), 4)
    twin, read = set_by_hand(small_net, base, chip), partial(naive_buffer, scheme=Scheme(), chip=chip)
    got, wanted = gradient(base.perturbed(chip), x_of()), gradient(lambda x: through_buffers(twin, x, read), x_of())
    assert torch.equal(got, wanted) and got.abs().sum() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_activations_do_not_depend_on_whether_gradients_are_taken(value):
    """Floating-point weights read through a chip make such activations."""
    memory, x = ActivationMemory(Activations()), torch.tensor([[1.0, value, -0.5]])
    without, within = memory.read("a", x, 0), memory.read("a", x.clone().requires_grad_(), 0)
    torch.testing.assert_close(within.detach(), without, rtol=0, atol=0, equal_nan=True)


def test_undefined_activations_are_stored_as_zero():
    x = torch.tensor([[1.0, float("nan"), -0.5]])
    assert ActivationMemory(Activations()).read("a", x, 0)[0].tolist() == pytest.approx([1.0, 0.0, -0.5], abs=0.004)


@pytest.mark.parametrize(
    ("choice", "buffers"),
    [
        ({"inputs": False}, ("conv", "up", "line", "head")),
        ({"include": ("no*", "head")}, ("input", "norm", "head")),
        ({"include": ("*",), "exclude": ("????",), "inputs": False}, ("up",)),
        ({"exclude": ("conv", "li*")}, ("input", "up", "head")),
        ({"include": ()}, ("input",)),
    ],
)
def test_what_is_stored_is_chosen_by_pattern(choice, buffers, small_net):
    base, chip = deploy(small_net, activations=Activations(**choice)), Chip(Stuck(ber=0.02), 4)
    read = partial(naive_buffer, scheme=Scheme(), chip=chip)
    wanted = through_buffers(set_by_hand(small_net, base, chip), x_of(), read, buffers)
    assert torch.equal(base.perturbed(chip)(x_of()), wanted)
    assert base.to_config()["activations"]["inputs"] == ("input" in buffers)


def test_a_choice_of_nothing_is_refused(small_net):
    with pytest.raises(ConfigError, match=r"activations must be stored somewhere: include=\('relu',\), exclude=\(\)"):
        deploy(small_net, activations=Activations(include=("relu",), inputs=False))


def test_samples_do_not_see_each_other(small_net):
    order = torch.tensor([4, 0, 3, 1, 2])
    base, x = deploy(small_net, activations=Activations()), x_of(5)
    perturbed = base.perturbed(Chip(Stuck(ber=0.02), 4))
    assert torch.equal(perturbed(x)[order], perturbed(x[order]))
    memory = ActivationMemory(Activations(), Chip(Stuck(ber=0.02), 4))
    assert torch.equal(memory.read("a", x, 0), torch.cat([memory.read("a", one[None], 0) for one in x]))


def test_buffers_of_a_wrapped_model_are_the_model_s(small_net):
    choice, chip = Activations(include=("conv", "head")), Chip(Stuck(ber=0.05), 3)
    wanted = deploy(small_net, activations=choice).perturbed(chip)(x_of())
    for wrapped in (nn.DataParallel(small_net), Wrapper(small_net)):
        assert torch.equal(deploy(wrapped, activations=choice).perturbed(chip)(x_of()), wanted)


def test_the_model_as_handed_over_is_untouched(small_net):
    calls = []
    small_net.head.register_forward_hook(lambda *_: calls.append(1))
    small_net.norm.weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in small_net.state_dict().items()}

    def outside() -> list:
        hooks = [[*one._forward_hooks, *one._forward_pre_hooks, *vars(one)] for one in small_net.modules()]
        return [hooks, [(one.requires_grad, one.grad, id(one)) for one in small_net.parameters()]]

    before = outside()
    base = deploy(small_net, activations=Activations())
    perturbed = base.perturbed(Chip(FRESH, 1))
    base(x_of())  # the first run tries ways to run
    calls.clear()
    gradient(lambda x: base(x) + perturbed(x), x_of())
    for run in (base, perturbed):
        with pytest.raises(RuntimeError, match="channels"):
            run(x_of().expand(-1, 2, -1, -1))
    assert outside() == before and len(calls) == 2
    for name, tensor in small_net.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_transient_errors_are_fresh_at_each_pass_and_repeat_from_zero(small_net):
    base, chip, x = deploy(small_net, running=AS_IT_IS), Chip(FRESH, 3), x_of()
    perturbed = base.perturbed(chip)
    first = []
    for read in range(3):
        first.append(perturbed(x))
        assert torch.equal(first[read], set_by_hand(small_net, base, chip, read)(x))
        assert torch.equal(perturbed.reading.codes, base.memory.read(chip, read=read).codes)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    again = perturbed.from_first_read()
    assert all(torch.equal(again(x), one) for one in first)
    assert torch.equal(perturbed(x, read=1), first[1])
    assert torch.equal(base.perturbed(chip)(x), first[0])
    assert torch.equal(perturbed(x), set_by_hand(small_net, base, chip, 3)(x)), "reads that were named do not count"


@pytest.mark.parametrize("faults", [Flip(ber=0.01), BitRates.protecting(Flip(ber=0.01), msbs=2), None])
def test_permanent_faults_are_read_once(faults, small_net):
    faults = faults or Combined(parts=(Flip(ber=0.01), Stuck(ber=0.01)))
    perturbed = deploy(small_net).perturbed(Chip(faults, 3))
    reading = perturbed.reading
    perturbed(x_of())
    perturbed(x_of())
    assert perturbed.reading is reading


def test_models_of_several_chips_in_one_graph_have_their_own_gradients(small_net):
    base = deploy(small_net.double())
    models = [base, *map(base.perturbed, chips(3)), base.perturbed(Chip(FRESH, 9))]
    together = gradient(lambda x: sum(model(x) ** 2 for model in models).sqrt(), x_of().double())
    leaf = x_of().double().requires_grad_()
    for model in (*models[:-1], models[-1].from_first_read()):
        model(leaf).square().sum().backward()
    torch.testing.assert_close(together, leaf.grad, rtol=1e-12, atol=1e-12)
    assert [torch.equal(one(leaf), other(leaf)) for one in models[:4] for other in models[:4]] == [
        one == other for one in range(4) for other in range(4)
    ]


def test_a_model_computes_the_same_after_others_have_run(small_net):
    base, x = deploy(small_net), x_of()
    one, other = map(base.perturbed, chips(2))
    clean, first, second = base(x), one(x), other(x)
    for model, wanted in ((one, first), (base, clean), (other, second), (other, second), (one, first)):
        assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activations", [None, Activations()])
def test_a_model_evaluates_and_then_trains_what_lies_before(dtype, activations, small_net):
    base, x = deploy(small_net.to(dtype), activations=activations), x_of().to(dtype)
    wanted = gradient(base.perturbed(chips(1)[0]), x)
    with torch.inference_mode():
        perturbed = base.perturbed(chips(1)[0])
        out = perturbed(x)
    assert torch.equal(perturbed(x), out)
    assert torch.equal(gradient(perturbed, x), wanted)


def test_images_come_back_when_nothing_refers_to_them():
    images, values = BufferPool(), torch.arange(10_000.0)
    image = images.copy_of(values)
    place, view = image.data_ptr(), image[3:].view(-1, 1)
    del image
    assert images.copy_of(values).data_ptr() != place
    array = view.numpy()
    del view
    held = [images.copy_of(-values) for _ in range(4)]
    assert place not in [one.data_ptr() for one in held] and np.array_equal(array[:, 0], values[3:])
    del array
    others = [np.empty(40_000, np.uint8) for _ in range(20)]  # memory that went back to the system would be theirs
    assert images.copy_of(values).data_ptr() == place and len(others) == 20


def test_images_stay_as_long_as_a_graph_needs_them():
    images, values, x = BufferPool(), torch.arange(100.0), torch.ones(100, requires_grad=True)
    out = (x * images.copy_of(values)).sum()
    for _ in range(3):
        images.copy_of(0 * values)
    out.backward()
    assert torch.equal(x.grad, values)


def test_outputs_that_are_weights_are_not_written_over(small_net):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net

        def forward(self, x):
            return self.net.conv.weight[None]

    base = deploy(Table())
    kept = [base.perturbed(chip)(x_of()) for chip in chips(4, 0.1)]
    wanted = [base.memory.split(image_of(base, chip))["net.conv.weight"][None] for chip in chips(4, 0.1)]
    assert all(map(torch.equal, kept, wanted))


def image_of(base, chip):
    reading = base.memory.read(chip)
    return base.memory.values.index_copy(0, reading.index, reading.values)


def test_models_hold_what_reads_differently_and_nothing_else():
    model = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 64, 300))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    base = deploy(model)
    base(x_of())
    words = base.memory.layout.words

    def large() -> set[int]:
        gc.collect()
        tensors = [one for one in gc.get_objects() if type(one) is Tensor]
        return {one.data_ptr() for one in tensors if one.untyped_storage().nbytes() >= words}

    before = large()
    models = [base.perturbed(chip) for chip in chips(20, 0.001)]
    assert large() == before
    for one in models:
        one(x_of())
    assert len(large() - before) <= 1  # the image of the latest one
    held = sum(len(one.reading.index) + len(one.reading.codes) + len(one.reading.values) for one in models)
    changed = sum(round(one.changed_bits * words * 8) for one in models)
    assert 0 < held <= 3 * changed < 20 * words * 0.02


@pytest.mark.parametrize("input_range", ["unit", "imagenet"])
def test_neuralfuse_itself_runs_from_a_faulty_memory(input_range):
    fuse = NeuralFuse("convs", channels=3, image_size=(8, 8), input_range=input_range, seed=1).eval()
    base = deploy(fuse, input_range=fuse.input_range, running=AS_IT_IS)
    chip = Chip(Stuck(ber=0.01), 2)
    x = fuse.input_range.from_pixels(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    out, twin = base.perturbed(chip)(x), set_by_hand(fuse, base, chip)
    assert torch.equal(out, twin(x)) and not torch.equal(out, base(x))
    assert torch.equal(gradient(base.perturbed(chip), x), gradient(twin, x))
    assert base.input_range == fuse.input_range and base.to_config()["left_out"] == []
