"""A module on a hub: pushed to and pulled from a server of this test that speaks the Hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from helpers.cli import fails
from helpers.servers import listening
from neuralfuse.cli.main import run
from neuralfuse.errors import FileFormatError
from neuralfuse.export.hub import card
from neuralfuse.files import write_json
from neuralfuse.fuse import NeuralFuse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Takes one commit of small files, and gives them back."""

    files: dict[str, bytes]
    asked: list[str]

    @property
    def home(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(self.path)
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.answer({"url": f"{self.home}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer({"files": [file | {"shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    assert line["value"]["encoding"] == "base64"
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.home}/me/x/commit/{COMMIT}", "commitOid": COMMIT, "success": True})
        else:
            self.answer({"error": "no such thing"}, 404)

    def do_GET(self):
        self.do_HEAD(body=True)

    def do_HEAD(self, body=False):
        name = self.path.rpartition("/")[2]
        known = self.path.startswith("/me/x/resolve/main/") and name in self.files
        data = self.files[name] if known else b""
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def answer(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    made = type("Made", (Hub,), {"files": {}, "asked": []})
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), made)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield made


def module() -> NeuralFuse:
    trained = {"ber": 0.01, "faults": "stuck", "bases": [{"name": "vgg11"}], "data": {"name": "gtsrb"}}
    return NeuralFuse("unets", image_size=(8, 8), input_range="imagenet", seed=4, trained=trained).eval()


def test_what_is_pushed_is_what_is_pulled(hub, tmp_path, capsys):
    fuse = module()
    fuse.save_pretrained(tmp_path / "fuse")
    (tmp_path / "fuse" / "events.log").write_text("private")
    record = {"schema": "neuralfuse/evaluation/1", "chips": 30, "ber": 0.01, "ber_kind": "stuck"}
    write_json(tmp_path / "record.json", record | {"ca": 98.2, "pa": 73.5, "pa_nf": 90.31})
    record = ["--record", str(tmp_path / "record.json")]
    assert run(["push", str(tmp_path / "fuse"), "me/x", *record]) == 0
    assert COMMIT in capsys.readouterr().out
    assert set(hub.files) == {"config.json", "model.safetensors", "README.md"}
    about = hub.files["README.md"].decode()
    assert "trained on gtsrb in front of vgg11, against 1% stuck" in about
    assert "73.5% without it, 90.3% with it (98.2% without bit errors)" in about
    assert run(["pull", "me/x", str(tmp_path / "pulled"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generator"] == "unets"
    pulled = NeuralFuse.from_pretrained(tmp_path / "pulled")
    assert pulled.trained == fuse.trained and pulled.input_range == fuse.input_range
    x = torch.zeros(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(pulled(x), fuse(x))


def test_what_the_hub_refuses_is_one_line(hub, tmp_path, capsys):
    module().save_pretrained(tmp_path / "fuse")
    fails(capsys, ["pull", "me/other", str(tmp_path / "pulled")], "cannot pull me/other")
    fails(capsys, ["pull", "not a name", str(tmp_path / "pulled")], "cannot pull not a name")
    fails(capsys, ["push", str(tmp_path / "nothing"), "me/x"], "cannot read")
    assert not hub.asked
    (tmp_path / "record.json").write_text('{"schema": "neuralfuse/plan/1"}')
    refused = ["push", str(tmp_path / "fuse"), "me/x", "--record", str(tmp_path / "record.json")]
    fails(capsys, refused, "must have schema 'neuralfuse/evaluation/1'")
    (tmp_path / "record.json").write_text('{"schema": "neuralfuse/evaluation/1", "pa_nf": null}')
    fails(capsys, refused, "it has no PA(NF)")
    hub.files |= {"config.json": b"{}", "model.safetensors": b""}
    fails(capsys, ["pull", "me/x", str(tmp_path / "pulled")], "must have schema")
    assert not (tmp_path / "pulled").exists()


def test_a_module_that_says_little_has_a_card_too():
    text = card(NeuralFuse("convs", channels=1, image_size=(8, 8), seed=0), "mine")
    assert "# mine\n" in text and "an unknown model, against unknown faults\n" in text
    with pytest.raises(FileFormatError):
        NeuralFuse.from_pretrained("nowhere")
