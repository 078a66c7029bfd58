"""Write into README.md and the pages in docs/ what comes from records and commands: python results/render.py.

A block stands between two lines, `<!-- comparison FILE.json -->` and `<!-- end -->`; pages/blocks.py has the
kinds. A value stands within a line, `<!--flips: unetl over reestimate at 1%-->+3.2 [+2.5, +4.0]<!--/-->`;
pages/values.py has the names. What stands between marks is written anew, and may be empty. A rendered page shows no
marks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from neuralfuse.errors import NeuralFuseError, unknown_name
from pages.blocks import BLOCKS
from pages.records import PageError, Records
from pages.values import value

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"<!-- (?P<kind>\S+)(?P<text>.*) -->")
END = "<!-- end -->"
VALUE = re.compile(r"<!--(?P<name>[^\s/>](?:(?!--).)*)-->.*?<!--/-->")
BEGINS = re.compile(r"(\s|>|[-*+]\s|\d+\.\s)*<!--\S")


def render(page: str, records: Records) -> str:
    """Return a page with every block and value made from the records.

    Raises:
        PageError: marks do not fit together, or no record has what one names.
        UnknownNameError: there is no such kind of block, or no such value.
    """
    lines: list[str] = []
    inside = False
    for line in page.splitlines():
        block = BLOCK.fullmatch(line)
        if line == END:
            if not inside:
                raise PageError(f"{END!r} must end a block: there is none above it.")
            inside = False
            lines += ["", line]
        elif inside:
            if block:
                raise PageError(f"a block must end with {END!r} before the next: {line!r} comes first.")
        elif block:
            if block["kind"] not in BLOCKS:
                raise unknown_name("kind of block", block["kind"], BLOCKS)
            inside = True
            lines += [line, "", *BLOCKS[block["kind"]](records, block["text"].strip())]
        else:
            lines.append(with_values(line, records))
    if inside:
        raise PageError(f"every block must end with {END!r}: the last one does not.")
    return "\n".join(lines) + "\n"


def with_values(line: str, records: Records) -> str:
    """Return a line with every value made from the records."""
    made, count = VALUE.subn(lambda found: f"<!--{found['name']}-->{value(found['name'], records)}<!--/-->", line)
    if 2 * count != len(re.findall(r"<!--\S", line)):
        raise PageError(f"a value must stand within one line, as in <!--NAME-->1.0<!--/-->: got {line!r}.")
    if count and BEGINS.match(line):
        raise PageError(f"a line must not begin with a value, or Markdown takes all of it for HTML: got {line!r}.")
    return made


if __name__ == "__main__":
    known = Records()
    for path in PAGES:
        try:
            path.write_text(render(path.read_text(encoding="utf-8"), known), encoding="utf-8")
        except (PageError, NeuralFuseError) as error:
            sys.exit(f"{path.relative_to(ROOT)}: {error}")
