"""Trained modules on the Hugging Face Hub: the module's folder with a model card."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuralfuse.errors import FileFormatError, HubError, MissingExtraError, NeuralFuseError
from neuralfuse.files import read_json
from neuralfuse.fuse import NeuralFuse

FILES = ("config.json", "model.safetensors")
EVALUATION = "neuralfuse/evaluation/1"


def push(
    folder: Path, repo: str, *, record: Path | None = None, private: bool = False, allow_code: bool = False
) -> str:  # fmt: skip
    """Upload a trained module with a model card, and return the URL of the commit.

    The `huggingface_hub` library chooses the token (`hf auth login` or HF_TOKEN) and the hub (HF_ENDPOINT).

    Args:
        folder: Folder of the module.
        repo: NAME or OWNER/NAME; created if it does not exist.
        record: Evaluation record whose accuracies the card shows.
        private: Whether a new repository is private.
        allow_code: Whether the code of a generator of one's own may be run.

    Raises:
        FileFormatError: the folder holds no NeuralFuse module, or the record is not from an evaluation with one.
        HubError: the hub refuses the upload, or cannot be reached.
    """
    fuse = NeuralFuse.from_pretrained(folder, allow_code=allow_code)
    text = card(fuse, repo, None if record is None else read_json(record, EVALUATION))
    with _hub(f"push {folder} to {repo}") as api, tempfile.TemporaryDirectory() as place:
        fuse.save_pretrained(place)
        (Path(place) / "README.md").write_text(text, encoding="utf-8")
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        done = api.upload_folder(
            repo_id=name, folder_path=place, allow_patterns=[*FILES, "README.md"],
            commit_message=f"Upload {fuse.name}, a NeuralFuse module",
        )  # fmt: skip
    return str(done.commit_url)


def pull(repo: str, folder: Path, *, revision: str | None = None, allow_code: bool = False) -> NeuralFuse:
    """Download a trained module into a folder, and return it. Only weights and config are downloaded, no code.

    Args:
        repo: OWNER/NAME.
        folder: Folder to write.
        revision: Branch, tag or commit; by default the newest commit.
        allow_code: Whether the code of a generator of somebody's own may be run, which must be here already.

    Raises:
        FileFormatError: the repository holds no NeuralFuse module.
        HubError: the repository, revision or file does not exist, or the hub cannot be reached.
        OutputError: the folder cannot be written.
    """
    with _hub(f"pull {repo}") as api, tempfile.TemporaryDirectory() as place:
        for name in FILES:
            api.hf_hub_download(repo, name, revision=revision, local_dir=place)
        fuse = NeuralFuse.from_pretrained(place, allow_code=allow_code)
    fuse.save_pretrained(folder)
    return fuse


@contextmanager
def _hub(action: str) -> Iterator[Any]:
    try:
        from httpx2 import HTTPError  # noqa: PLC0415
        from huggingface_hub import HfApi  # noqa: PLC0415
        from huggingface_hub.errors import HFValidationError  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("the Hub needs huggingface_hub: pip install 'neuralfuse[hub]'.") from error
    try:
        yield HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="neuralfuse")
    except NeuralFuseError:
        raise
    except (HTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise HubError(f"cannot {action}: {reason} Check name, token (hf auth login) and network.") from error


def card(fuse: NeuralFuse, repo: str, record: Mapping[str, Any] | None = None) -> str:
    """Return the model card in Markdown: purpose of the module, measured accuracy, usage.

    Raises:
        FileFormatError: the record is not from an evaluation with a NeuralFuse.
    """
    trained = fuse.trained
    measured = ""
    if record is not None:
        if not {"chips", "ber", "ber_kind", "ca", "pa", "pa_nf"} <= set(record) or record["pa_nf"] is None:
            raise FileFormatError("--record must be from an evaluation with a NeuralFuse: it has no PA(NF).")
        measured = (
            f"\n- measured on {record['chips']} unseen chips at {100 * record['ber']:g}% {record['ber_kind']}: "
            f"accuracy {record['pa']:.1f}% without it, {record['pa_nf']:.1f}% with it "
            f"({record['ca']:.1f}% without bit errors)"
        )
    return _CARD.format(
        title=repo.rpartition("/")[2],
        repo=repo,
        generator=fuse.name,
        parameters=sum(parameter.numel() for parameter in fuse.generator.parameters()),
        shape="x".join(map(str, (fuse.channels, *fuse.image_size))),
        mean=list(fuse.input_range.mean),
        std=list(fuse.input_range.std),
        data=trained.get("data", {}).get("name", "unknown images"),
        bases=", ".join(str(base["name"]) for base in trained.get("bases", ())) or "an unknown model",
        against=f"{100 * trained['ber']:g}% {trained['faults']}"
        if {"ber", "faults"} <= set(trained)
        else "unknown faults",
        measured=measured,
    )


_CARD = """---
library_name: neuralfuse
tags:
- neuralfuse
- bit-errors
- low-voltage
- robustness
---

# {title}

A NeuralFuse module, F(x) = clip(x + G(x)). It transforms the inputs of a network so that its accuracy survives bit
errors in the memory of its weights. G is `{generator}`, {parameters:,} parameters.

- for images of {shape}, normalized with mean {mean} and std {std} (of pixels in [0, 1])
- trained on {data} in front of {bases}, against {against}{measured}

```bash
neuralfuse pull {repo} fuse
neuralfuse apply fuse photos protected
```

```python
from neuralfuse import NeuralFuse

fuse = NeuralFuse.from_pretrained("fuse")
logits = model(fuse(images))
```
"""
