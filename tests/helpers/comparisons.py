"""A comparison that is quick to make."""

from __future__ import annotations

from dataclasses import replace

from neuralfuse.compare import Comparison
from neuralfuse.steps import Scale, load_scale


def _shorter(scale: Scale) -> Scale:
    """The same with base models that are trained for two epochs."""
    recipes = {name: replace(one, qat=replace(one.qat, epochs=2)) for name, one in scale.recipes.items()}
    return replace(scale, recipes=recipes)


SMOKE = _shorter(load_scale("smoke"))
QUICK = Comparison(
    scale=SMOKE, data="GTSRB", base="VGG11", methods=["batch-statistics", "protected-bits:bits=2"], faults=["flip"],
    rates=[0.01], train_rate=0.01, chips=3,
)  # fmt: skip
