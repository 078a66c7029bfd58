"""The commands `apply`, `export`, `push` and `pull`: uses of a trained NeuralFuse outside of this library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from neuralfuse.cli.common import Common, say
from neuralfuse.errors import require

_FLAT = Parameter(name="*")
_COMMON = Common()


def apply(
    fuse: Path,
    source: Path,
    target: Path,
    /,
    *,
    resize: bool = False,
    layout: Literal["nchw", "nhwc"] = "nchw",
    resume: bool = False,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Transform images: a folder of image files into PNG files, or an NPY file into another one.

    Image files and uint8 arrays hold pixels; their transforms are rounded to 256 levels. float32 arrays hold inputs in
    the model's own space.

    Example: neuralfuse apply runs/fuse photos protected
    Example: neuralfuse apply runs/fuse inputs.npy protected.npy

    Parameters
    ----------
    fuse
        Folder of a trained NeuralFuse.
    source
        Folder of images, searched with its subfolders, or an NPY file.
    target
        Folder or NPY file to write.
    resize
        Crop and resize images to the size that the NeuralFuse was trained on.
    layout
        Order of an NPY file's axes: nchw (images, channels, height, width), or nhwc with the channels last.
    resume
        Resume an interrupted run.
    """
    from neuralfuse.export import apply_array, apply_folder  # noqa: PLC0415

    module = common.open_fuse(fuse, common.set_up())
    if source.suffix.lower() == ".npy":
        require(not resize, "--resize must be left out for an array: all its images have one size.")
        count = apply_array(module, source, target, layout=layout, resume=resume, progress=_Tenths())
    else:
        count = apply_folder(module, source, target, resize=resize, resume=resume, progress=_Tenths())
    common.show({"images": count, "target": str(target)}, f"Wrote {count} images to {target}.")


class _Tenths:
    """Reports the progress of a long job, ten times."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth > self.shown:
            self.shown = tenth
            say(f"{done} of {total} images")


def export(
    fuse: Path,
    /,
    *,
    out: Path,
    to: Literal["onnx", "torch"] = "onnx",
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Export a NeuralFuse as one file for other runtimes: ONNX, or a torch.export program.

    The graph maps model inputs to model inputs, for any batch size, and includes the clipping. The file is kept only if
    it agrees with PyTorch on batches of several sizes.

    Example: neuralfuse export runs/fuse --to onnx --out fuse.onnx

    Parameters
    ----------
    fuse
        Folder of a trained NeuralFuse.
    out
        File to write.
    to
        onnx (needs: pip install 'neuralfuse[onnx]'), or torch for torch.export.load.
    """
    from neuralfuse.export import export as write  # noqa: PLC0415

    common.set_up()
    record = write(common.open_fuse(fuse), out, to=to)
    worst = max(record["differences"].values())
    found = f"differs from PyTorch by at most {worst:.1e} of [-1, 1]"
    common.show(record, f"Wrote {out}, {record['bytes'] / 1e6:.1f} MB; {found}.")


def push(
    fuse: Path,
    repo: str,
    /,
    *,
    record: Path | None = None,
    private: bool = False,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Upload a NeuralFuse to the Hugging Face Hub, with a model card.

    Needs huggingface_hub (pip install 'neuralfuse[hub]') and a token (hf auth login, or HF_TOKEN).

    Example: neuralfuse push runs/fuse my-name/my-fuse --record runs/record.json

    Parameters
    ----------
    fuse
        Folder of a trained NeuralFuse.
    repo
        NAME or OWNER/NAME; created if it does not exist.
    record
        Evaluation record whose accuracies the card shows.
    private
        Make a new repository private.
    """
    from neuralfuse.export import push as upload  # noqa: PLC0415

    address = upload(fuse, repo, record=record, private=private, allow_code=common.allow_code)
    common.show({"repo": repo, "commit": address}, f"Uploaded {fuse}: {address}")


def pull(
    repo: str,
    fuse: Path,
    /,
    *,
    revision: str | None = None,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Download a NeuralFuse from the Hugging Face Hub: weights and config only, no code.

    Example: neuralfuse pull my-name/my-fuse runs/fuse

    Parameters
    ----------
    repo
        OWNER/NAME.
    fuse
        Folder to write.
    revision
        Branch, tag or commit; by default the newest commit.
    """
    from neuralfuse.export import pull as download  # noqa: PLC0415

    made = download(repo, fuse, revision=revision, allow_code=common.allow_code)
    common.show({"repo": repo, "generator": made.name, "folder": str(fuse)}, f"Wrote {made.name} to {fuse}.")
