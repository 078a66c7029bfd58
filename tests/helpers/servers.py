"""Inference servers that answer as a test wants them to, over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from neuralfuse.wire import HEADER, Message, WireTensor, decode, encode


class Server(BaseHTTPRequestHandler):
    """A served model as the protocol describes it; its answers come from `model`, its troubles from `troubles`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits until the head is acknowledged, 40 ms later
    model = staticmethod(lambda x: x.mean((2, 3)))
    datatype, binary = "FP32", True
    troubles: list[tuple[int, dict]]
    seen: list[dict]
    paths: list[str]

    def do_GET(self):
        if self.path == "/v2":
            self.answer({"name": "test", "extensions": ["binary_tensor_data"] if self.binary else []})
        elif self.path in ("/v2/models/net", "/v2/models/net/versions/2"):
            shape = {"shape": [-1, 3, 4, 4]}
            inputs = [{"name": "image", "datatype": self.datatype, **shape}]
            self.answer({"name": "net", "inputs": inputs, "outputs": [{"name": "out", "datatype": "FP32"}]})
        else:
            self.answer({"error": "no such model"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = self.headers.get(HEADER)
        self.seen.append(dict(self.headers))
        self.paths.append(self.path)
        if self.troubles:
            status, headers = self.troubles.pop(0)
            return self.answer({"error": "not now"}, status, headers)
        assert (length is not None) == self.binary
        image = decode(body, None if length is None else int(length), "inputs")["image"]
        assert image.datatype == self.datatype
        made = self.model(image.values.astype(np.float32))
        out = WireTensor("out", "INT64" if made.dtype == np.int64 else "FP32", made)
        data, size = encode(Message((out,), {"model_name": "net"}), "outputs", binary=self.binary)
        return self.answer(data, 200, {} if size is None else {HEADER: str(size)})

    def answer(self, value, status=200, headers=None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


class Listening(ThreadingHTTPServer):
    """Lets many connect at once."""

    request_queue_size = 64


@contextmanager
def listening(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    """Let a server answer on a thread as long as the block lasts."""
    thread = threading.Thread(target=server.serve_forever, args=[0.01])  # looks often whether it is to end
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
