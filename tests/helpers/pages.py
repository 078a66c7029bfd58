"""Pages of the documentation, as commands and code."""

from __future__ import annotations

import re

from helpers.places import ROOT


def blocks(page: str, language: str = "bash") -> list[str]:
    """The code blocks of a page, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def lines(block: str) -> list[str]:
    """The command lines of a block, each whole."""
    joined = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.startswith("#")]
