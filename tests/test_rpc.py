"""The gateway's gRPC door: the same promises as over HTTP, kept for the protocol's gRPC service."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx2
import numpy as np
import pytest
import torch
import trustme
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from helpers.cli import fails
from helpers.gateway import images, transformed
from neuralfuse.cli.main import run
from neuralfuse.errors import ConfigError
from neuralfuse.export.apply import transform_any
from neuralfuse.serve import Settings
from neuralfuse.serve.rpc import decode_request, replace_tensor
from neuralfuse.serve.settings import host_port
from neuralfuse.wire import HEADER, Message, WireError, WireTensor, decode, encode


@pytest.fixture
def fuse(gateway_fuse):
    return gateway_fuse


class Behind(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that hands images back, and remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[service_pb2.ModelInferRequest, dict]] = []
        self.gate: threading.Event | None = None

    def ModelInfer(self, request, context):
        self.seen.append((request, dict(context.invocation_metadata())))
        if self.gate is not None:
            self.gate.wait(30)
        if request.model_name == "broken":
            context.abort(grpc.StatusCode.NOT_FOUND, "no model broken")
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        one = request.inputs[0]
        answer.outputs.add(name="same", datatype=one.datatype, shape=one.shape)
        if request.raw_input_contents:
            answer.raw_output_contents.append(request.raw_input_contents[0])
        else:
            answer.outputs[0].contents.CopyFrom(one.contents)
        return answer

    def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=True)

    def ModelMetadata(self, request, context):
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["1"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def behind():
    server, servicer = grpc.server(ThreadPoolExecutor(8)), Behind()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"grpc://127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def door(put_before, behind):
    """Open a gateway before the server; its gRPC address comes back."""

    def start(**options) -> str:
        port = free_port()
        put_before("http://127.0.0.1:9", grpc_upstream=options.pop("upstream", behind[1]), grpc_port=port, **options)
        return f"127.0.0.1:{port}"

    return start


def asked(address: str, x: np.ndarray, datatype: str, model: str = "net", **options):
    with InferenceServerClient(address) as client:
        sent = InferInput("image", list(x.shape), datatype)
        sent.set_data_from_numpy(x)
        return client.infer(model, [sent], **options).as_numpy("same")


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "UINT8"])
def test_the_model_sees_transformed_images(door, behind, fuse, datatype):
    x = images(5)
    if datatype == "UINT8":
        given_ = ((x + 1) * 127.5).round().byte()
        wanted = transform_any(fuse, given_).numpy()
    else:
        kind = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16}[datatype]
        given_ = torch.from_numpy(x.numpy().astype(kind))
        wanted = transformed(fuse, given_.float()).numpy().astype(kind)
    got = asked(door(), given_.numpy(), datatype, request_id="7", headers={"trace": "abc"})
    assert got.dtype == wanted.dtype
    assert np.allclose(got, wanted, atol=2e-3 if datatype == "FP16" else 1e-5)
    assert np.abs(got.astype(np.float64) - given_.numpy()).mean() > 0.02
    request, metadata = behind[0].seen[0]
    assert request.id == "7" and metadata["trace"] == "abc"


def test_values_in_lists_are_transformed_too(door, behind, fuse):
    x = images(2)
    request = service_pb2.ModelInferRequest(model_name="net")
    request.inputs.add(name="image", datatype="FP32", shape=x.shape).contents.fp32_contents.extend(x.flatten().tolist())
    request.inputs.add(name="note", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"hello")
    with grpc.insecure_channel(door()) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    got = np.array(answer.outputs[0].contents.fp32_contents).reshape(x.shape)
    assert np.allclose(got, transformed(fuse, x).numpy(), atol=1e-5)
    assert behind[0].seen[0][0].inputs[1] == request.inputs[1]


def test_what_only_reads_passes_and_what_could_answer_is_refused(door):
    address = door()
    with InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.get_model_metadata("net").versions == ["1"]
        with pytest.raises(InferenceServerException, match="Method not implemented"):  # of the server behind
            client.is_server_ready()
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stream = stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest(model_name="net")]), timeout=20)
        with pytest.raises(grpc.RpcError) as error:
            next(stream)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "a protected model must be queried by ModelInfer" in error.value.details()
        with pytest.raises(grpc.RpcError, match="a protected model must be queried by ModelInfer"):
            channel.unary_unary("/other.Service/Predict")(b"", timeout=20)


def test_models_that_are_not_named_pass_untouched(door):
    address, x = door(models=("net",)), images(2).numpy()
    assert np.array_equal(asked(address, x, "FP32", model="other"), x)
    assert not np.allclose(asked(address, x, "FP32"), x, atol=1e-3)


def test_errors_are_told_in_the_service_s_words(door, behind):
    address, x = door(), images(2).numpy()
    for wrong, says in (
        (x[:, :, :2], "must have one input of shape"),
        (x * 3, "image"),
        (x.astype(np.int32), "must be of FP32"),
    ):
        with pytest.raises(InferenceServerException, match=says) as error:
            asked(address, wrong, "INT32" if wrong.dtype == np.int32 else "FP32")
        assert "INVALID_ARGUMENT" in error.value.status()
    with pytest.raises(InferenceServerException, match="no model broken") as error:
        asked(address, x, "FP32", model="broken")
    assert "NOT_FOUND" in error.value.status()
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as raised:
            infer(b"\xff\xff rubbish", timeout=20)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InferenceServerException) as error:
        asked(door(upstream=f"grpc://127.0.0.1:{free_port()}"), x, "FP32")
    assert "UNAVAILABLE" in error.value.status()
    behind[0].gate = threading.Event()
    with pytest.raises(InferenceServerException) as error:
        asked(door(timeout=0.3), x, "FP32")
    assert "DEADLINE_EXCEEDED" in error.value.status()
    behind[0].gate.set()
    with pytest.raises(InferenceServerException) as error:
        asked(door(max_body=1000), np.concatenate([x] * 20), "FP32")
    assert "RESOURCE_EXHAUSTED" in error.value.status()


def test_a_call_whose_message_does_not_come_is_not_waited_for(door):
    address, silent = door(timeout=0.5, in_flight=1), threading.Event()

    def nothing():
        silent.wait(30)
        yield b""

    with grpc.insecure_channel(address) as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        waiting = [call.future(nothing(), timeout=30) for _ in range(9)]
        ends = {one.exception().code() for one in waiting}
        assert ends == {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert asked(address, images(1).numpy(), "FP32").shape == (1, 3, 4, 4)
        silent.set()
        with pytest.raises(grpc.RpcError) as error:
            call(iter(()), timeout=30)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_tokens_and_the_bound_on_requests_in_flight(door, behind):
    address, x = door(token="secret", upstream_token="other", in_flight=1), images(1).numpy()
    with pytest.raises(InferenceServerException, match="must carry the bearer token") as error:
        asked(address, x, "FP32")
    assert "UNAUTHENTICATED" in error.value.status()
    known = {"authorization": "Bearer secret"}
    behind[0].gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(asked, address, x, "FP32", headers=known)
        while not behind[0].seen:
            pass
        with pytest.raises(InferenceServerException, match="the limit of 1 requests in flight is reached") as error:
            asked(address, x, "FP32", headers=known)
        assert "RESOURCE_EXHAUSTED" in error.value.status()
        behind[0].gate.set()
        assert first.result().shape == x.shape
    assert behind[0].seen[0][1]["authorization"] == "Bearer other"
    asked(address, x, "FP32", headers=known)  # there is room again


def is_open(place: tuple[str, int]) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(place) == 0


@pytest.fixture
def certified(tmp_path):
    """A certificate for this machine: ca.pem, own.pem and key.pem."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    for name, blob in {"ca": authority.cert_pem, "own": own.cert_chain_pems[0], "key": own.private_key_pem}.items():
        blob.write_to_path(tmp_path / f"{name}.pem")
    return own


@pytest.mark.slow
def test_a_stopped_gateway_answers_what_it_has_begun(tmp_path, fuse, upstream, certified):  # noqa: PLR0915
    """With TLS on all sides."""
    tls, known = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=tmp_path / "ca.pem")
    certified.configure_cert(tls)
    gate, behind, x = threading.Event(), Behind(), images(3)
    behind.gate = gate
    address, web = upstream(tls=tls, model=staticmethod(lambda x: gate.wait(30) and x.mean((2, 3))))
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(behind, server)
    pair = certified.private_key_pem.bytes(), certified.cert_chain_pems[0].bytes()
    port, rpc = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair])), f"127.0.0.1:{free_port()}"
    server.start()
    fuse.save_pretrained(tmp_path / "fuse")
    command = [Path(sys.executable).with_name("neuralfuse"), "serve", str(tmp_path / "fuse"), "--port", "0"]
    command += ["--upstream", address.partition("/v2")[0], "--certificate", str(tmp_path / "own.pem")]
    command += ["--key", str(tmp_path / "key.pem"), "--grpc-upstream", f"grpcs://127.0.0.1:{port}"]
    command += ["--grpc-port", rpc.rpartition(":")[2]]
    trusted = {name: str(tmp_path / "ca.pem") for name in ("SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")}
    gateway = subprocess.Popen(command, env={**os.environ, **trusted}, stderr=subprocess.PIPE, text=True)
    message = Message((WireTensor("image", "FP32", x.numpy()),))

    def over_http() -> httpx2.Response:
        home = said.split()[2].rstrip(",")
        return httpx2.post(
            f"{home}/v2/models/net/infer", content=encode(message, "inputs")[0], verify=known, timeout=60
        )

    def over_rpc() -> np.ndarray:
        with InferenceServerClient(rpc, ssl=True, root_certificates=str(tmp_path / "ca.pem")) as client:
            sent = InferInput("image", list(x.shape), "FP32")
            sent.set_data_from_numpy(x.numpy())
            return client.infer("net", [sent]).as_numpy("same")

    try:
        said = gateway.stderr.readline()
        gateway.stderr.readline()
        assert httpx2.get(f"{said.split()[2].rstrip(',')}/v2/health/live", verify=known, timeout=60).status_code == 200
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.submit(over_http), pool.submit(over_rpc)
            deadline = time.monotonic() + 60
            while not (web.seen and behind.seen):
                assert time.monotonic() < deadline and not first.done() and not second.done()
                time.sleep(0.05)
            gateway.send_signal(signal.SIGTERM)
            place = ("127.0.0.1", int(said.split()[2].rstrip(",").rpartition(":")[2]))
            while is_open(place):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with pytest.raises(InferenceServerException) as error:
                over_rpc()
            assert "UNAVAILABLE" in error.value.status()
            assert gateway.poll() is None
            gate.set()
            answer = first.result()
            assert np.allclose(second.result(), transformed(fuse, x).numpy(), atol=1e-5)
        out = decode(answer.content, int(answer.headers[HEADER]), "outputs")["out"].values
        assert np.allclose(out, transformed(fuse, x).mean((2, 3)).numpy(), atol=1e-5)
        assert gateway.wait(30) == 0
    finally:
        gateway.kill()
        gateway.wait()
        gateway.stderr.close()
        server.stop(0).wait()


def test_an_address_of_the_newer_kind_is_written_in_brackets():
    assert host_port("::1", 8011) == "[::1]:8011" and host_port("localhost", 1) == "localhost:1"


@given(
    datatype=st.sampled_from(["FP32", "INT8", "UINT64", "BOOL", "BYTES", "BF16", "FP16", "nothing", ""]),
    shape=st.lists(st.integers(-2, 5) | st.just(2**62), max_size=5) | st.just([1] * 70) | st.just([2**62] * 300),
    raw=st.lists(st.binary(max_size=40), max_size=2),
    numbers=st.lists(st.integers(-200, 200), max_size=6),
    names=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2),
)
@hypothesis_settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_any_message_is_read_or_refused(datatype, shape, raw, numbers, names):
    request = service_pb2.ModelInferRequest(raw_input_contents=raw)
    for name in names:
        one = request.inputs.add(name=name, datatype=datatype, shape=shape)
        one.contents.int_contents.extend(numbers)
        one.contents.fp32_contents.extend(numbers)
    try:
        message = decode_request(request)
    except WireError:
        return
    assert [one.shape for one in message.tensors] == [tuple(shape)] * len(names)
    before = request.SerializeToString(deterministic=True)
    for one in message.tensors:
        replace_tensor(request, WireTensor(one.name, one.datatype, one.values))
    if datatype != "BF16":
        assert request.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grpc_upstream": "127.0.0.1:8081"}, r"--grpc-upstream must be grpc\[s\]://HOST:PORT"),
        ({"grpc_upstream": "grpc://h:1", "grpc_port": 0}, r"grpc_port must be in 1\.\.65535"),
        ({"grpc_upstream": "grpc://h:1", "grpc_port": 8010}, "--port and --grpc-port must differ: got 8010 twice"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Settings(upstream="http://127.0.0.1:1", **options)


def test_a_port_that_is_taken_is_said(fuse, tmp_path, capsys):
    fuse.save_pretrained(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = ["serve", str(tmp_path), "--upstream", "http://127.0.0.1:9", "--port", "0"]
        command += ["--grpc-upstream", "grpc://127.0.0.1:9", "--grpc-port", port]
        fails(capsys, command, "must be free to listen on")
    assert run(["serve", "--help"]) == 0
    assert "--grpc-upstream" in capsys.readouterr().out
