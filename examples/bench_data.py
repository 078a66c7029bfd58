"""Stand-in for a test bench: writes what one would bring from a lab, a chip's fault maps and a voltage curve.

The chip is made up, with the 0 -> 1 bias published for one measured chip (Stutz et al., MLSys 2021, supplementary
material) and with weak columns, whose share is our assumption. Usage: python bench_data.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from neuralfuse.faults import Synthetic, synthetic_map

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
points = {0.72: 0.0006, 0.70: 0.003, 0.68: 0.013, 0.66: 0.047}  # supply voltage: rate of faulty cells

like = Synthetic.like("stutz-2-high", column_share=0.3, within=0.5)
rows, columns = 512, 256
models = [Synthetic(ber=ber, zero_to_one=like.zero_to_one, column_share=0.3, within=0.5) for ber in points.values()]
chip = synthetic_map(models, seed=3, rows=rows, columns=columns, voltages=list(points))

for voltage in points:
    cells = chip.cells[chip.index(voltage), 0]
    for polarity in (0, 1):
        name = folder / f"fmap_sa{polarity}_v_{voltage:.2f}.txt"
        np.savetxt(name, cells == polarity + 1, fmt="%d", delimiter=",")

lines = [f"{voltage},{ber}" for voltage, ber in points.items()]
header = "# source: made up by examples/bench_data.py\n# unit: V\nvoltage,ber\n"
(folder / "curve.csv").write_text(header + "\n".join(["0.78,0", *lines]) + "\n")
print(f"Wrote {2 * len(points)} maps of {rows} x {columns} cells and curve.csv to {folder}.")
