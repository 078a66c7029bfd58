"""The `energy` command: the energy that a voltage saves, and the paper's energy tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from neuralfuse.cli.common import Common
from neuralfuse.cli.faults import open_curve
from neuralfuse.errors import ConfigError, require

if TYPE_CHECKING:
    from neuralfuse.energy import SystolicArray, Technology
    from neuralfuse.fuse import NeuralFuse
    from neuralfuse.nets import BaseModel

_FLAT = Parameter(name="*")
_COMMON = Common()


@dataclass(frozen=True, kw_only=True)
class HardwareOptions:
    """The array whose accesses are counted, and their energies.

    Attributes:
        curve: Voltage curve: paper, xilinx-vc707, or a CSV file (voltage,ber,energy, and a line "# source: ...").
        energy_law: Interpolation of energies between the curve's points: power, quadratic (V^2; needs no energies) or
            exponential. By default the curve's own law.
        array: Rows and columns of the systolic array, e.g. 32x32.
        dataflow: output-stationary, weight-stationary or input-stationary.
        technology: 45nm, 7nm, or a TOML file with energies and their sources.
        bank_kib: Capacity of a memory bank in KiB, one of the technology's.
    """

    curve: str | None = None
    energy_law: str | None = None
    array: str = "32x32"
    dataflow: str = "output-stationary"
    technology: str = "45nm"
    bank_kib: float = 8

    def open_array(self) -> SystolicArray:
        """Return the systolic array."""
        from neuralfuse.energy import SystolicArray  # noqa: PLC0415

        rows, _, columns = self.array.partition("x")
        if not (rows.isdecimal() and columns.isdecimal()):
            raise ConfigError(f"--array must be ROWSxCOLUMNS, e.g. 32x32: got {self.array!r}.")
        return SystolicArray(rows=int(rows), columns=int(columns), dataflow=self.dataflow)  # type: ignore[arg-type]

    def open_technology(self) -> Technology:
        """Return the table of energies."""
        from neuralfuse.energy import Technology  # noqa: PLC0415

        is_file = Path(self.technology).suffix.lower() == ".toml"
        return Technology.from_toml(self.technology) if is_file else Technology.named(self.technology)


_HARDWARE = HardwareOptions()


def energy(
    base: str | None = None,
    *,
    generator: str | None = None,
    ber: float | None = None,
    voltage: float | None = None,
    hardware: Annotated[HardwareOptions, _FLAT] = _HARDWARE,
    image_size: tuple[int, int] | None = None,
    channels: int = 3,
    classes: int = 10,
    bits: int | None = None,
    inference_seconds: float = 0.0,
    record: Path | None = None,
    layers: bool = False,
    latency: bool = False,
    paper_tables: bool = False,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Show the energy that a lower voltage saves: accesses, the paper's figures, joules, and the source of each number.

    Example: neuralfuse energy resnet18 --generator unetl --ber 0.01
    Example: neuralfuse energy --paper-tables

    Parameters
    ----------
    base
        Name of a base model (`neuralfuse models` lists them), folder written by train-base, or package.module:factory
        (runs your code).
    generator
        Name of a generator, package.module:factory (runs your code), or folder of a trained NeuralFuse; without it,
        the base model is unprotected.
    ber
        Rate of faulty cells. The voltage is the highest one with this rate on the curve.
    voltage
        Supply voltage, instead of --ber. Without both, only counts and the nominal energy are shown.
    image_size
        Height and width of the images; by default the base model's.
    channels
        Channels of the images, for a base model without a folder.
    classes
        Classes, for a base model without a folder.
    bits
        Width of a word in bits; by default the base model's.
    inference_seconds
        Duration of an inference in seconds; needed if the technology has leakage.
    record
        Evaluation record, whose recovery gives the efficiency ratio.
    layers
        List all layers.
    latency
        Measure the latency of one image on this device.
    paper_tables
        Only recompute the paper's Tables 2, 3, 6, 7 and 8, beside the printed values.
    """
    device = common.set_up()
    if paper_tables:
        from neuralfuse.energy.tables import paper_tables as all_tables  # noqa: PLC0415

        require(base is None, f"--paper-tables must be used without a base model: got {base}.")
        found = all_tables()
        common.show(found, _tables_text(found))
        return
    import torch  # noqa: PLC0415

    from neuralfuse.energy import GENERATOR_LAYERS, OperatingPoint, count, energy_record  # noqa: PLC0415
    from neuralfuse.energy import latency as measure  # noqa: PLC0415
    from neuralfuse.runs import RunInfo  # noqa: PLC0415

    require(base is not None, "a base model must be given: pass its name, folder or factory.")
    require(record is None or generator is not None, "--record must come with --generator: it is a generator's record.")
    require(bits is None or bits >= 1, f"bits must be at least 1: got bits={bits}.")
    require(ber is None or voltage is None, "the operating point must be given by --ber or --voltage: got both.")
    model = open_base(str(base), classes=classes, channels=channels, image_size=image_size, real=latency)
    size = image_size or model.image_size
    fuse = None if generator is None else open_generator(generator, model.channels, size, common, real=latency)
    the_array, technology = hardware.open_array(), hardware.open_technology()
    curve = open_curve(hardware.curve, hardware.energy_law)
    point = None if ber is None and voltage is None else OperatingPoint.at(curve, voltage=voltage, ber=ber)
    shape: dict[str, Any] = {"channels": model.channels, "image_size": size, "array": the_array}
    base_counts = count(model.module, **shape)
    fuse_counts = None if fuse is None else count(fuse, **shape, layers=GENERATOR_LAYERS)
    found = energy_record(
        (model.name, base_counts),
        None if fuse is None or fuse_counts is None else (fuse.name, fuse_counts),
        point=point,
        array=the_array,
        technology=technology,
        kib=hardware.bank_kib,
        bits=bits or model.scheme.bits,
        seconds=inference_seconds,
        recovery=None if record is None or fuse is None else _recovery(record, model.name, fuse.name),
    )
    if latency:
        run, dtype = RunInfo(device), next((one.dtype for one in model.module.parameters()), None)
        image = torch.zeros(1, model.channels, *size, device=device, dtype=dtype)
        taken = measure(model.module.to(device).eval(), None if fuse is None else fuse.to(device).eval(), image)
        found["run"] = {**run.collect(), "latency_seconds": taken}
    if layers:
        found["layers"] = {"base": base_counts.layers(the_array)}
        found["layers"] |= {} if fuse_counts is None else {"generator": fuse_counts.layers(the_array)}
    common.show(found, _text(found, size))


def open_base(
    reference: str, *, classes: int, channels: int, image_size: tuple[int, int] | None, real: bool
) -> BaseModel:
    """Return the base model to count. A model given by name has weights only if it is to be ``real``."""
    import torch  # noqa: PLC0415

    from neuralfuse.nets import BaseModel, base_model, base_spec, load_base  # noqa: PLC0415
    from neuralfuse.nets.store import load_factory  # noqa: PLC0415

    if Path(reference).is_dir():
        return load_base(reference)
    if ":" in reference:
        return load_factory(reference, classes=classes, channels=channels, image_size=image_size or (32, 32))
    size = image_size or (base_spec(reference).image_size,) * 2
    with torch.device("cpu" if real else "meta"):
        module = base_model(reference, classes=classes, channels=channels, image_size=size, seed=0)
    return BaseModel(name=reference, module=module, classes=classes, channels=channels, image_size=size)


def open_generator(
    reference: str, channels: int, size: tuple[int, int], common: Common, *, real: bool
) -> NeuralFuse:  # fmt: skip
    """Return the NeuralFuse to count, with padding if the image size needs it."""
    from neuralfuse.fuse import NeuralFuse  # noqa: PLC0415
    from neuralfuse.nets import generator, skeleton  # noqa: PLC0415

    if Path(reference).is_dir():
        return common.open_fuse(Path(reference))
    if real:
        made = generator(reference, channels=channels, image_size=size, seed=0)
    else:
        made = skeleton(reference, channels=channels, image_size=size)
    fuse = NeuralFuse(made, channels=channels, image_size=size, fit="pad")
    fuse.name = reference
    return fuse.to(next((one.device for one in made.parameters()), "cpu"))


def _recovery(path: Path, base: str, generator: str) -> dict[str, Any]:
    """Read the evaluation record of this base model behind this generator."""
    from neuralfuse.evaluation.record import EVALUATION_SCHEMA  # noqa: PLC0415
    from neuralfuse.files import read_json  # noqa: PLC0415

    record = read_json(path, EVALUATION_SCHEMA)
    config = record.get("config", {})
    found = (config.get("base", {}).get("name"), (config.get("fuse") or {}).get("generator"))
    same = found == (base, generator) and record.get("rp") is not None
    require(same, f"--record must be of {base} behind {generator}: {path} is of {found[0]} behind {found[1]}.")
    return record


def _text(record: Mapping[str, Any], size: tuple[int, int]) -> str:
    models = [one for one in (record["base"], record["generator"]) if one is not None]
    array, moved = record["array"], [one["accesses"] for one in models]
    least = [">= " if one["unknown"] else "" for one in models]
    words = ("weight_reads", "input_reads", "output_writes", "output_reads")
    weights, inputs, written, back = ([f"{one[name]:,}" for one in moved] for name in words)
    macs = ["not known" if one["paper_macs"] is None else f"{one['paper_macs'] / 1e6:,.2f} M" for one in models]
    accesses = [f"{one['paper_accesses']:,.0f}" for one in models]
    outputs = [f"{one}, {other}" for one, other in zip(written, back, strict=True)]

    def row(what: str, values: Sequence[str], note: str = "", bounds: Sequence[str] = least) -> str:
        cells = "".join(f"{bound + value:>{width}}" for bound, value in zip(bounds, values, strict=True))
        return f"{what:32}{cells}" + (f"   {note}" if note else "")

    exactly, width = [""] * len(models), max(18, *(len(one["name"]) + 2 for one in models))
    lines = [
        row(f"one image of {size[0]}x{size[1]}", [one["name"] for one in models], bounds=exactly),
        row("parameters", [f"{one['parameters']:,}" for one in models], bounds=exactly),
        row("MACs", [f"{one['macs'] / 1e6:,.2f} M" for one in models], "convolutions and matrix products"),
        row("MACs, the paper's count", macs, "includes biases, BatchNorm, ...", exactly),
        row("weight accesses, the paper's", accesses, "T.W.M.A., words of 64 bits"),
        row("weights read", weights, f"{array['rows']}x{array['columns']}, {array['dataflow']}"),
        row("inputs read", inputs),
        row("outputs written, read back", outputs),
    ]
    for one in models:
        lines += [f"not counted: {lost['layer']} of {one['name']}, {lost['reason']}" for lost in one["unknown"]]
    for name, operations in record.get("layers", {}).items():
        lines += ["", *_layer_lines(name, operations)]
    if record["operating_point"] is not None:
        lines += ["", *_point_lines(record["operating_point"], record["saving"], record["generator"])]
    joules, technology = record["joules"], record["technology"]
    bounds = [least[-1] if name == "generator" else least[0] for name in joules]
    lines += ["", row("microjoules per inference", list(joules), bounds=[""] * len(joules))]
    for part in ("weights", "inputs", "outputs", "macs", "leakage", "dram", "total"):
        values = [one[part] for one in joules.values()]
        if any(values):
            lines.append(
                row(part if part != "macs" else "MACs", [f"{1e6 * value:.3f}" for value in values], "", bounds)
            )
    bank = next(one for one in technology["sram"] if one["kib"] == record["bank_kib"])
    lines.append(f"by {technology['node']}, banks of {record['bank_kib']:g} KiB: {bank['source']}")
    if record["efficiency_ratio"] is not None:
        ratio = record["efficiency_ratio"]
        at = f"at {100 * ratio['ber']:.4g}% ({ratio['ber_kind']})"
        lines.append(f"efficiency ratio {ratio['value']:.1f} points per million parameters, from the recovery {at}")
    if "run" in record:
        taken = record["run"]["latency_seconds"].items()
        each = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.2f} ms" for name, value in taken)
        lines.append(f"latency of one image on this device: {each}")
    return "\n".join(lines)


def _layer_lines(name: str, operations: Sequence[Mapping[str, Any]]) -> list[str]:
    head = f"{name:32}{'kind':>24}{'rows':>10}{'inner':>8}{'columns':>9}{'groups':>8}{'weights read':>15}{'MACs':>15}"
    return [head] + [
        f"{one['layer']:32}{one['kind']:>24}{one['rows']:>10,}{one['inner']:>8,}{one['columns']:>9,}"
        f"{one['groups']:>8,}{one['weight_reads']:>15,}{one['macs']:>15,}"
        for one in operations
    ]


def _point_lines(point: Mapping[str, Any], saving: Mapping[str, Any], generator: Mapping[str, Any] | None) -> list[str]:
    curve = point["curve"]
    how = (
        "a point of"
        if point["is_point"]
        else f"by a {curve.get('energy_law', 'power')} law, a model, between points of"
    )
    without = "without NeuralFuse" if generator is None else f"with {generator['name']} at the nominal voltage"
    least = "at least " if saving["at_least"] else ""

    def percent(name: str) -> str:
        return "not known" if saving[name] is None else f"{least}{saving[name]:.1f}%"

    lines = [
        f"at {point['voltage']:.4g} {curve['unit']}: {100 * point['ber']:.4g}% of the cells faulty, one access takes "
        f"{point['weight_energy']:.4g} of the nominal energy",
        f"   {how}: {curve['source']}",
        f"saved {without}",
        f"   {percent('paper'):>10}  of the weight memory's energy by the paper's count (Eq. 6)",
        f"   {percent('paper_macs'):>10}  by the paper's count of MACs (Eq. 7)",
        f"   {percent('weight_memory'):>10}  of the weight memory's energy on this array",
        f"   {percent('inference'):>10}  of the total energy per inference (below)",
    ]
    if point["ber"] == 0:
        lines.append("no cell fails at this voltage: NeuralFuse is not needed.")
    return lines


def _tables_text(record: Mapping[str, Any]) -> str:
    lines = [record["source"]]
    for name, table in record["tables"].items():
        lines += ["", f"{name.replace('table', 'Table ')}: {table['title']}"]
        for row in table["rows"]:
            keys = [row[key] for key in ("dataset", "base", "model", "ber", "generator") if key in row]
            ours = row["ours"] if isinstance(row["ours"], str) else f"{row['ours']:,.2f}".removesuffix(".00")
            printed = row["published"] if isinstance(row["published"], str) else f"{row['published']:,}"
            note = "" if row["misprint"] is None else f"   misprint: {row['misprint']}"
            lines.append(f"  {' '.join(map(str, keys)):36}{ours:>14}{printed:>14}{note}")
    return "\n".join(lines)
