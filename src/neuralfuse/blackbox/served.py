"""A model behind a server that speaks the Open Inference Protocol (KServe v2, Triton) over HTTP."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralfuse.blackbox.boxes import IMAGE_TYPES, Layout, TensorBox, check_rows
from neuralfuse.errors import AnswerError, BusyError, MissingExtraError, NeuralFuseError, require
from neuralfuse.ranges import InputRange
from neuralfuse.wire import HEADER, Message, WireError, WireTensor, decode, encode

BINARY = "binary_tensor_data"
_RETRY = {408, 425, 429, 500, 502, 503, 504}
_NO_READINESS = {401, 403, 404, 405, 501}  # statuses of a server that does not tell whether it is ready
_ADDRESS = re.compile(r"(https?://.+?)/v2/models/([^/]+)(/versions/[^/]+)?/?")


class Served(TensorBox):
    """A model on a server.

    Args:
        address: ``http(s)://HOST[:PORT][/PATH]/v2/models/NAME[/versions/VERSION]``.
        input_name: Name of the input for images; needed if the model has several inputs.
        output_name: Name of the output with the answers; needed if the model has several outputs.
        token: Bearer token to send.
        timeout: Seconds per request.
        input_range: Value range of the model's inputs; used if the server takes UINT8 pixels, the nearest of 256
            levels.
        layout: Order of the images' axes.

    Raises:
        AnswerError: the address is invalid, or the server has no such model.
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
        require(0 < timeout <= 86400, f"timeout must be in (0, 86400] seconds: got {timeout}.")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.name, self.root = address.rstrip("/"), found[1]
        self.input_range, self.layout = input_range or InputRange(), layout
        self._unreachable: type[Exception] = httpx2.HTTPError
        self._illegal: type[Exception] = httpx2.InvalidURL
        # Plain http needs no certificates. Loading them can take longer than a query.
        tls = not address.lower().startswith("http://")
        self._client = httpx2.Client(headers=headers, timeout=timeout, verify=tls)
        try:
            self._read_metadata(input_name, output_name)
        except NeuralFuseError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _read_metadata(self, input_name: str | None, output_name: str | None) -> None:
        """Read the tensors' names and the input's type, and whether the server takes binary tensors."""
        about = self._json(self._request_metadata())
        self.input_name, self.datatype = self._select_tensor(about, "inputs", input_name)
        self.output_name, _ = self._select_tensor(about, "outputs", output_name)
        if self.datatype not in IMAGE_TYPES:
            types = ", ".join(IMAGE_TYPES)
            raise AnswerError(f"{self.name} must take one of {types}: {self.input_name} is {self.datatype}.")
        server = self._json(self._send("GET", f"{self.root}/v2"))
        self.binary = BINARY in (server.get("extensions") or [])

    def _request_metadata(self) -> Any:
        """Request the model's metadata. Raise a `BusyError` if the server is not ready yet."""
        try:
            return self._send("GET", self.name)
        except AnswerError:
            self._check_ready()
            raise

    def _check_ready(self) -> None:
        """Raise a `BusyError` if the server cannot be reached, or says that it or the model is not ready."""
        for address in (f"{self.root}/v2/health/ready", f"{self.name}/ready"):
            try:
                status = self._client.get(address).status_code
            except self._illegal:
                return  # the caller raises its own error
            except self._unreachable as error:
                raise BusyError(f"{self.root} must be reachable: {error or type(error).__name__}.") from error
            if status >= 400 and status not in _NO_READINESS:
                raise BusyError(f"{address} must report that it is ready: got {status}.")

    def ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """See `Box`."""
        wanted: dict[str, Any] = {"name": self.output_name}
        if self.binary:
            wanted["parameters"] = {"binary_data": True}
        message = Message((WireTensor(self.input_name, self.datatype, self.encode(x)),), {"outputs": [wanted]})
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
            raise AnswerError(f"{self.name} must follow the protocol in its response: {error}.") from error
        return check_rows(values, len(x), self.name)

    def _select_tensor(self, about: dict[str, Any], key: str, wanted: str | None) -> tuple[str, str]:
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
            raise AnswerError(f"{address} must be a valid address: {error}.") from error
        except self._unreachable as error:
            raise BusyError(f"{self.root} must be reachable: {error or type(error).__name__}.") from error
        if answer.status_code == 200:
            return answer
        reason = " ".join(answer.text.split())[:200]
        line = f"{address} must answer: got {answer.status_code} {reason}"
        if answer.status_code in _RETRY:
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
    except ValueError:  # it may be a date
        return None
