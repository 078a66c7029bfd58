"""Blocks of pages: tables, and what commands print. Each is a function of the records and of the words in its mark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from neuralfuse import compare
from neuralfuse.compare.best import Difference
from neuralfuse.compare.show import difference, rate
from neuralfuse.compare.show import heading as comparison_heading
from neuralfuse.compare.show import notes as comparison_notes
from neuralfuse.evaluation import evaluation_text
from neuralfuse.nets import GENERATORS
from neuralfuse.reproduce.show import as_markdown, heading, notes
from pages import commands
from pages.records import Records


def evaluations(records: Records, folder: str) -> Iterator[str]:
    """Yield a table of the evaluations in a folder: one record a row."""
    yield (
        "| seed | generator | its own memory | rate of faulty cells | changed bits | chips | CA | PA | CA(NF) | PA(NF) "
        "| RP [95% interval] | share of CA - PA won back |"
    )
    yield "| --- " * 12 + "|"
    for record in records.folder(folder):
        fuse = record["config"]["fuse"]
        low, high = record["rp_ci95"]
        own = "faulty too" if "generator_memory" in record["config"] else "reliable"
        won = record["rp"] / (record["ca"] - record["pa"])
        yield (
            f"| {fuse['seed']} | {fuse['generator']} | {own} | {record['ber']:.1%} {record['ber_kind']} "
            f"| {record['changed_bits']:.3%} | {record['chips']} | {record['ca']:.2f} "
            f"| {record['pa']:.2f} +- {record['pa_sd']:.2f} | {record['ca_nf']:.2f} "
            f"| {record['pa_nf']:.2f} +- {record['pa_nf_sd']:.2f} "
            f"| {record['rp']:+.2f} [{low:+.2f}, {high:+.2f}] | {won:.0%} |"
        )


def of_paper(records: Records, name: str) -> Iterator[str]:
    """Yield one of the paper's tables, as `neuralfuse reproduce` measured it."""
    record = records[f"paper/{name}"]
    what, setting = heading(record).splitlines()
    yield f"**{what}** ({setting})"
    yield ""
    yield from as_markdown(record)
    yield ""
    yield "; ".join(notes(record)) + f"; {record['run']['seconds'] / 3600:.1f} hours of one core."


def learning(records: Records, name: str) -> Iterator[str]:
    """Yield, for the rows of one of the paper's tables, PA(NF) on validation images and chips as training went on."""
    record = records[f"paper/{name}"]
    rows = [row for row in record["rows"] if row["measured"] is not None]
    modules = {row["step"]: record["steps"][row["step"]]["module"] for row in rows}
    steps = sorted({int(one["step"]) for module in modules.values() for one in record["learning"][module]})
    of = list(rows[0]["of"])
    yield f"| {' | '.join(of)} | {' | '.join(f'step {step}' for step in steps)} |"
    yield "| --- " * (len(of) + len(steps)) + "|"
    for row in rows:
        at = {int(one["step"]): one["pa_nf"] for one in record["learning"][modules[row["step"]]]}
        cells = [f"{at[step]:.1f}" if step in at else "-" for step in steps]
        yield f"| {' | '.join(str(value) for value in row['of'].values())} | {' | '.join(cells)} |"


def comparison(records: Records, name: str) -> Iterator[str]:
    """Yield the tables of a comparison."""
    record = records[f"comparisons/{name}"]
    yield f"**{comparison_heading(record)}**"
    yield ""
    yield from compare.as_markdown(record)
    yield "; ".join(comparison_notes(record)) + "."


def against(records: Records, text: str) -> Iterator[str]:
    """Yield a comparison's methods beside some of them, paired by chip: a record's name, and those methods' names."""
    name, *others = text.split()
    record = records[f"comparisons/{name}"]
    yield f"**{comparison_heading(record)}**"
    for faults, ber in dict.fromkeys((row["faults"], row["ber"]) for row in record["rows"]):
        rows = {
            row["method"]: row
            for row in record["rows"]
            if (row["faults"], row["ber"]) == (faults, ber) and row["measured"] is not None
        }
        yield ""
        yield f"| {rate(faults, ber)} | accuracy | {' | '.join(f'over {other}' for other in others)} |"
        yield "| --- " * (2 + len(others)) + "|"
        for method, row in rows.items():
            measured = row["measured"]
            gains = ("-" if other == method else difference(Difference.of(row, rows[other])) for other in others)
            yield f"| {method} | {measured['pa']:.1f}+-{measured['pa_sd']:.1f} | {' | '.join(gains)} |"


def summary(records: Records, name: str) -> Iterator[str]:
    """Yield what `neuralfuse evaluate` and `demo` print of an evaluation."""
    yield from ("```", *evaluation_text(records[name]).splitlines(), "```")


def demo(records: Records, name: str) -> Iterator[str]:
    """Yield what `neuralfuse demo` printed, and on which machine."""
    record = records[name]
    run, torch = record["run"], record["run"]["versions"]["torch"]
    yield from summary(records, name)
    yield ""
    yield f"{run['hardware']}, {run['threads']} threads, torch {torch}, {run['seconds']:.0f} seconds."


def gateway(records: Records, name: str) -> Iterator[str]:
    """Yield the gateway under load: the server alone, and through the gateway."""
    yield "| tensors | clients | way | requests a second | images a second | p50 | p99 | not answered |"
    yield "| --- " * 8 + "|"
    for row in records[f"gateway/{name}"]["rows"]:
        kind = "binary" if row["binary"] else "JSON"
        bad = sum(count for status, count in row["status"].items() if status != "200")
        yield (
            f"| {kind} | {row['clients']} | {row['way']} | {row['requests_a_second']:.0f} "
            f"| {row['images_a_second']:.0f} | {row['p50_ms']:.1f} ms | {row['p99_ms']:.1f} ms | {bad} |"
        )


def trouble(records: Records, name: str) -> Iterator[str]:
    """Yield the gateway in trouble: how requests ended, and its memory as time went on."""
    run = records[f"gateway/{name}"]["trouble"]
    status, memory = run["status"], run["memory_mib"]
    yield "| minutes | right answers | wrong answers | 502 | 503 | 504 | lost connections | slowest |"
    yield "| --- " * 8 + "|"
    counts = " | ".join(f"{status.get(code, 0):,}" for code in ("200", "-1", "502", "503", "504", "0"))
    yield f"| {run['seconds'] / 60:.0f} | {counts} | {run['longest_seconds']:.1f} s |"
    yield ""
    parts = [memory[len(memory) * part // 6 : len(memory) * (part + 1) // 6] for part in range(6)]
    yield f"| memory, MiB | {' | '.join(f'part {part + 1} of 6' for part in range(6))} |"
    yield "| --- " * 7 + "|"
    for what, of in (("median", lambda part: sorted(part)[len(part) // 2]), ("most", max)):
        yield f"| {what} | {' | '.join(f'{of(part):.0f}' for part in parts)} |"


def printed(_: Records, command: str) -> Iterator[str]:
    """Yield what a command prints."""
    yield from ("```", *commands.printed(command).splitlines(), "```")


# Heads of the table of savings: what is saved of what, by which base model, on what else than the usual hardware.
SAVINGS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("ResNet18: weights, Eq. 6", "paper", "resnet18", {}),
    ("MACs, Eq. 7", "paper_macs", "resnet18", {}),
    ("weights, this array", "weight_memory", "resnet18", {}),
    ("whole inference, 45 nm", "inference", "resnet18", {}),
    ("7 nm", "inference", "resnet18", {"technology": "7nm"}),
    ("45 nm, banks of 1 MiB", "inference", "resnet18", {"bank_kib": 1024}),
    ("VGG11: weights, Eq. 6", "paper", "vgg11", {}),
    ("whole inference, 45 nm", "inference", "vgg11", {}),
)


def savings(_: Records, __: str) -> Iterator[str]:
    """Yield what is left of the saving at 1% faulty cells behind each generator, in percent."""
    yield f"| generator | {' | '.join(head for head, *_ in SAVINGS)} |"
    yield "| --- " * (1 + len(SAVINGS)) + "|"
    for generator in GENERATORS:
        if generator != "uip":
            saved = (commands.energy(base, generator, **hardware)["saving"][of] for _, of, base, hardware in SAVINGS)
            yield f"| {generator} | {' | '.join(f'{value:.1f}' for value in saved)} |"


BLOCKS: dict[str, Callable[[Records, str], Iterator[str]]] = {
    "evaluations": evaluations,
    "paper": of_paper,
    "learning": learning,
    "comparison": comparison,
    "against": against,
    "summary": summary,
    "demo": demo,
    "gateway": gateway,
    "trouble": trouble,
    "output": printed,
    "savings": savings,
}
