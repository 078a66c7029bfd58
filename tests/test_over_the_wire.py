"""The whole chain: a real client, the gateway, a real server with a faulty memory: it answers what we compute."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.cli import fails
from helpers.pages import blocks
from helpers.places import ROOT
from neuralfuse.cli.main import run
from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.data import load_data
from neuralfuse.faults import Chip, Stuck, fault_model
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets import DeployedBase, load_base
from neuralfuse.pipeline import make_base, make_fuse
from neuralfuse.scoring import accuracy, plain_inputs, transform

MLSERVER = Path(os.environ.get("MLSERVER", ROOT / ".mlserver" / "bin" / "mlserver"))
STUCK = fault_model("stuck", ber=0.03)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_settings_for_a_server_are_written(toy_base, tmp_path, capsys):
    command = ["chip", "serve", "--base", str(toy_base), "--out", str(tmp_path / "served"), "--name", "net"]
    assert run([*command, "--ber", "0.03", "--seed", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["address"] == "http://127.0.0.1:8080/v2/models/net"
    model = json.loads((tmp_path / "served" / "model-settings.json").read_text())
    assert model["parameters"]["extra"]["faults"] == STUCK.to_config() and model["parameters"]["extra"]["seed"] == 5
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert json.loads((tmp_path / "served" / "settings.json").read_text())["host"] == "127.0.0.1"
    assert run(command) == 0
    model = json.loads((tmp_path / "served" / "model-settings.json").read_text())
    assert model["parameters"]["extra"]["faults"] is None
    capsys.readouterr()
    fails(capsys, [*command, "--port", "65534"], "port must be in 1..65533")
    fails(capsys, ["chip", "serve", "--base", str(tmp_path), "--out", str(tmp_path / "x")], "cannot read")


def free_port() -> int:
    """A port of which the next two are free as well, most likely."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return min(65530, int(found.getsockname()[1]))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A trained NeuralFuse, MLServer with a faulty model, and the gateway, each a process of its own."""
    if not MLSERVER.exists():
        pytest.skip("needs MLServer in an environment of its own: make .mlserver/.ready, or set MLSERVER")
    folder, data, cpu = tmp_path_factory.mktemp("chain"), load_data("digits"), torch.device("cpu")
    make_base("resnet8", data, QatConfig(epochs=8, batch=64), out=folder / "base", device=cpu)
    base = DeployedBase.of(load_base(folder / "base"))
    eopm = EopmConfig(epochs=4, batch=64, lr=4e-3, n_chips=2)
    make_fuse("convs", [base], data, eopm, faults=Stuck(ber=0.03), out=folder / "fuse", device=cpu)
    port = free_port()
    command = ["chip", "serve", "--base", str(folder / "base"), "--ber", "0.03", "--seed", "7"]
    assert run([*command, "--out", str(folder / "served"), "--port", str(port)]) == 0
    log = (folder / "log").open("w")
    server = subprocess.Popen([MLSERVER, "start", folder / "served"], env=ENVIRONMENT, stdout=log, stderr=log)
    serve = [
        Path(sys.executable).with_name("neuralfuse"),
        "serve",
        str(folder / "fuse"),
        "--upstream",
        f"http://127.0.0.1:{port}",
        "--port",
        "0",
        "--grpc-upstream",
        f"grpc://127.0.0.1:{port + 1}",
        "--grpc-port",
        str(rpc_port := free_port()),
    ]
    gateway = subprocess.Popen(serve, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        address = gateway.stderr.readline().split()[2].rstrip(",")
        yield NeuralFuse.from_pretrained(folder / "fuse"), base.deployed, data, address, f"127.0.0.1:{rpc_port}"
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(30) == 0
    finally:
        for process in (gateway, server):
            process.kill()
            process.wait()
        gateway.stderr.close()
        log.close()


@pytest.mark.slow
def test_the_accuracy_over_the_wire_is_the_one_in_process(chain):
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    fuse, base, data, address, _ = chain
    client = InferenceServerClient(address.removeprefix("http://"))
    deadline = time.monotonic() + 60
    while not client.is_server_ready():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert client.is_server_live() and client.is_model_ready("model")
    faulty, labels = base.perturbed(Chip(STUCK, seed=7)), data.test.labels
    x = plain_inputs(data.test, base.input_range)
    protected = accuracy(faulty, transform(fuse, x), labels)
    assert protected != accuracy(faulty, x, labels)
    with torch.inference_mode():
        wanted = faulty(transform(fuse, x)).numpy()
    for binary_in in (True, False):
        for binary_out in (True, False, None):
            answers = []
            for part in np.array_split(x.numpy(), 5):
                sent = InferInput("image", list(part.shape), "FP32")
                sent.set_data_from_numpy(part, binary_data=binary_in)
                outputs = None if binary_out is None else [InferRequestedOutput("logits", binary_data=binary_out)]
                packed = "gzip" if binary_out is None else None
                made = client.infer("model", [sent], outputs=outputs, request_compression_algorithm=packed)
                answers.append(made.as_numpy("logits"))
            got = np.concatenate(answers)
            assert 100 * float((got.argmax(1) == labels.numpy()).mean()) == pytest.approx(protected, abs=1e-9)
            assert np.allclose(got, wanted, atol=1e-3)
    client.close()


@pytest.mark.slow
def test_a_connection_may_rest(chain):
    connection = HTTPConnection(chain[3].removeprefix("http://"), timeout=10)
    with closing(connection):
        for rest in (6, 0):
            connection.request("GET", "/v2/health/live")
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read() is not None
            assert connection.sock is not None  # it is not reopened: closing would show here
            time.sleep(rest)


@pytest.mark.slow
def test_so_it_is_over_grpc(chain):
    from tritonclient.grpc import InferenceServerClient, InferInput

    fuse, base, data, _, address = chain
    faulty, labels = base.perturbed(Chip(STUCK, seed=7)), data.test.labels
    x = plain_inputs(data.test, base.input_range)
    with InferenceServerClient(address) as client:
        deadline = time.monotonic() + 60
        while not client.is_server_ready():
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert client.get_model_metadata("model").inputs[0].name == "image"
        answers = []
        for part in np.array_split(x.numpy(), 5):
            sent = InferInput("image", list(part.shape), "FP32")
            sent.set_data_from_numpy(part)
            answers.append(client.infer("model", [sent]).as_numpy("logits"))
    right = np.concatenate(answers).argmax(1) == labels.numpy()
    assert 100 * float(right.mean()) == pytest.approx(accuracy(faulty, transform(fuse, x), labels), abs=1e-9)


@pytest.mark.slow
def test_evaluate_judges_the_chain_as_a_black_box(chain, capsys):
    """What the gateway answers to plain images is what the chip answers to transformed ones."""
    fuse, base, data, address, _ = chain
    capsys.readouterr()
    assert run(["evaluate", "--base", f"{address}/v2/models/model", "--images", "200", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    rows = data.test.order("digits", "black box")[:200]
    faulty = base.perturbed(Chip(STUCK, seed=7))
    inputs = transform(fuse, plain_inputs(data.test, base.input_range)[rows])
    assert record["pa"] == pytest.approx(accuracy(faulty, inputs, data.test.labels[rows]), abs=1e-9)


@pytest.mark.slow
def test_the_page_for_practitioners_runs(tmp_path):
    """Its ten commands, in order, on ports that are free; the model answers better through the gateway."""
    if not MLSERVER.exists():
        pytest.skip("needs MLServer in an environment of its own: make .mlserver/.ready, or set MLSERVER")
    server, gateway = free_port(), free_port() + 10
    commands = [line for block in blocks("docs/remote.md") for line in block.splitlines()]
    commands = [line.replace(":8080", f":{server}").replace("8010", str(gateway)) for line in commands]
    commands = [f"{line} --port {server}" if "chip serve" in line else line for line in commands]
    assert len(commands) == 10
    page = (ROOT / "docs" / "remote.md").read_text(encoding="utf-8").splitlines()
    (tuning,) = (line.strip().replace(":8080", f":{server}") for line in page if line.startswith("    neuralfuse tune"))
    commands.insert(commands.index(next(line for line in commands if line.startswith("neuralfuse serve"))), tuning)
    path = os.pathsep.join([str(Path(sys.executable).parent), str(MLSERVER.parent), os.environ["PATH"]])
    environment, running = {**ENVIRONMENT, "PATH": path}, []
    try:
        for command in commands:
            if not command.endswith("&"):
                words = ["bash", "-c", command]
                done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{command}\n{done.stderr}"
                continue
            words = ["bash", "-c", f"exec {command.removesuffix('&')}"]
            running.append(subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL))
    finally:
        for process in running:
            process.kill()
            process.wait()
    choice = json.loads((tmp_path / "runs" / "choice.json").read_text())
    protected = json.loads((tmp_path / "runs" / "protected.json").read_text())
    assert len(choice["config"]["candidates"]) == 8
    assert choice["best"] in choice["config"]["candidates"] and choice["gain_ci95"][0] > 0
    model, data = load_base(tmp_path / "runs" / "remote"), load_data("digits")
    base = deploy(model.module, scheme=model.scheme)
    fuse = NeuralFuse.from_pretrained(tmp_path / "runs" / "fuse")
    assert fuse.trained == NeuralFuse.from_pretrained(tmp_path / choice["best"]).trained
    behind = transform(fuse, plain_inputs(data.test, base.input_range))
    faulty = base.perturbed(Chip(fault_model("stuck", ber=0.06), seed=7))
    assert protected["pa"] == pytest.approx(accuracy(faulty, behind, data.test.labels), abs=0.2)  # at most one image
    tuned = json.loads((tmp_path / "runs" / "tuned" / "tuning.json").read_text())
    assert tuned["steps"] > 10 and 0 < tuned["run"]["asked"] <= 6000  # few questions: it may gain, or be as it was
    assert (tuned["gain_ci95"][0] > 0) == (tuned["kept"] == "tuned")
