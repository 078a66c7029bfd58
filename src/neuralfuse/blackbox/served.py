"""A model behind a server that speaks the Open Inference Protocol (KServe v2, Triton) over HTTP."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralfuse.blackbox.boxes import SENT, Layout, Named, rows
from neuralfuse.errors import AnswerError, BusyError, MissingExtraError, NeuralFuseError, require
from neuralfuse.ranges import InputRange
from neuralfuse.wire import HEADER, Message, WireError, WireTensor, decode, encode

BINARY = "binary_tensor_data"
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_NOT_SAID = {401, 403, 404, 405, 501}  # it does not say whether it is ready
_ADDRESS = re.compile(r"(https?://.+?)/v2/models/([^/]+)(/versions/[^/]+)?/?")


class Served(Named):
    """A served model.

    Args:
        address: ``http(s)://HOST[:PORT][/PATH]/v2/models/NAME[/versions/VERSION]``.
        input_name: Of the images, where the model has several inputs.
        output_name: Of the answers, where the model has several outputs.
        token: Sent as a bearer token.
        timeout: Seconds for one request.
        input_range: What the model's inputs are made of, for a server that takes pixels (UINT8): they are sent as the
            nearest of 256 levels.
        layout: Order of the images' axes.

    Raises:
        AnswerError: the address is none, or the server knows no such model.
        BusyError: the server cannot be reached, or is not ready.
    """

    def __init__(
        self,
        address: str,
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        token: str | None = None,
        timeout: float = 60.0,
        input_range: InputRange | None = None,
        layout: Layout = "nchw",
    ) -> None:
        try:
            import httpx2  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError("a served model needs httpx2: pip install 'neuralfuse[serve]'.") from error
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise AnswerError(f"a served model must have an address http://HOST:PORT/v2/models/NAME: got {address}.")
        require(0 < timeout <= 86400, f"timeout must be in 0..86400 seconds: got timeout={timeout}.")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.name, self.root = address.rstrip("/"), found[1]
        self.input_range, self.layout = input_range or InputRange(), layout
        self._unreachable: type[Exception] = httpx2.HTTPError
        self._illegal: type[Exception] = httpx2.InvalidURL
        self._client = httpx2.Client(headers=headers, timeout=timeout)
        try:
            self._get_to_know(input_name, output_name)
        except NeuralFuseError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _get_to_know(self, input_name: str | None, output_name: str | None) -> None:
        about = self._json(self._described_by_server())
        self.input_name, self.datatype = self._described(about, "inputs", input_name)
        self.output_name, _ = self._described(about, "outputs", output_name)
        if self.datatype not in SENT:
            raise AnswerError(f"{self.name} must take {', '.join(SENT)}: {self.input_name} is {self.datatype}.")
        server = self._json(self._send("GET", f"{self.root}/v2"))
        self.binary = BINARY in (server.get("extensions") or [])

    def _described_by_server(self) -> Any:
        """Return the model's metadata; a server that is not ready may not know its models yet."""
        try:
            return self._send("GET", self.name)
        except AnswerError:
            self._check_ready()
            raise

    def _check_ready(self) -> None:
        """Raise a `BusyError` where the server says that it, or the model, is not ready: by a status of any kind."""
        for address in (f"{self.root}/v2/health/ready", f"{self.name}/ready"):
            try:
                status = self._client.get(address).status_code
            except self._illegal:
                return
            except self._unreachable as error:
                raise BusyError(f"{self.root} must be reachable: {error or type(error).__name__}.") from error
            if status >= 400 and status not in _NOT_SAID:
                raise BusyError(f"{address} must say that it is ready: got {status}.")

    def ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """See `Box`."""
        wanted: dict[str, Any] = {"name": self.output_name}
        if self.binary:
            wanted["parameters"] = {"binary_data": True}
        message = Message((WireTensor(self.input_name, self.datatype, self.sent(x)),), {"outputs": [wanted]})
        body, length = encode(message, "inputs", binary=self.binary)
        headers = {"Content-Type": "application/json" if length is None else "application/octet-stream"}
        if length is not None:
            headers[HEADER] = str(length)
        try:
            answer = self._send("POST", f"{self.name}/infer", content=body, headers=headers)
        except AnswerError:
            self._check_ready()
            raise
        try:
            size = answer.headers.get(HEADER)
            made = decode(answer.content, None if size is None else int(size), "outputs")
            values = made[self.output_name].values
        except (WireError, StopIteration, ValueError) as error:
            raise AnswerError(f"{self.name} must answer in the protocol: {error}.") from error
        return rows(values, len(x), self.name)

    def _described(self, about: dict[str, Any], key: str, wanted: str | None) -> tuple[str, str]:
        known = {one.get("name"): one.get("datatype") for one in about.get(key) or [] if isinstance(one, dict)}
        if wanted is None and len(known) == 1:
            wanted = next(iter(known))
        if wanted is None or (known and wanted not in known):
            one = f"--{key[:-1]}-name must be one of the {key} of {self.name}"
            raise AnswerError(f"{one}: {', '.join(map(str, known)) or 'its metadata names none'}. Got {wanted}.")
        return wanted, str(known.get(wanted, "FP32"))

    def _send(self, method: str, address: str, **options: Any) -> Any:
        try:
            answer = self._client.request(method, address, **options)
        except self._illegal as error:
            raise AnswerError(f"{address} must be an address: {error}.") from error
        except self._unreachable as error:
            raise BusyError(f"{self.root} must be reachable: {error or type(error).__name__}.") from error
        if answer.status_code == 200:
            return answer
        said = " ".join(answer.text.split())[:200]
        line = f"{address} must answer: got {answer.status_code} {said}"
        if answer.status_code in _AGAIN:
            raise BusyError(line, after=_seconds(answer.headers.get("Retry-After")))
        raise AnswerError(line)

    def _json(self, answer: Any) -> dict[str, Any]:
        try:
            value = answer.json()
        except ValueError as error:
            raise AnswerError(f"{answer.url} must answer with JSON: {error}.") from error
        return value if isinstance(value, dict) else {}


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:  # a date
        return None
