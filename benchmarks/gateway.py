"""The gateway under load and in trouble, beside the server behind it alone: ``python benchmarks/gateway.py``.

Starts a server of the Open Inference Protocol (a tiny model behind uvicorn, or with --mlserver MLServer), the gateway
before it, and clients that send images as fast as they are answered, each its own. First: requests a second and
latency, the server alone and through the gateway in turn. Then, with the clients going on: the server is slow for a
while, stopped, killed, and started again, over and over. Every answer is compared with what it must be; memory is
watched. Prints a table; --out keeps the record. `--clients --trouble 3600`: an hour of trouble alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from timing import machine

from neuralfuse.config import QatConfig
from neuralfuse.data import load_data
from neuralfuse.files import write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets import load_base
from neuralfuse.pipeline import make_base
from neuralfuse.standin import INPUT, OUTPUT, write_settings
from neuralfuse.wire import HEADER, Message, WireTensor, decode, encode

UPSTREAM, GATEWAY = 18180, 18190
SERVER = """
import numpy as np, torch, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from neuralfuse.memory import deploy
from neuralfuse.nets import load_base
from neuralfuse.wire import HEADER, Message, WireTensor, decode, encode

model = load_base("{base}")
deployed = deploy(model.module, scheme=model.scheme, input_range=model.input_range)

async def infer(request):
    length = request.headers.get(HEADER)
    sent = decode(await request.body(), None if length is None else int(length), "inputs")
    with torch.inference_mode():
        logits = deployed(torch.from_numpy(np.array(sent["{input}"].values))).numpy()
    binary = length is not None
    body, size = encode(Message((WireTensor("{output}", "FP32", logits),)), "outputs", binary=binary)
    return Response(body, headers={{}} if size is None else {{HEADER: str(size)}})

async def about(request):
    return JSONResponse({{"name": "bench", "extensions": ["binary_tensor_data"]}})

async def ready(request):
    return JSONResponse({{}})

uvicorn.run(Starlette(routes=[
    Route("/v2", about), Route("/v2/health/ready", ready), Route("/v2/models/model/infer", infer, methods=["POST"]),
]), port={port}, log_level="warning")
"""


@dataclass
class Load:
    """What clients saw.

    Attributes:
        seconds: From the first request to the last answer.
        latencies: Of right answers.
        status: How many requests ended how; 0 for a lost connection, -1 for a wrong answer.
        longest: Seconds of the slowest request, however it ended.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    status: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0

    def record(self, images: int) -> dict[str, Any]:
        """Return it as JSON."""
        ordered = sorted(self.latencies)
        return {
            "requests_a_second": len(ordered) / self.seconds,
            "images_a_second": images * len(ordered) / self.seconds,
            "p50_ms": 1000 * ordered[len(ordered) // 2] if ordered else None,
            "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))] if ordered else None,
            "longest_seconds": self.longest,
            "status": {str(key): value for key, value in sorted(self.status.items())},
        }


async def drive(
    address: str, x: torch.Tensor, wanted: torch.Tensor, *, clients: int, seconds: float, binary: bool
) -> Load:
    """Send images from several clients for a while, from each its own: x and wanted have a row for each."""
    outputs = [{"name": OUTPUT, "parameters": {"binary_data": binary}}]
    load, began = Load(), time.perf_counter()

    async def client(http: httpx2.AsyncClient, own: int) -> None:
        message = Message((WireTensor(INPUT, "FP32", x[own].numpy()),), {"outputs": outputs})
        body, length = encode(message, "inputs", binary=binary)
        headers = {} if length is None else {HEADER: str(length)}
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            try:
                answer = await http.post(f"{address}/v2/models/model/infer", content=body, headers=headers)
                status = answer.status_code
            except httpx2.HTTPError:
                status = 0
            took = time.perf_counter() - start
            load.longest = max(load.longest, took)
            if status == 200:
                size = answer.headers.get(HEADER)
                made = decode(answer.content, None if size is None else int(size), "outputs")[OUTPUT].values
                status = 200 if np.allclose(made, wanted[own].numpy(), atol=1e-3) else -1
            if status == 200:
                load.latencies.append(took)
            load.status[status] += 1
            if status in (0, 502, 503, 504):
                await asyncio.sleep(0.05)

    async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=clients)) as http:
        await asyncio.gather(*(client(http, own) for own in range(clients)))
    load.seconds = time.perf_counter() - began
    return load


class Processes:
    """The server and the gateway."""

    def __init__(self, folder: Path, mlserver: Path | None, timeout: float) -> None:
        self.folder, self.mlserver = folder, mlserver
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for port in (UPSTREAM, GATEWAY):
            if taken(port):
                raise SystemExit(f"port {port} must be free: something listens there.")
        self.start_server()
        serve = [Path(sys.executable).with_name("neuralfuse"), "serve", folder / "fuse", "--port", str(GATEWAY)]
        command = [*serve, "--upstream", f"http://127.0.0.1:{UPSTREAM}", "--timeout", str(timeout), "--threads", "1"]
        self.gateway = subprocess.Popen(command, env=self.environment)
        self.wait(GATEWAY)

    def start_server(self) -> None:
        """Start the server behind, and wait until it is ready."""
        code = SERVER.format(base=self.folder / "base", input=INPUT, output=OUTPUT, port=UPSTREAM)
        command = (
            [sys.executable, "-c", code] if self.mlserver is None else [self.mlserver, "start", self.folder / "served"]
        )
        quiet = subprocess.DEVNULL
        self.server = subprocess.Popen(command, env=self.environment, stdout=quiet, stderr=quiet)
        self.wait(UPSTREAM)

    def wait(self, port: int) -> None:
        """Wait until a server is ready."""
        for _ in range(600):
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"no server on port {port}")

    def memory(self) -> float:
        """Return the gateway's resident memory in MiB."""
        text = Path(f"/proc/{self.gateway.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> None:
        """Stop both."""
        for process in (self.gateway, self.server):
            process.kill()
            process.wait()


def taken(port: int) -> bool:
    """Say whether something listens on a port."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


async def troubled(processes: Processes, load: Any, seconds: float) -> tuple[Load, list[float]]:
    """Slow, stop, continue, kill and start the server again while clients go on; watch the gateway's memory."""
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(processes.memory())
            await asyncio.sleep(max(1.0, seconds / 120))

    async def trouble() -> None:
        step = min(10.0, seconds / 10)
        while True:
            await asyncio.sleep(step)
            for _ in range(int(step / 0.5)):  # a fifth of its speed
                processes.server.send_signal(signal.SIGSTOP)
                await asyncio.sleep(0.4)
                processes.server.send_signal(signal.SIGCONT)
                await asyncio.sleep(0.1)
            processes.server.send_signal(signal.SIGSTOP)
            await asyncio.sleep(step)
            processes.server.send_signal(signal.SIGCONT)
            await asyncio.sleep(step)
            processes.server.kill()
            await asyncio.to_thread(processes.server.wait)
            await asyncio.sleep(step)
            await asyncio.to_thread(processes.start_server)

    beside = [asyncio.create_task(watch()), asyncio.create_task(trouble())]
    done = await load
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    return done, memory


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--trouble", type=float, default=80.0, help="seconds of trouble")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--images", type=int, default=8, help="of a request")
    parser.add_argument("--mlserver", type=Path, help="the program, in an environment that has neuralfuse too")
    parser.add_argument("--timeout", type=float, default=5.0, help="of the gateway")
    parser.add_argument("--out", type=Path, help="for the record")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = load_data("digits")
        make_base("resnet8", data, QatConfig(max_steps=60, batch=64), out=folder / "base", device=torch.device("cpu"))
        fuse = NeuralFuse("unets", channels=1, image_size=(8, 8), seed=1).eval()
        fuse.save_pretrained(folder / "fuse")
        write_settings(folder / "served", folder / "base", None, 0, port=UPSTREAM)
        model = load_base(folder / "base")
        base = deploy(model.module, scheme=model.scheme, input_range=model.input_range)
        most = max(options.clients, default=32)
        x = model.input_range.from_bytes(data.test.images[: most * options.images])
        with torch.inference_mode():
            made = base(x), base(fuse(x))
        x, plain, protected = (one.unflatten(0, (most, options.images)) for one in (x, *made))
        processes = Processes(folder, options.mlserver, options.timeout)
        stack.callback(processes.stop)
        ways = {"server alone": (UPSTREAM, plain), "through the gateway": (GATEWAY, protected)}
        rows = []
        print(
            f"{'':22}{'tensors':>8}{'clients':>9}{'requests/s':>12}{'images/s':>10}{'p50 ms':>9}{'p99 ms':>9}  status"
        )
        for binary in (True, False) if options.mlserver is None else (False,):
            for clients in options.clients:
                for name, (port, wanted) in ways.items():
                    load = drive(
                        f"http://127.0.0.1:{port}", x, wanted, clients=clients, seconds=options.seconds, binary=binary
                    )
                    row = asyncio.run(load).record(options.images)
                    rows.append({"way": name, "binary": binary, "clients": clients, **row})
                    kind = "binary" if binary else "JSON"
                    print(
                        f"{name:22}{kind:>8}{clients:9}{row['requests_a_second']:12.1f}{row['images_a_second']:10.0f}"
                        f"{row['p50_ms']:9.1f}{row['p99_ms']:9.1f}  {row['status']}"
                    )
        load = drive(
            f"http://127.0.0.1:{GATEWAY}", x, protected, clients=most, seconds=options.trouble,
            binary=options.mlserver is None,
        )  # fmt: skip
        done, memory = asyncio.run(troubled(processes, load, options.trouble))
        trouble = {"seconds": options.trouble, **done.record(options.images), "memory_mib": memory}
        print(f"in trouble, {options.trouble:g} s: {trouble['status']}, the slowest request {done.longest:.1f} s;")
        print(
            f"the gateway's memory: {memory[0]:.0f} MiB at first, {max(memory):.0f} at most, {memory[-1]:.0f} at last"
        )
        if options.out is not None:
            settings = {name: getattr(options, name) for name in ("seconds", "images", "timeout")}
            server = "uvicorn" if options.mlserver is None else "mlserver"
            record = {
                "schema": "neuralfuse/gateway-load/1",
                "server": server,
                **settings,
                "machine": machine(torch.device("cpu")),
            }
            write_json(options.out, {**record, "rows": rows, "trouble": trouble})


if __name__ == "__main__":
    main()
