"""The records below a folder, and the commands that made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralfuse.errors import DataError, NeuralFuseError
from neuralfuse.faults import fault_model
from neuralfuse.quant import Scheme
from neuralfuse.steps import SCALES

Record = Mapping[str, Any]
KINDS = ("table", "comparison", "evaluation", "portrait", "plan", "black-box", "choice", "tuning")


@dataclass(frozen=True)
class Found:
    """One record.

    Attributes:
        path: Where it lies, below the folder that was looked through.
        kind: The second part of its schema, one of `KINDS`.
        record: The record.
    """

    path: Path
    kind: str
    record: Mapping[str, Any]

    @property
    def anchor(self) -> str:
        """A name for links."""
        words = "-".join(part for part in "".join(c if c.isalnum() else "-" for c in str(self.path)).split("-") if part)
        return f"{words}-{hashlib.sha256(str(self.path).encode()).hexdigest()[:6]}"

    @property
    def command(self) -> str:
        """The command that makes such a record; capitals stand for what it does not hold."""
        return f"neuralfuse {' '.join(_COMMANDS[self.kind](self.record, self.record['config']))}"


def _of_table(record: Record, config: Record) -> Iterator[str]:
    yield f"reproduce {record['table']} --scale {_scale(config)} --faults {config['faults']}"
    rows = [row["of"] for row in record["rows"]]
    measured = [row["of"] for row in record["rows"] if row["measured"] is not None]
    for column in rows[0] if measured else ():
        own = dict.fromkeys(str(of[column]) for of in measured)
        if len(own) < len({str(of[column]) for of in rows}):
            yield from (f"--rows {column}={value}" for value in own)
    yield from _seed(config)


def _of_comparison(record: Record, config: Record) -> Iterator[str]:
    rows = record["rows"]
    methods = dict.fromkeys(row["method"] for row in rows)
    yield f"compare {' '.join([name for name in methods if name != 'none'] or methods)}"  # none is always measured
    data = "DATA" if record["data"] is None else record["data"]["name"]
    yield f"--scale {_scale(config)} --data {data} --base {'BASE' if config['given'] else config['base']}"
    yield from dict.fromkeys(f"--faults {row['faults']}" for row in rows)
    yield from dict.fromkeys(f"--rates {row['ber']:g}" for row in rows)
    yield f"--train-rate {config['train_rate']:g} --chips {config['chips']}"
    yield from _seed(config)


def _of_evaluation(record: Record, config: Record) -> Iterator[str]:
    yield f"evaluate{'' if config['fuse'] is None else ' FUSE'} --base BASE --data {config['data']['name']}"
    yield from _faults(config["faults"], record["ber"])
    yield "--published-chips" if config["chips"].get("published") else f"--chips {record['chips']}"
    yield from _storage(config["base"])
    yield from (f"--until {config['until']:g}",) if "until" in config else ()
    yield from ("--faulty-generator",) * ("generator_memory" in config)
    yield from (f"--readout {config['base']['readout']['kind']}",) if "readout" in config["base"] else ()


def _storage(base: Record) -> Iterator[str]:
    """Yield the options by which a model's weights are stored otherwise than usual."""
    usual, scheme = Scheme().to_config(), base["scheme"]
    if scheme.keys() == usual.keys():
        yield from (f"--{name} {value}" for name, value in scheme.items() if value != usual[name])
    elif "coding" in scheme:  # a floating-point format, which says all
        yield f"--coding {scheme['coding']}"
    yield from ("--activations",) * ("activations" in base)


def _of_portrait(record: Record, config: Record) -> Iterator[str]:
    yield f"portrait FUSE --base BASE --data {config['data']['name']}"
    yield from _faults(config["faults"], config["ber"])
    yield f"--chips {config['chips']}"
    yield from (f"--{name} {config[name]}" for name in ("images", "gallery") if name in config)


def _of_plan(record: Record, config: Record) -> Iterator[str]:
    yield "plan --base BASE --target TARGET --out OUT"


def _of_black_box(record: Record, config: Record) -> Iterator[str]:
    yield f"evaluate{'' if config['fuse'] is None else ' FUSE'} --base {config['box']} --data {config['data']['name']}"
    yield from _asked(config)


def _of_choice(record: Record, config: Record) -> Iterator[str]:
    yield f"choose {' '.join(config['candidates'])} --base {config['box']} --data {config['data']['name']}"
    yield from _asked(config)


def _of_tuning(record: Record, config: Record) -> Iterator[str]:
    yield f"tune FUSE --base {config['box']} --data {config['data']['name']} --queries {config['queries']} --out OUT"
    yield from _asked(config)


def _asked(config: Record) -> Iterator[str]:
    if config.get("nominal"):
        yield f"--nominal {config['nominal']}"
    if "layout" in config:
        yield f"--layout {config['layout']}"


def _scale(config: Record) -> str:
    return config["scale"] if config["scale"] in SCALES else f"DIR/{config['scale']}.toml"


def _faults(faults: Record, ber: float) -> Iterator[str]:
    try:
        plain = fault_model(faults["kind"], ber=ber).to_config() == faults
    except NeuralFuseError:
        plain = False
    yield f"--ber {ber:g} --faults {faults['kind']}" if plain else "--faults FILE.toml"


def _seed(config: Record) -> Iterator[str]:
    if config["seed"]:
        yield f"--seed {config['seed']}"


_COMMANDS: dict[str, Callable[[Record, Record], Iterator[str]]] = {
    "table": _of_table, "comparison": _of_comparison, "evaluation": _of_evaluation, "portrait": _of_portrait,
    "plan": _of_plan, "black-box": _of_black_box, "choice": _of_choice, "tuning": _of_tuning,
}  # fmt: skip


def collect(folder: Path) -> tuple[list[Found], list[Path]]:
    """Return all records below a folder that a report shows, tables first, and the files that are no whole JSON.

    Raises:
        DataError: there is no record.
    """
    found, damaged = [], []
    for path in sorted(folder.rglob("*.json")):
        below = path.relative_to(folder)
        if any(part.startswith(".") or part == "steps" for part in below.parts):
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            damaged.append(below)
            continue
        kind = _kind(record)
        if kind is not None:
            found.append(Found(below, kind, record))
    if not found:
        raise DataError(
            f"{folder} must hold records to report on: there is none of {', '.join(KINDS)} below it. Make some with "
            "neuralfuse reproduce, compare, evaluate, portrait or plan."
        )
    return sorted(found, key=lambda one: (KINDS.index(one.kind), _number(one), str(one.path))), damaged


def _kind(record: Any) -> str | None:
    """Return which of `KINDS` a record is, if any."""
    parts = str(record.get("schema", "")).split("/") if isinstance(record, dict) else []
    return parts[1] if len(parts) == 3 and parts[0] == "neuralfuse" and parts[1] in KINDS else None


def _number(one: Found) -> int:
    digits = "".join(filter(str.isdigit, str(one.record.get("table", ""))))
    return int(digits or 0)


def of_kind(found: list[Found], kind: str) -> Iterator[Found]:
    """Yield the records of a kind."""
    return (one for one in found if one.kind == kind)
