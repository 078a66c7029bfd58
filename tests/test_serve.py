"""The gateway: images transformed, everything else untouched, and an error of the protocol for whatever goes wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from helpers import http
from helpers.cli import fails
from helpers.gateway import images, transformed
from helpers.servers import Server
from neuralfuse.blackbox import Served
from neuralfuse.cli.main import run
from neuralfuse.errors import ConfigError
from neuralfuse.export.apply import transform_any
from neuralfuse.fuse import NeuralFuse
from neuralfuse.serve import Settings
from neuralfuse.serve.batching import Batcher
from neuralfuse.serve.gateway import gateway
from neuralfuse.wire import HEADER, Message, WireTensor, decode, encode


@pytest.fixture
def fuse(gateway_fuse) -> NeuralFuse:
    return gateway_fuse


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "UINT8"])
def test_the_model_sees_transformed_images(upstream, put_before, fuse, binary, datatype):
    address, made = upstream(binary=binary, datatype=datatype)
    box = Served(f"{put_before(address)}/v2/models/net")
    assert box.binary  # the gateway takes binary tensors, whatever is behind it
    x = images(5)
    got = box.ask(x.numpy())
    box.close()
    wanted = transformed(fuse, x)
    assert float((wanted - x).abs().mean()) > 0.05
    if datatype == "UINT8":
        wanted = transform_any(fuse, ((x + 1) * 127.5).round().byte()).float()
    assert np.allclose(got, wanted.mean((2, 3)).numpy(), atol=1e-5 if datatype != "UINT8" else 0.2)
    assert (HEADER.lower() in {name.lower() for name in made.seen[-1]}) == binary


def test_a_client_that_writes_json_gets_json(upstream, put_before, fuse):
    for binary in (True, False):
        address, _ = upstream(binary=binary)
        x = images(2)
        body, _ = encode(Message((WireTensor("image", "FP32", x.numpy()),), {"id": "a"}), "inputs")
        for packed, headers in (
            (body, {}),
            (gzip.compress(body), {"Content-Encoding": "gzip"}),
            (zlib.compress(body), {"Content-Encoding": "deflate"}),
        ):
            answer = http.post(f"{put_before(address)}/v2/models/net/versions/2/infer", content=packed, headers=headers)
            assert answer.status_code == 200
            if not binary:
                values = decode(answer.content, None, "outputs")["out"].values
                assert np.allclose(values, transformed(fuse, x).mean((2, 3)).numpy(), atol=1e-5)


class Other(Server):
    """Says what it was asked."""

    def do_GET(self):
        if self.path.startswith("/v2/repository"):
            return self.answer({"path": self.path, "token": self.headers.get("Authorization")}, 202, {"X-Own": "yes"})
        return super().do_GET()

    def do_POST(self):
        if "/models/net/" in self.path:
            return super().do_POST()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        return self.answer(body, 200, {"X-Path": self.path, "X-Header": self.headers.get(HEADER, "")})


def test_everything_else_passes_untouched(upstream, put_before):
    address, _ = upstream(Other)
    home = put_before(address, models=("net",))
    answer = http.get(f"{home}/v2/repository/a%20b?x=1&y=%2F", headers={"Authorization": "Bearer mine"})
    assert (answer.status_code, answer.headers["X-Own"]) == (202, "yes")
    assert answer.json() == {"path": "/v2/repository/a%20b?x=1&y=%2F", "token": "Bearer mine"}
    answer = http.post(f"{home}/v2/models/other/infer", content=b"\0any", headers={HEADER: "1"})
    assert answer.content == b"\0any" and answer.headers["X-Path"] == "/v2/models/other/infer"
    assert answer.headers["X-Header"] == "1"
    assert http.get(f"{home}/v2/models/nothing").status_code == 404
    assert http.get(f"{home}/v2/models/net").json()["inputs"][0]["name"] == "image"
    for path in ("models/net/infer/", "models/net/generate", "models/net/infer_stream", "models/%6eet//infer"):
        assert http.post(f"{home}/v2/{path}", content=b"{}").status_code == 501, path
    assert http.post(f"{home}/v1/models/net:predict", content=b"{}").status_code == 501
    assert http.post(f"{home}/v2/repository/index", content=b"{}").headers["X-Path"] == "/v2/repository/index"
    assert http.get(f"{home}/v2/health/live").status_code == 200


def raw_request(home: str, head: bytes, body: bytes = b"") -> bytes:
    """Send what no HTTP client would, and return the whole answer."""
    host, port = home.removeprefix("http://").split(":")
    lines = head + b"\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(lines + body)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_no_path_leads_elsewhere(upstream, put_before):
    address, made = upstream(Other)
    elsewhere, other = upstream(Other)
    home, port = put_before(address), elsewhere.rpartition(":")[2].partition("/")[0].encode()
    for path in (
        b"%2F@127.0.0.1:" + port + b"/v2", b"@127.0.0.1:" + port + b"/v2", b"/v2/../v2", b"/v2/%2e%2e/v2", b"/v2/./x",
        b"/v2/x%2F..%2Fy", b"/..\\v2", b"//127.0.0.1:" + port + b"/v2/repository/x",
    ):  # fmt: skip
        answer = raw_request(home, b"GET " + path + b" HTTP/1.1")
        assert answer.split()[1] in (b"400", b"404"), (path, answer)
    for path in (b"/v2/models/net/infer/.", b"/v2/models/net/infer/x/..", b"/v2/models/net/x/../infer"):
        answer = raw_request(home, b"POST " + path + b" HTTP/1.1", body_of(images(1).numpy()))
        assert answer.split()[1] in (b"400", b"501"), (path, answer)
    assert not made.seen and not other.seen


class Cookies(Other):
    """Gives every client a cookie, and says which it sent."""

    def do_GET(self):
        body = json.dumps({"cookie": self.headers.get("Cookie"), "x": self.headers.get_all("X-A")}).encode()
        self.send_response(200)
        for name, value in (("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2"), ("X-Own", "\xe9")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()


HEADERS_OF_MANY = [(b"X-A", b"1"), (b"X-A", b"2"), (b"Cookie", b"own=1"), (b"X-B", b"\xe9")]


def test_headers_pass_as_often_as_they_come_and_cookies_to_whom_they_are_for(upstream, put_before):
    address, _ = upstream(Cookies)
    home = put_before(address)
    answer = http.get(f"{home}/x", headers=HEADERS_OF_MANY)
    assert answer.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2"]
    assert answer.json() == {"cookie": "own=1", "x": ["1", "2"]}
    assert answer.headers["x-own"] == "\xe9" and len(answer.headers.get_list("date")) == 1
    assert http.get(f"{home}/x").json()["cookie"] is None
    head = http.head(f"{home}/x")
    assert int(head.headers["content-length"]) == len(http.get(f"{home}/x").content)


def test_what_json_would_change_is_refused(upstream, fuse):
    mask = WireTensor("mask", "FP32", np.array([0, -np.inf], dtype=np.float32))
    words = WireTensor("words", "BYTES", np.array([b"\xff\xd8"], dtype=object))
    halves = WireTensor("halves", "BF16", np.array([1, 2], dtype=np.uint16))
    image = WireTensor("image", "FP32", images(1).numpy())
    for other in (mask, words, halves):
        body, size = encode(Message((image, other)), "inputs", binary=True)
        for binary in (True, False):
            address, made = upstream(binary=binary)
            app = gateway(fuse, Settings(upstream=address.partition("/v2")[0]))
            with TestClient(app) as client:
                answer = client.post("/v2/models/net/infer?key=1", content=body, headers={HEADER: str(size)})
                assert answer.status_code == (200 if binary else 400), answer.text
                assert made.paths == (["/v2/models/net/infer?key=1"] if binary else [])


def body_of(x, name="image", datatype="FP32", **other) -> bytes:
    return encode(Message((WireTensor(name, datatype, np.asarray(x)),), other), "inputs")[0]


BAD = {
    "json": (b"{", 400, "must be JSON"),
    "shape": (body_of(np.zeros((2, 3, 5, 5), np.float32)), 400, "must have one input of shape"),
    "no images": (body_of(np.zeros((0, 3, 4, 4), np.float32)), 400, "must have shape"),
    "rank": (body_of(np.zeros((3, 4, 4), np.float32)), 400, "must have one input of shape"),
    "type": (body_of(np.zeros((2, 3, 4, 4), np.int32), datatype="INT32"), 400, "must be of FP32"),
    "range": (body_of(np.full((2, 3, 4, 4), 7.0, np.float32)), 400, "Pixels in 0..255 must be stored as uint8"),
    "nan": (body_of(np.full((2, 3, 4, 4), np.nan, np.float32)), 400, "values must be model inputs"),
    "outputs": (body_of(np.zeros((1, 3, 4, 4), np.float32), outputs=[1]), 400, "outputs must be a list"),
    "large": (b" " * 20_001, 413, "at most 20000 bytes"),
}


@pytest.mark.parametrize("which", list(BAD))
def test_what_is_wrong_is_said(upstream, fuse, which):
    address, made = upstream()
    body, status, message = BAD[which]
    app = gateway(fuse, Settings(upstream=address.partition("/v2")[0], max_body=20_000))
    with TestClient(app) as client:
        answer = client.post("/v2/models/net/infer", content=body)
        assert answer.status_code == status and message in answer.json()["error"]
        assert not made.seen


def test_packed_bodies_that_are_none(upstream, fuse):
    address, _ = upstream()
    app = gateway(fuse, Settings(upstream=address.partition("/v2")[0], max_body=20_000))
    bomb = gzip.compress(b" " * 10_000_000)
    with TestClient(app) as client:
        for body, packed, status in (
            (bomb, "gzip", 413),
            (gzip.compress(b"{}") * 2, "gzip", 400),
            (gzip.compress(b"{}") + b"0" * 30_000, "gzip", 413),
            (gzip.compress(b"{}")[:12], "gzip", 400),
            (b"no", "gzip", 400),
            (b"{}", "br", 415),
            (b"", "gzip", 400),
        ):
            answer = client.post("/v2/models/net/infer", content=body, headers={"Content-Encoding": packed})
            assert answer.status_code == status, packed
        for header in ("-1", "x", "9" * 20, "5"):
            answer = client.post("/v2/models/net/infer", content=b"{}", headers={HEADER: header})
            assert answer.status_code == 400 and HEADER in answer.json()["error"]


def test_a_server_that_fails_is_told_of(upstream, fuse):
    body = body_of(images(1).numpy())
    with TestClient(gateway(fuse, Settings(upstream="http://127.0.0.1:1"))) as client:
        answer = client.post("/v2/models/net/infer", content=body)
        assert answer.status_code == 502 and "must be reachable" in answer.json()["error"]
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
    address, made = upstream(troubles=[(500, {}), (429, {"Retry-After": "7"})])
    with TestClient(gateway(fuse, Settings(upstream=address.partition("/v2")[0]))) as client:
        assert client.post("/v2/models/net/infer", content=body).status_code == 500
        answer = client.post("/v2/models/net/infer", content=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert len(made.seen) == 2  # nothing is asked twice
    slow = staticmethod(lambda x: time.sleep(2) or x.mean((2, 3)))
    address, _ = upstream(model=slow)
    with TestClient(gateway(fuse, Settings(upstream=address.partition("/v2")[0], timeout=0.3))) as client:
        answer = client.post("/v2/models/net/infer", content=body)
        assert answer.status_code == 504 and "within 0.3 seconds" in answer.json()["error"]
    address, _ = upstream(binary=False, model=staticmethod(lambda x: x.mean((2, 3)).astype("<f4")))
    wants = {"outputs": [{"name": "out", "parameters": {"binary_data": True}}]}
    with TestClient(gateway(fuse, Settings(upstream=address.partition("/v2")[0]))) as client:
        answer = client.post("/v2/models/net/infer", content=body_of(images(1).numpy(), **wants))
        assert decode(answer.content, int(answer.headers[HEADER]), "outputs")["out"].values.shape == (1, 3)


def test_only_who_has_the_token_is_served(upstream, fuse):
    address, made = upstream()
    options = {"token": "open", "upstream_token": "behind"}
    with TestClient(gateway(fuse, Settings(upstream=address.partition("/v2")[0], **options))) as client:
        body = body_of(images(1).numpy())
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "open"}):
            answer = client.post("/v2/models/net/infer", content=body, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert client.get("/metrics", headers=headers).status_code == 401
        assert not made.seen
        right = {"Authorization": "Bearer open"}
        assert client.post("/v2/models/net/infer", content=body, headers=right).status_code == 200
        assert made.seen[0]["authorization"] == "Bearer behind"
        assert client.get("/v2/health/live").status_code == 200


def test_more_requests_than_allowed_are_turned_away_and_the_rest_answered(upstream, put_before):
    gate = threading.Event()
    address, _ = upstream(model=staticmethod(lambda x: gate.wait(20) and x.mean((2, 3))))
    home, body = put_before(address, in_flight=3), body_of(images(1).numpy())
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(http.post, f"{home}/v2/models/net/infer", content=body, timeout=30) for _ in range(3)]
        deadline = time.monotonic() + 20
        while "requests_in_flight 3.0" not in _metrics(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        answer = http.post(f"{home}/v2/models/net/infer", content=body)
        gate.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    text = _metrics(home)
    assert 'neuralfuse_requests_total{kind="infer",status="200"} 3.0' in text
    assert 'neuralfuse_requests_total{kind="infer",status="503"} 1.0' in text
    assert "neuralfuse_images_total 3.0" in text


def _metrics(home: str) -> str:
    return http.get(f"{home}/metrics").text


def test_questions_whether_the_server_is_ready_leave_room_for_others(put_before):
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(4) as pool:
        ready = f"{put_before(f'http://127.0.0.1:{silent.getsockname()[1]}')}/v2/health/ready"
        first = [pool.submit(http.get, ready, timeout=60) for _ in range(4)]
        asked = [silent.accept()[0] for _ in first]
        answer = http.get(ready, timeout=60)
        assert answer.status_code == 503 and "readiness checks are in flight already" in answer.json()["error"]
        for one in asked:
            one.recv(1, socket.MSG_PEEK)  # its question is there
            one.close()
        assert all(one.result().status_code == 503 and "reachable" in one.result().json()["error"] for one in first)


def test_requests_that_come_together_are_transformed_together():
    sizes, release = [], threading.Event()

    def double(x: torch.Tensor) -> torch.Tensor:
        release.wait(10)
        return x * 2

    async def main() -> list[torch.Tensor]:
        batcher = Batcher(double, max_batch=4, max_wait=0.05, on_batch=sizes.append)
        batcher.start()
        parts = [torch.full((size, 1, 1, 1), float(number)) for number, size in enumerate((1, 2, 2, 1, 6, 1))]
        jobs = [asyncio.create_task(batcher(part)) for part in parts]
        jobs.append(asyncio.create_task(batcher(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))))
        await asyncio.sleep(0.2)
        release.set()
        made = await asyncio.gather(*jobs)
        await batcher.stop()
        assert all(torch.equal(one, part * 2) for one, part in zip(made, parts, strict=False))
        assert made[-1].dtype == torch.uint8
        return made

    asyncio.run(main())
    assert sizes == [3, 3, 4, 1, 1, 2]  # the rest of what is too many comes after what came meanwhile


def test_a_request_waits_for_others_only_while_there_are_any():
    sizes, image = [], torch.zeros(1, 1, 1, 1)

    async def main() -> None:
        batcher = Batcher(lambda x: x, max_batch=9, max_wait=60.0, on_batch=sizes.append)
        batcher.start()
        await asyncio.wait_for(batcher(image), 30)  # there is no other
        with batcher.announce() as second, batcher.announce() as third:
            first = asyncio.create_task(batcher(image))
            await asyncio.sleep(0.05)
            assert not first.done()
            await asyncio.wait_for(asyncio.gather(first, second(image), third(image)), 30)
        with pytest.raises(ValueError, match="broken"), batcher.announce():
            raise ValueError("broken")
        await asyncio.wait_for(batcher(image), 30)
        await batcher.stop()

    asyncio.run(main())
    assert sizes == [1, 3, 1]


def test_a_batch_that_fails_fails_those_in_it_alone():
    def picky(x: torch.Tensor) -> torch.Tensor:
        if float(x.max()) > 1:
            raise ValueError("too much")
        return x

    async def main() -> None:
        batcher, pair = Batcher(picky, max_batch=1, max_wait=0.0), Batcher(picky, max_batch=2, max_wait=0.05)
        batcher.start()
        pair.start()
        good, bad = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
        found = await asyncio.gather(batcher(good), batcher(bad), batcher(good), return_exceptions=True)
        assert torch.equal(found[0], good) and torch.equal(found[2], good)
        assert isinstance(found[1], ValueError)
        uneven = await asyncio.gather(
            pair(torch.zeros(1, 1, 1, 1)), pair(torch.zeros(1, 1, 2, 2)), return_exceptions=True
        )
        assert all(isinstance(one, RuntimeError) for one in uneven)
        assert torch.equal(await pair(good), good)
        await pair.stop()
        waits = Batcher(picky, max_batch=9, max_wait=60.0)
        waits.start()
        with waits.announce():
            waiting = asyncio.create_task(waits(good))
            await asyncio.sleep(0.05)
            await waits.stop()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gone = asyncio.create_task(batcher(good))
        await asyncio.sleep(0)
        gone.cancel()
        assert torch.equal(await batcher(good), good)
        await batcher.stop()

    asyncio.run(main())


def test_many_at_once_get_each_its_own_answer(upstream, put_before, fuse, monkeypatch):
    free = threading.Event()

    def held(*given):
        free.wait(20)
        return transform_any(*given)

    monkeypatch.setattr(sys.modules["neuralfuse.serve.gateway"], "transform_any", held)
    home = put_before(upstream()[0])
    sent = [images(1 + number % 3, seed=number) for number in range(20)]

    def ask(x: torch.Tensor) -> np.ndarray:
        answer = http.post(f"{home}/v2/models/net/infer", content=body_of(x.numpy()), timeout=30)
        assert answer.status_code == 200, answer.text
        return decode(answer.content, int(answer.headers[HEADER]), "outputs")["out"].values

    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(ask, x) for x in sent]
        deadline = time.monotonic() + 20
        while "requests_in_flight 20.0" not in _metrics(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        free.set()
        got = [one.result() for one in waiting]
    for x, answer in zip(sent, got, strict=True):
        assert np.allclose(answer, transformed(fuse, x).mean((2, 3)).numpy(), atol=1e-5)
    text = _metrics(home)
    assert f"neuralfuse_batch_images_sum {sum(map(len, sent))}.0" in text
    assert float(text.partition("neuralfuse_batch_images_count ")[2].split()[0]) < 20  # they shared passes


def test_a_large_request_neither_holds_up_others_nor_lasts_for_ever(upstream, put_before, monkeypatch):
    def slow(*given):
        time.sleep(0.05)
        return transform_any(*given)

    monkeypatch.setattr(sys.modules["neuralfuse.serve.gateway"], "transform_any", slow)
    home = put_before(upstream()[0], max_batch=1, timeout=1.5)
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(http.post, f"{home}/v2/models/net/infer", content=body_of(images(99).numpy()), timeout=30)
        while "requests_in_flight 1.0" not in _metrics(home):
            assert not large.done()
            time.sleep(0.05)
        assert http.post(f"{home}/v2/models/net/infer", content=body_of(images(1).numpy())).status_code == 200
        assert not large.done()
        answer = large.result()
    assert answer.status_code == 503 and "transformed within 1.5 seconds" in answer.json()["error"]
    counted = float(_metrics(home).partition("neuralfuse_batch_images_count ")[2].split()[0])
    time.sleep(0.3)
    later = float(_metrics(home).partition("neuralfuse_batch_images_count ")[2].split()[0])
    assert later <= counted + 1 < 99  # nobody waits for the rest: it is not made


def test_methods_that_there_are_not_are_refused_in_the_protocol_s_words(put_before):
    home = put_before("http://127.0.0.1:1")
    for method in ("TRACE", "PROPFIND"):
        answer = http.request(method, f"{home}/v2/models/net/infer")
        assert answer.status_code == 405 and method in answer.json()["error"] and "POST" in answer.headers["allow"]
    assert 'neuralfuse_requests_total{kind="other",status="405"} 2.0' in _metrics(home)


def test_whoever_says_nothing_is_not_waited_for(put_before, monkeypatch):
    monkeypatch.setattr("neuralfuse.serve.run._HEAD", 0.8)
    host, port = put_before("http://127.0.0.1:1").removeprefix("http://").split(":")
    whole = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    def asked(connection: socket.socket) -> bytes:
        connection.sendall(whole)
        got = b""
        while not got.endswith(b"{}") and (part := connection.recv(65536)):
            got += part
        return got

    with ExitStack() as stack:
        resting, *silent = (
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(4)
        )
        assert b"200 OK" in asked(resting)
        assert b"200 OK" in asked(silent[0])
        for connection, said in zip(silent, (whole[:20], b"", whole[:20]), strict=True):
            connection.sendall(said)
        rested = time.monotonic()
        assert all(connection.recv(65536) == b"" for connection in silent)
        time.sleep(max(0, rested + 1.1 - time.monotonic()))
        assert b"200 OK" in asked(resting)  # it may rest between requests


def test_reading_is_tried_again_where_a_connection_had_been_closed(put_before):
    with socket.create_server(("127.0.0.1", 0)) as behind, ThreadPoolExecutor(1) as pool:
        behind.settimeout(20)

        def answer_once() -> int:
            for number in range(2):
                connection, _ = behind.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    if number == 0:
                        connection.recv(65536)  # the next request: it gets no answer
            return number

        served = pool.submit(answer_once)
        home = put_before(f"http://127.0.0.1:{behind.getsockname()[1]}")
        assert [http.get(f"{home}/v2/models/net").status_code for _ in range(2)] == [200, 200]
        assert served.result() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upstream": "localhost:8080"}, "--upstream must be a server's address"),
        ({"upstream": "http://host/v2"}, "must be the address before /v2"),
        ({"upstream": "http://host/v2/models/net"}, "must be the address before /v2"),
        ({"port": 70000}, r"port must be in 0\.\.65535"),
        ({"max_batch": 0}, "max_batch must be at least 1"),
        ({"in_flight": 0}, "in_flight must be at least 1"),
        ({"timeout": 0.0}, "timeout must be in"),
        ({"timeout": float("inf")}, "timeout must be in"),
        ({"upstream": "http://[::1"}, "--upstream must be a server's address"),
        ({"upstream": "http://host:abc"}, "--upstream must be a server's address"),
        ({"max_wait": -1.0}, "max_wait must be in"),
        ({"certificate": "a.pem"}, "must come together"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**{"upstream": "http://host:1", **options})
    assert Settings(upstream="http://host:1").host == "127.0.0.1"


def test_certificates_that_are_not_there_are_said(fuse, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    gateway(fuse, Settings(upstream="http://host:1"))  # it needs none
    with pytest.raises(ConfigError, match="SSL_CERT_FILE and SSL_CERT_DIR must name PEM certificates"):
        gateway(fuse, Settings(upstream="https://host:1"))


def test_serve_says_what_hinders_it(fuse, tmp_path, capsys, monkeypatch):
    fuse.save_pretrained(tmp_path / "fuse")
    command = ["serve", str(tmp_path / "fuse"), "--upstream", "http://127.0.0.1:1"]
    fails(capsys, [*command, "--host", "192.0.2.1"], "--host and --port must be free to listen on")
    pem = tmp_path / "no.pem"
    pem.write_text("nothing")
    fails(capsys, [*command, "--certificate", str(pem), "--key", str(pem)], "must be a matching pair of PEM files")
    fails(capsys, [*command, "--in-flight", "0"], "in_flight must be at least 1: got in_flight=0")
    fails(capsys, command[:2], "--upstream")
    fails(capsys, [*command, "--token", "secret"], "--token")
    monkeypatch.setenv("NEURALFUSE_TOKEN", "two words")
    fails(capsys, command, "NEURALFUSE_TOKEN must be printable ASCII")


def test_serve_takes_every_setting_but_the_tokens(fuse, tmp_path, monkeypatch):
    fuse.save_pretrained(tmp_path)
    served = []
    monkeypatch.setattr("neuralfuse.serve.run.serve", lambda module, settings, say: served.append(settings))
    monkeypatch.setenv("NEURALFUSE_TOKEN", "mine")
    monkeypatch.delenv("NEURALFUSE_UPSTREAM_TOKEN", raising=False)
    options = "--upstream http://h:1 --model a --model b --input-name x --layout nhwc --host ::1 --port 1 --max-batch 2"
    options += " --max-wait .5 --in-flight 3 --timeout 4 --max-body 5 --certificate c --key k"
    options += " --grpc-upstream grpc://h:2 --grpc-port 6"
    assert run(["serve", str(tmp_path), *options.split()]) == 0
    wanted = Settings(
        upstream="http://h:1", models=("a", "b"), input_name="x", layout="nhwc", host="::1", port=1, max_batch=2,
        max_wait=0.5, in_flight=3, timeout=4.0, max_body=5, token="mine", certificate=Path("c"), key=Path("k"),
        grpc_upstream="grpc://h:2", grpc_port=6,
    )  # fmt: skip
    assert served == [wanted] and "mine" not in repr(wanted)


MOST = 4000
"""Bytes of a body."""
ODD = st.sampled_from([None, "x", "", -1, 0, 3.5, True, [], {}, [[1]], "FP16", "BYTES", [1, 3, 4, -4], [48], 10**30])


@st.composite
def requests(draw):
    """Body, headers and path of a request that is right (the fourth says so), or was right before one thing changed."""
    number, datatype = draw(st.integers(1, 3)), draw(st.sampled_from(["FP32", "FP64", "UINT8"]))
    x = images(number, seed=draw(st.integers(0, 99)))
    values = {"FP32": x, "FP64": x.double(), "UINT8": ((x + 1) * 127.5).round().byte()}[datatype].numpy()
    more = [WireTensor("other", "INT32", np.arange(3, dtype=np.int32))] * draw(st.integers(0, 1))
    wishes = [None, [], [{"name": "out"}], [{"name": "out", "parameters": {"binary_data": True}}]]
    outputs = draw(st.sampled_from(wishes))
    message = Message((WireTensor("image", datatype, values), *more), {} if outputs is None else {"outputs": outputs})
    body, size = encode(message, "inputs", binary=draw(st.booleans()))
    path, headers = "/v2/models/net/infer", {} if size is None else {HEADER: str(size)}
    change = draw(st.sampled_from(["", "field", "bytes", "header", "packed", "claim", "large", "path", "noise"]))
    place = draw(st.integers(0, len(body) - 1))
    if change == "field":
        value, rest = json.loads(body[:size]), b"" if size is None else body[size:]
        where = draw(
            st.sampled_from([value, *value["inputs"], *[one for one in value["inputs"] if "parameters" in one]])
        )
        name = draw(st.sampled_from([*where, "outputs", "parameters", "data"]))
        if draw(st.booleans()):
            where[name] = draw(ODD)
        else:
            where.pop(name, None)
        head = json.dumps(value).encode()
        body, headers = head + rest, {} if size is None else {HEADER: str(len(head))}
    elif change == "bytes":
        body = draw(st.sampled_from([
            body[:place], body + b"\0", body[:place] + b"\xff" + body[place + 1 :], body[:place] + body[place + 1 :],
        ]))  # fmt: skip
    elif change == "header":
        headers = {HEADER: draw(st.sampled_from(["0", "10", "-1", "a", "99999", str(place), "9" * 30]))}
    elif change == "packed":
        packed = draw(st.sampled_from(["gzip", "deflate", "identity"]))
        body = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[packed](body)
        headers["Content-Encoding"] = packed
    elif change == "claim":
        headers["Content-Encoding"] = draw(st.sampled_from(["gzip", "deflate", "br", "zstd"]))
    elif change == "large":
        body += b" " * MOST
        if draw(st.booleans()):
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    elif change == "path":
        path = draw(st.sampled_from([f"{path}/", "/v2/models/net/generate", "/v2/models/net/versions/1/infer"]))
    elif change == "noise":
        body = draw(st.binary(max_size=100))
    return body, headers, path, change in ("", "packed") or path.endswith("1/infer")


def drive(client: httpx2.Client, fuse: NeuralFuse, request) -> int:
    """Send one; whatever the gateway says, it must be right."""
    body, headers, path, right = request
    answer = client.post(path, content=body, headers=headers)
    assert answer.status_code in (200, 400, 413, 415, 501), answer.text
    assert answer.status_code == 200 or not right, answer.text
    if answer.status_code != 200:
        assert set(answer.json()) == {"error"} and len(answer.json()["error"]) > 5
        return answer.status_code
    packed, size, made = headers.get("Content-Encoding"), headers.get(HEADER), answer.headers.get(HEADER)
    whole = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(packed, bytes)(body)
    sent = decode(whole, None if size is None else int(size), "inputs").tensors
    shown = next(one for one in sent if one.shape[1:] == (3, 4, 4))
    kind = np.uint8 if shown.datatype == "UINT8" else np.float32
    x = torch.from_numpy(np.array(shown.values, dtype=kind))
    wanted = transform_any(fuse, x).float().mean((2, 3)).numpy()
    out = decode(answer.content, None if made is None else int(made), "outputs")["out"].values
    assert np.allclose(out, wanted, atol=1e-2 if shown.datatype == "UINT8" else 1e-4)
    return 200


def fuzzed(upstream, put_before, fuse, count: int) -> Counter[int]:
    """Send so many, half of them before a server that knows JSON alone; return how they ended."""
    ends: Counter[int] = Counter()
    for binary in (True, False):
        address, _ = upstream(Anything, binary=binary)
        with httpx2.Client(
            base_url=put_before(address, max_body=MOST, max_wait=0.0), timeout=30, verify=False
        ) as client:

            @settings(max_examples=count // 2, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(request=requests())
            def one(request):
                ends[drive(client, fuse, request)] += 1

            one()
            good = client.post("/v2/models/net/infer", content=body_of(images(1).numpy()))
            assert good.status_code == 200
    return ends


class Anything(Server):
    """Takes images of any type, as JSON or as bytes."""

    def do_POST(self):
        body, size = self.rfile.read(int(self.headers["Content-Length"])), self.headers.get(HEADER)
        assert size is None or self.binary
        request = decode(body, None if size is None else int(size), "inputs")
        image = next(one for one in request.tensors if one.shape[1:] == (3, 4, 4))
        out = WireTensor("out", "FP32", image.values.astype(np.float32).mean((2, 3)))
        data, size = encode(Message((out,)), "outputs", binary=self.binary and b'"binary_data":true' in body)
        return self.answer(data, 200, {} if size is None else {HEADER: str(size)})


def test_whatever_is_sent_gets_an_answer_of_the_protocol(upstream, put_before, fuse):
    assert set(fuzzed(upstream, put_before, fuse, 120)) > {200, 400}


@pytest.mark.slow
def test_ten_thousand_requests_that_may_be_malformed(upstream, put_before, fuse):
    ends = fuzzed(upstream, put_before, fuse, 10_000)
    assert ends[200] > 1000 and ends[400] > 2000 and min(ends[413], ends[415], ends[501]) > 100, ends
