"""The fast ways to run a deployed model, against the model as it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.models import AS_IT_IS
from neuralfuse.config import Running
from neuralfuse.errors import ConfigError, UnknownNameError
from neuralfuse.faults import Chip, Stuck
from neuralfuse.memory import deploy
from neuralfuse.memory.folding import fold
from neuralfuse.nets import base_model
from neuralfuse.nets.base import seeded

CHIP = Chip(Stuck(ber=0.01), 5)


def images(count: int = 5, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained(name: str) -> nn.Module:
    """Return a base model whose BatchNorms have statistics and weights of their own."""
    model = base_model(name, classes=10, channels=3, image_size=(32, 32), seed=0)
    draw = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=draw)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1, generator=draw)
    return model.eval()


def output_and_gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    return output.detach(), torch.autograd.grad(output.logsumexp(1).sum(), leaf)[0]


@pytest.mark.parametrize("name", ["resnet8", "vgg11-quarter", "preact-resnet18-quarter"])
@pytest.mark.parametrize(
    "running",
    [Running(), Running(fold=False), Running(channels_last=False), Running(micro_batch=2), Running(micro_batch=0)],
    ids=str,
)
@pytest.mark.parametrize("faulty", [False, True])
def test_fast_ways_equal_the_model_as_it_is(name, running, faulty):
    model, x = trained(name), images()
    oracle, fast = deploy(model, running=AS_IT_IS), deploy(model, running=running)
    wanted = output_and_gradient(oracle.perturbed(CHIP) if faulty else oracle, x)
    got = output_and_gradient(fast.perturbed(CHIP) if faulty else fast, x)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_what_is_folded_is_gone_from_the_module_and_nothing_is_edited():
    model = trained("resnet8")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    norms = sum(isinstance(one, nn.BatchNorm2d) for one in model.modules())
    found = fold(model, [name for name, _ in model.named_parameters()])
    assert found is not None and len(found.scales) == norms > 0
    assert not any(isinstance(one, nn.BatchNorm2d) for one in found.module.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Twice(nn.Module):
    """A convolution that feeds its BatchNorm, or something else too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        if kind == "hooked":
            self.conv.register_forward_hook(lambda module, inputs, output: output + 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "values" and float(x.detach().sum()) > 1e9:
            return x
        out = self.conv(x)
        normed = self.norm(out)
        if self.kind == "shared":
            normed = normed + out
        if self.kind == "again":
            normed = normed + self.conv(x)
        return normed.flatten(1)


@pytest.mark.parametrize("kind", ["shared", "again", "hooked", "values"])
def test_a_convolution_that_feeds_more_is_left_alone(kind):
    model = seeded(lambda: Twice(kind), 3).eval()
    model.norm.running_mean.fill_(0.3)
    assert fold(model, ["conv.weight"]) is None
    x = images(3, 8)
    torch.testing.assert_close(deploy(model)(x), deploy(model, running=AS_IT_IS)(x))


class Insists(nn.Module):
    """A model that cannot stand another memory format: it views what it should reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(x)).view(len(x), -1)


def test_a_model_that_insists_on_its_layout_keeps_it():
    model = seeded(Insists, 3)
    with pytest.raises(RuntimeError):
        model(images(3, 8).contiguous(memory_format=torch.channels_last))
    oracle = deploy(model, running=AS_IT_IS)
    assert torch.equal(deploy(model).perturbed(CHIP)(images(3, 8)), oracle.perturbed(CHIP)(images(3, 8)))


def test_autocast_rounds_and_is_said_in_records():
    model, x = trained("resnet8"), images()
    exact, rounded = deploy(model), deploy(model, running=Running(autocast="bf16"))
    out = rounded.perturbed(CHIP)(x)
    wanted = exact.perturbed(CHIP)(x)
    assert out.dtype == torch.float32 and not torch.equal(out, wanted)
    torch.testing.assert_close(out, wanted, rtol=0.1, atol=0.1 * float(wanted.abs().max()))
    assert rounded.to_config()["autocast"] == "bf16" and "autocast" not in exact.to_config()


def test_models_run_in_several_threads_at_a_time():
    base, x = deploy(trained("resnet8")), images(40)
    models = [base.perturbed(Chip(Stuck(ber=0.05), seed)) for seed in range(12)]
    wanted = [output_and_gradient(model, x) for model in models]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(output_and_gradient, models, [x] * len(models)))
    for pair, other in zip(got, wanted, strict=True):
        for one, two in zip(pair, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # from inside torch.compile
def test_a_compiled_model_computes_the_same(monkeypatch):
    called = []

    def traced(function):
        called.append(function)
        return real(function, backend="eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    model, x = trained("resnet8"), images()
    wanted = output_and_gradient(deploy(model).perturbed(CHIP), x)
    got = output_and_gradient(deploy(model, running=Running(compile=True)).perturbed(CHIP), x)
    assert len(called) == 1
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))


@pytest.mark.slow
def test_where_compilation_fails_the_user_is_told_what_to_leave_out(monkeypatch):
    def failing(module, inputs):
        raise RuntimeError("no working C++ compiler")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=failing))
    with pytest.raises(ConfigError, match=r"compile must be left out here: .*no working C\+\+ compiler"):
        deploy(trained("resnet8"), running=Running(compile=True))(images())


def test_impossible_ways_are_refused():
    with pytest.raises(UnknownNameError, match="unknown autocast type 'fp8'"):
        Running(autocast="fp8")
    with pytest.raises(ConfigError, match="micro_batch must be at least 0: got micro_batch=-1"):
        Running(micro_batch=-1)
    base = deploy(trained("resnet8"))
    with pytest.raises(ConfigError, match="must have run once"):
        base.weights_through(base.perturbed(CHIP))
