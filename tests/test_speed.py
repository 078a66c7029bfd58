"""What makes steps and evaluations fast, against the slow way: threads, micro-batches, half precision."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.models import SmallNet
from helpers.toy import toy_data
from neuralfuse.config import EopmConfig, Running
from neuralfuse.evaluation import evaluate
from neuralfuse.faults import Chip, FaultModel, Stuck, Transient, fault_model
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy, side_by_side
from neuralfuse.memory.buffers import BufferPool
from neuralfuse.memory.workers import threads_at_once
from neuralfuse.nets.base import seeded
from neuralfuse.train import Pass, eopm_backward, passes, train_fuse

TRANSIENT = Transient(faults=Stuck(ber=0.02))
PLAIN = Running()


def case(running: Running = PLAIN, dtype: torch.dtype = torch.float64):
    draw = torch.Generator().manual_seed(3)
    base = deploy(seeded(SmallNet, 5).eval().to(dtype), running=running)
    return base, torch.randn(13, 1, 8, 8, generator=draw, dtype=dtype), torch.randint(0, 5, (13,), generator=draw)


def gradient(base, x: Tensor, labels: Tensor, plan: list[Pass], lam: float = 5.0) -> tuple[Tensor, tuple[float, float]]:
    leaf = x.clone().requires_grad_()
    losses = eopm_backward(base, leaf, labels, plan, lam=lam)
    return leaf.grad, losses


def plainly(base, x: Tensor, labels: Tensor, plan: list[Pass], lam: float = 5.0) -> Tensor:
    """The whole loss in one graph."""
    leaf = x.clone().requires_grad_()
    images = sum(len(one.rows) for one in plan)
    loss = F.cross_entropy(base(leaf), labels)
    for one in plan:
        logits = base.perturbed(one.chip)(leaf[one.rows])
        loss = loss + lam * F.cross_entropy(logits, labels[one.rows], reduction="sum") / images
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("estimator", ["split", "crossed"])
@pytest.mark.parametrize(
    ("faults", "micro_batch"),
    [*itertools.product((Stuck(ber=0.05), TRANSIENT), (None, 0, 1, 4)), (fault_model("reference", ber=0.05), None)],
    ids=lambda one: getattr(one, "kind", None),
)
def test_threads_and_micro_batches_leave_the_gradient_unchanged(estimator, faults: FaultModel, micro_batch, threads):
    base, x, labels = case(Running(micro_batch=micro_batch))
    assert base.at_once(x) == threads
    plan = passes(EopmConfig(n_chips=5, estimator=estimator), faults, len(x), 2)
    got, losses = gradient(base, x, labels, plan)
    whole = deploy(base.model, running=Running(micro_batch=0, channels_last=False, fold=False))
    torch.testing.assert_close(got, plainly(whole, x, labels, plan), rtol=1e-9, atol=1e-13)
    again, same = gradient(base, x, labels, plan)
    assert torch.equal(got, again) and losses == same
    torch.set_num_threads(1)
    assert base.at_once(x) == 1
    torch.testing.assert_close(gradient(base, x, labels, plan)[0], got, rtol=1e-9, atol=1e-13)


def test_evaluations_and_trainings_on_threads_equal_those_on_one(threads):
    data, base = toy_data(), deploy(seeded(SmallNet, 5).eval())
    config = EopmConfig(n_chips=3, batch=16, epochs=1, generator_bits=0, patience=0)

    def run() -> tuple[dict[str, Tensor], list[dict[str, float]], list]:
        fuse = NeuralFuse("convs", channels=1, image_size=(8, 8), seed=0)
        state = train_fuse(fuse, base, data, config, faults=Stuck(ber=0.02))
        told: list = []
        result = evaluate(base, data.test, TRANSIENT.chips(5), fuse=fuse, report=told.append)
        assert told == list(result.per_chip)
        return dict(fuse.state_dict()), state.history, [result]

    many, again = run(), run()
    assert many[1:] == again[1:] and all(torch.equal(many[0][name], again[0][name]) for name in many[0])
    fuse = NeuralFuse("convs", channels=1, image_size=(8, 8), seed=0).eval()
    results = [evaluate(base, data.test, TRANSIENT.chips(5), fuse=fuse)]
    torch.set_num_threads(1)
    assert results == [evaluate(base, data.test, TRANSIENT.chips(5), fuse=fuse)]


def test_results_come_in_order_and_few_are_taken_ahead(threads):
    taken, running, most = [], set(), []

    def items():
        for k in range(20):
            taken.append(k)
            yield k

    def work(k: int) -> tuple[int, int]:
        running.add(k)
        most.append(len(running))
        share = torch.get_num_threads()
        threading.Event().wait(0.002 * (k % 3))
        running.discard(k)
        return k, share

    for k, (got, share) in enumerate(side_by_side(work, items(), 2)):
        assert (got, share) == (k, 2) and len(taken) <= k + 3
    assert max(most) == 2 and torch.get_num_threads() == threads


def test_an_error_on_a_thread_is_the_caller_s_and_the_threads_are_given_back(threads):
    def work(k: int) -> int:
        if k == 2:
            raise ValueError("no such chip")
        return k

    with pytest.raises(ValueError, match="no such chip"):
        list(side_by_side(work, range(9), 4))
    assert torch.get_num_threads() == threads
    walk = side_by_side(work, range(9), 2)
    assert next(walk) == 0
    walk.close()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, 1), (2, 2), (8, 8), (9, 8), (11, 5), (13, 6), (15, 5), (16, 8), (64, 8)]
)
def test_equal_shares_leave_few_cores_idle(cores, threads):
    assert threads_at_once(cores) == threads


def test_the_caller_s_autocast_holds_on_the_threads_too(threads):
    def work(_: int) -> torch.dtype:
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    with torch.autocast("cpu", torch.bfloat16):
        assert set(side_by_side(work, range(4), threads)) == {torch.bfloat16}
    assert set(side_by_side(work, range(4), threads)) == {torch.float32}


def test_memory_does_not_grow_with_the_number_of_chips(threads, monkeypatch):
    base, x, labels = case(dtype=torch.float32)
    made, real = set(), BufferPool.copy_of

    def counted(self: BufferPool, values: Tensor) -> Tensor:
        image = real(self, values)
        made.add(image.data_ptr())
        return image

    monkeypatch.setattr(BufferPool, "copy_of", counted)
    for count in (5, 40):
        plan = [Pass(Chip(Stuck(ber=0.05), seed), torch.arange(len(x))) for seed in range(count)]
        gradient(base, x, labels, plan)
        evaluate(base, toy_data().test, Stuck(ber=0.05).chips(count))
    assert 1 <= len(made) <= 2 * threads  # one in work and one waiting, on each


class Cramped(SmallNet):
    """A model on a device whose memory holds no more than three images, or two with a graph."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > (2 if x.requires_grad else 3):
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(x)


def test_micro_batches_are_halved_until_they_fit():
    _, x, labels = case()
    base = deploy(seeded(Cramped, 5).eval().double(), running=Running(micro_batch=0, fold=False))
    wanted = deploy(seeded(SmallNet, 5).eval().double())
    chips = [Chip(Stuck(ber=0.05), seed) for seed in range(3)]
    with torch.no_grad():
        torch.testing.assert_close(base.perturbed(chips[0])(x), wanted.perturbed(chips[0])(x))
    plan = [Pass(chip, torch.arange(len(x))) for chip in chips]
    torch.testing.assert_close(gradient(base, x, labels, plan)[0], plainly(wanted, x, labels, plan))


class Full(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 0 and x.requires_grad:
            raise torch.OutOfMemoryError("out of memory")
        return self.head(x.flatten(1))


def test_one_image_that_does_not_fit_is_an_error():
    _, x, labels = case(dtype=torch.float32)
    with pytest.raises(torch.OutOfMemoryError):
        gradient(deploy(seeded(Full, 0)), x, labels, [])


class Random(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6 * torch.randn(len(x), 1, dtype=x.dtype)


class Closed(nn.Module):
    """A model whose copy would still run the original's layers, on the original's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallNet()
        self.steps = [lambda x: self.net(x) + 0]

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.isnan().any()):  # which cannot be traced
            raise ValueError("NaN")
        return self.steps[0](x)


class Keeping(SmallNet):
    """A model that keeps an output, and its graph with it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}
        self.norm.register_forward_hook(lambda module, inputs, output: self.seen.__setitem__("norm", output))


@pytest.mark.parametrize("kind", [Closed, Keeping])
def test_models_that_refer_to_themselves_give_the_same_on_threads(kind, threads):
    _, x, labels = case()
    base = deploy(seeded(kind, 5).eval().double())
    plan = [Pass(Chip(Stuck(ber=0.05), seed), torch.arange(len(x))) for seed in range(6)]
    assert base.at_once(x) == (1 if kind is Closed else threads)
    got = gradient(base, x, labels, plan)[0]
    with ThreadPoolExecutor(3) as pool:  # a user's own threads
        outputs = list(pool.map(lambda one: base.perturbed(one.chip)(x).detach(), plan))
    torch.set_num_threads(1)
    torch.testing.assert_close(got, gradient(base, x, labels, plan)[0], rtol=1e-9, atol=1e-13)
    for one, output in zip(plan, outputs, strict=True):
        torch.testing.assert_close(output, base.perturbed(one.chip)(x).detach())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_process_has_threads_of_its_own(threads):
    assert list(side_by_side(lambda k: k, range(5), 2)) == list(range(5))
    child = os.fork()
    if child == 0:
        os._exit(0 if list(side_by_side(lambda k: k, range(5), 2)) == list(range(5)) else 1)
    for _ in range(500):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        status = 1
    assert status == 0


class Uncopied(SmallNet):
    def __deepcopy__(self, memo: dict) -> nn.Module:
        raise TypeError("there is one of me")


@pytest.mark.parametrize("kind", [Random, Uncopied])
def test_models_that_threads_cannot_share_run_on_one(kind, threads):
    _, x, _ = case(dtype=torch.float32)
    with torch.random.fork_rng():
        assert deploy(seeded(kind, 5).eval(), running=Running(fold=False)).at_once(x) == 1


def test_compiled_models_run_on_one_thread(threads, monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="eager"))
    _, x, _ = case(dtype=torch.float32)
    assert deploy(seeded(SmallNet, 5).eval(), running=Running(compile=True)).at_once(x) == 1


@pytest.mark.slow
def test_what_torch_compiles_computes_the_same_on_one_thread(threads):
    _, x, _ = case(dtype=torch.float32)
    compiled = deploy(seeded(SmallNet, 5).eval(), running=Running(compile=True))
    assert compiled.at_once(x) == 1
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), deploy(seeded(SmallNet, 5).eval())(x))


@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_half_precision_gives_a_gradient_near_the_exact_one(autocast):
    base, x, labels = case(dtype=torch.float32)
    rounded = deploy(base.model, running=Running(autocast=autocast))
    plan = [Pass(Chip(Stuck(ber=0.05), seed), torch.arange(len(x))) for seed in range(3)]
    wanted, got = gradient(base, x, labels, plan)[0], gradient(rounded, x, labels, plan)[0]
    assert not torch.equal(got, wanted)
    assert float((got - wanted).norm() / wanted.norm()) < 0.05


def test_where_fp16_overflows_the_gradient_is_taken_in_full_precision():
    base, x, labels = case(dtype=torch.float32)
    with torch.no_grad():
        base.model.head.weight *= 3e4
    base, rounded = deploy(base.model), deploy(base.model, running=Running(autocast="fp16"))
    plan = [Pass(Chip(Stuck(ber=0.05), 1), torch.arange(len(x)))]
    leaf = x.clone().requires_grad_()
    loss = 1024 * F.cross_entropy(rounded(leaf), labels, reduction="sum")
    overflowing = torch.autograd.grad(loss, leaf)[0]
    assert not bool(overflowing.isfinite().all())
    assert torch.equal(gradient(rounded, x, labels, plan)[0], gradient(base, x, labels, plan)[0])
