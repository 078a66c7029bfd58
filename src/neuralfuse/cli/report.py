"""The `portrait` and `report` commands: what was measured, as pictures and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neuralfuse.cli.common import Common, DataOptions, StorageOptions, open_bases, say
from neuralfuse.cli.faults import FaultOptions
from neuralfuse.config import Running

_FLAT = Parameter(name="*")
_COMMON, _DATA, _STORAGE, _FAULTS, _RUNNING = Common(), DataOptions(), StorageOptions(), FaultOptions(), Running()


def portrait(
    fuse: Path,
    /,
    *,
    base: str,
    out: Path,
    chips: int = 10,
    images: int = 600,
    gallery: int = 10,
    data: Annotated[DataOptions, _FLAT] = _DATA,
    faults: Annotated[FaultOptions, _FLAT] = _FAULTS,
    storage: Annotated[StorageOptions, _FLAT] = _STORAGE,
    running: Annotated[Running, _FLAT] = _RUNNING,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Record what a NeuralFuse does to images, classes and answers. A report draws pictures of the record.

    This needs scikit-learn: pip install 'neuralfuse[report]'. The record contains a few of the test images.

    Example: neuralfuse portrait runs/fuse --base runs/base --ber 0.06 --out runs/portrait.json

    Parameters
    ----------
    fuse
        Folder of a trained NeuralFuse.
    base
        A folder written by train-base, or package.module:factory (runs your code).
    out
        File for the record.
    chips
        Number of unseen chips over which the accuracy of a class is averaged.
    images
        Number of test images whose answers are laid out in a plane.
    gallery
        Number of classes that are shown by one image each.
    """
    from neuralfuse.files import write_json  # noqa: PLC0415
    from neuralfuse.report import make_portrait  # noqa: PLC0415

    device = common.set_up()
    module = common.open_fuse(fuse, device)
    (opened,), images_of = open_bases([base], data, storage, device, running)
    record = make_portrait(
        module, opened, images_of, faults.model(), chips=chips, images=images, gallery=gallery, say=say
    )
    write_json(out, record)
    common.show(record, f"Wrote {out}. To draw it: neuralfuse report {out.parent}")


def report(
    folder: Path,
    /,
    *,
    out: Path = Path("report.html"),
    title: str = "NeuralFuse: what was measured",
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Write a page about all records below a folder: HTML with pictures, and the tables as Markdown and LaTeX.

    The page needs no network and no other file. It shows the records of reproduce, compare, evaluate, portrait, plan,
    choose and tune.

    Example: neuralfuse report runs --out runs/report.html

    Parameters
    ----------
    folder
        Folder with the records, in any subfolders.
    out
        File for the page. The tables are written beside it, to files that end in .md and .tex.
    title
        Heading of the page.
    """
    from neuralfuse.report import Report  # noqa: PLC0415

    made = Report.of(folder, title)
    for path in made.damaged:
        say(f"{folder / path} is left out, because it is not complete JSON.")
    files = [str(path) for path in made.write(out)]
    figures = sum(len(section.figures) for section in made.sections) + len(made.across)
    record = {"files": files, "records": len(made.sections), "figures": figures}
    common.show(record, f"Wrote {', '.join(files)}: {len(made.sections)} records, {figures} figures.")
