"""Fixtures that several test modules share. Nothing large is imported before a test or a worker needs it."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("helpers")


@pytest.fixture
def small_net():
    import torch

    from helpers.models import SmallNet

    with torch.random.fork_rng():
        torch.manual_seed(5)
        return SmallNet().eval()


@pytest.fixture
def data():
    from helpers.toy import toy_data

    return toy_data()


@pytest.fixture
def threads():
    """Four threads for torch, as long as a test lasts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _global_randomness_untouched():
    """The library must neither seed nor read the global generator."""
    import torch

    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used"


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory) -> Path:
    """The folder of a small base model that tells the toy's classes apart; not to be changed."""
    import torch

    from helpers.toy import toy_data
    from neuralfuse.config import QatConfig
    from neuralfuse.pipeline import make_base

    folder, config = tmp_path_factory.mktemp("toy-base"), QatConfig(epochs=4, batch=16, lr=0.05, augment="none")
    make_base("resnet8", toy_data(), config, out=folder, device=torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def gateway_fuse():
    """A module that changes images a lot; not to be changed."""
    import torch

    from neuralfuse.fuse import NeuralFuse

    made = NeuralFuse("convs", channels=3, image_size=(4, 4), fit="pad", seed=3).eval()
    with torch.no_grad():
        [*made.generator.parameters()][-1].add_(0.3)
    return made


@pytest.fixture
def put_before(gateway_fuse):
    """Put a gateway before a server; its address comes back."""
    from neuralfuse.serve import Settings
    from neuralfuse.serve.run import listen, server_of

    running = []

    def start(address: str, **options) -> str:
        server = server_of(gateway_fuse, Settings(upstream=address.partition("/v2")[0], **options))
        listening = listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join()


@pytest.fixture
def upstream():
    """Start servers with some attributes; the address of the model comes back, and the class that serves it."""
    from helpers.servers import Listening, Server, listening

    with ExitStack() as running:

        def start(kind=Server, tls=None, **attributes):
            made = type("Made", (kind,), {"troubles": [], "seen": [], "paths": [], **attributes})
            server = Listening(("127.0.0.1", 0), made)
            if tls is not None:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            running.enter_context(listening(server))
            scheme = "http" if tls is None else "https"
            return f"{scheme}://127.0.0.1:{server.server_port}/v2/models/net", made

        yield start


def pytest_collection_finish():
    """Look for garbage seldom, and not in what was imported: it takes a tenth of the time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


LONGEST = [
    "test_reproduce_runs.py", "test_kills.py", "test_contracts.py", "test_examples.py", "test_benchmarks.py",
    "test_demo.py", "test_over_the_wire.py", "test_serve.py", "test_ranks.py", "test_report.py", "test_faults.py",
    "test_train.py", "test_onnx.py", "test_methods.py", "test_reproduce.py",
]  # fmt: skip
"""Files that begin first, so that no worker is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    import torch

    torch.set_num_threads(1)  # two workers share two cores
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
