"""Pages of the documentation, as commands and code."""

from __future__ import annotations

import re

from helpers.places import ROOT


def blocks(page: str, language: str = "bash") -> list[str]:
    """The code blocks of a page, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
