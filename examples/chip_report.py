"""One chip at every measured voltage, with and without NeuralFuse, beside the average chip of a voltage curve.

Usage: python chip_report.py BASE FUSE CHIP.npz CURVE.csv OUT.png (on the digits)
"""

import sys
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

import neuralfuse as nf
from neuralfuse.faults import Measured

base_folder, fuse_folder, chip_file, curve_file, out = map(Path, sys.argv[1:])
data = nf.load_data("digits")
model = nf.load_base(base_folder)
base = nf.deploy(model.module, scheme=model.scheme)
fuse = nf.NeuralFuse.from_pretrained(fuse_folder)
fault_map, curve = nf.FaultMap.load(chip_file), nf.VoltageCurve.from_csv(curve_file)

rows = []
for voltage in fault_map.voltages:
    here = Measured(map=fault_map, voltage=voltage)
    this = nf.evaluate(base, data.test, here.chips(1), fuse=fuse)  # this chip, words from row 0 on
    placed = nf.evaluate(base, data.test, replace(here, random_offset=True).chips(10), fuse=fuse)
    average = nf.fault_model("stuck", ber=0).at_voltage(voltage, curve)
    others = nf.evaluate(base, data.test, average.chips(10), fuse=fuse)
    rows.append((voltage, here.ber, this, placed, others))
    print(
        f"{voltage:.2f} V, {here.ber:.3%} faulty: this chip PA {this.pa:.1f}% -> PA(NF) {this.pa_nf:.1f}%; "
        f"10 other placements {placed.pa:.1f}% -> {placed.pa_nf:.1f}%; "
        f"10 chips of the curve {others.pa:.1f}% -> {others.pa_nf:.1f}%"
    )

figure = Figure(figsize=(7.2, 4), layout="constrained")
axes = figure.subplots()
volts = [row[0] for row in rows]
for name, color in (("pa", "#b3432b"), ("pa_nf", "#1f6f8b")):
    label = {"pa": "without", "pa_nf": "with NeuralFuse"}[name]
    axes.plot(volts, [getattr(row[2], name) for row in rows], "o-", color=color, label=f"this chip, {label}")
    axes.plot(volts, [getattr(row[4], name) for row in rows], "--", color=color, label=f"the curve's chips, {label}")
    chips = [[getattr(chip, name) for chip in row[3].per_chip] for row in rows]
    axes.fill_between(volts, list(map(min, chips)), list(map(max, chips)), color=color, alpha=0.15, linewidth=0)
axes.set_xlabel(f"supply voltage ({fault_map.unit}), faulty cells; band: ten other placements on this chip")
axes.set_ylabel("accuracy (%)")
axes.set_xticks(volts, [f"{volt:.2f}\n{ber:.2%} faulty" for volt, ber, *_ in rows])
axes.set_title("One chip, resnet8 on the digits", loc="left", fontsize=11, weight="bold")
axes.grid(axis="y", alpha=0.3)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(fontsize=8, frameon=False)
figure.savefig(out, dpi=150)
