"""Accesses by closed form beside the simulator SCALE-Sim: the table of docs/energy.md.

    python benchmarks/scale_sim.py                       # the six generators, minutes
    python benchmarks/scale_sim.py --networks all        # all eleven networks of the paper
    python benchmarks/scale_sim.py --dataflows ws is     # other dataflows too

Needs the simulator: pip install scalesim==2.0.2. A layer that occurs twice is simulated once.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from typing import NamedTuple

import torch
from timing import table

from neuralfuse.energy import Accesses, Operation, SystolicArray, trace
from neuralfuse.energy.paper import WEIGHTS_PER_ACCESS, SimulatorLayer, paper_layers
from neuralfuse.nets import BASE_MODELS, GENERATORS

GENERATOR_NAMES = [name for name in GENERATORS if name != "uip"]
BASE_NAMES = ["resnet18", "resnet50", "vgg11", "vgg16", "vgg19"]
DATAFLOWS = {"os": "output-stationary", "ws": "weight-stationary", "is": "input-stationary"}


class Row(NamedTuple):
    """One line of a SCALE-Sim topology, without its name."""

    height: int
    width: int
    kernel_height: int
    kernel_width: int
    channels: int
    filters: int
    stride_height: int
    stride_width: int


def row_of(layer: SimulatorLayer) -> Row:
    """Return a layer as the simulator takes it."""
    return Row(*layer.size, *layer.kernel, layer.channels, layer.filters, *layer.stride)


@cache
def simulated(row: Row, dataflow: str, rows: int = 32, columns: int = 32, memory: bool = True) -> Accesses:
    """Return what the simulator counts for one layer.

    Args:
        row: The layer.
        dataflow: os, ws or is.
        rows: Height of the array.
        columns: Its width.
        memory: Run the memories too, as a whole run of the simulator does; the counts are the array's in both cases.
    """
    from scalesim.scale_config import scale_config  # noqa: PLC0415
    from scalesim.single_layer_sim import single_layer_sim  # noqa: PLC0415
    from scalesim.topology_utils import topologies  # noqa: PLC0415

    config, topology, layer = scale_config(), topologies(), single_layer_sim()
    config.set_arr_dims(rows, columns)
    config.set_dataflow(dataflow)
    config.set_buffer_sizes_kb(256, 256, 256)
    config.set_bw_mode_to_calc()
    config.force_valid()
    topology.load_layer_params_from_list("layer", ["layer", *row])
    layer.set_params(layer_id=0, config_obj=config, topology_obj=topology, verbose=False)
    if memory:
        layer.run()
    else:
        parts = layer.op_mat_obj
        (_, inputs), (_, weights), (_, outputs) = (
            parts.get_ifmap_matrix(), parts.get_filter_matrix(), parts.get_ofmap_matrix(),
        )  # fmt: skip
        layer.compute_system.set_params(
            config_obj=config, ifmap_op_mat=inputs, filter_op_mat=weights, ofmap_op_mat=outputs
        )
        layer.compute_system.create_demand_matrices()
    array, writes = layer.compute_system, int(layer.compute_system.get_ofmap_requests())
    if dataflow == "os":  # 2.0.2 adds the height and the width of each fold to its outputs: a slip, taken off again
        writes -= (rows + columns) * array.row_fold * array.col_fold
    return Accesses(
        weight_reads=int(array.get_filter_requests()),
        input_reads=int(array.get_ifmap_requests()),
        output_writes=writes,
    )


def layers_of(name: str) -> list[SimulatorLayer]:
    """Return the layers of one of the paper's networks as the paper gave them to the simulator."""
    with torch.device("meta"):
        network = (
            GENERATORS[name](3, (32, 32)) if name in GENERATORS else BASE_MODELS[name].build(classes=10, channels=3)
        )
    return paper_layers(trace(network, torch.zeros(1, 3, 32, 32, device="meta")))


def closed_form(layer: SimulatorLayer, array: SystolicArray) -> Accesses:
    """Return what the closed form counts for one layer."""
    height, width = layer.kernel
    found = array.accesses(
        Operation(
            layer=layer.layer, kind="product", rows=layer.rows, inner=height * width * layer.channels,
            columns=layer.filters, weight=layer.layer,
        )
    )  # fmt: skip
    return Accesses(weight_reads=found.weight_reads, input_reads=found.input_reads, output_writes=found.output_writes)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=GENERATOR_NAMES, help="names, or all")
    parser.add_argument("--dataflows", nargs="+", default=["os"], choices=list(DATAFLOWS))
    parser.add_argument("--array-only", action="store_true", help="leave the simulator's memories out; the same counts")
    options = parser.parse_args()
    names = BASE_NAMES + GENERATOR_NAMES if options.networks == ["all"] else options.networks
    lines = []
    for dataflow in options.dataflows:
        array = SystolicArray(dataflow=DATAFLOWS[dataflow])
        for name in names:
            layers, start = layers_of(name), time.perf_counter()
            theirs = sum(
                (simulated(row_of(one), dataflow, memory=not options.array_only) for one in layers), Accesses()
            )
            taken, start = time.perf_counter() - start, time.perf_counter()
            ours = sum((closed_form(one, array) for one in layers), Accesses())
            own = time.perf_counter() - start
            moved = (ours.weight_reads, ours.input_reads, ours.output_writes)
            lines.append(
                [
                    name, DATAFLOWS[dataflow], str(len(layers)), *(f"{value:,}" for value in moved),
                    f"{ours.weight_reads / WEIGHTS_PER_ACCESS:,.0f}", "yes" if ours == theirs else f"NO: {theirs}",
                    f"{taken:.1f} s", f"{1e6 * own:.0f} us",
                ]
            )  # fmt: skip
            print(f"{name}, {dataflow}: {'equal' if ours == theirs else 'NOT EQUAL'} in {taken:.1f} s", flush=True)
    head = [
        "network", "dataflow", "layers", "weights read", "inputs read", "outputs written", "in words of 64 bits",
        "SCALE-Sim gives the same", "its time", "ours",
    ]  # fmt: skip
    print("\n" + table(head, lines))


if __name__ == "__main__":
    main()
