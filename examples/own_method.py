"""A method of one's own beside the library's: answers averaged over an image and its neighbours. Run it as it is."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from neuralfuse.cli.main import main
from neuralfuse.methods import Method, Protected, TrainingContext


@dataclass(frozen=True)
class Shifts(Method):
    """Averages the logits over the image and four copies of it, moved to each side."""

    name: ClassVar[str] = "shifts"
    needs: ClassVar = ("inputs",)  # what it must have access to
    prepares_for: ClassVar = "nothing"  # of the faults ahead
    pixels: int = 1  # an option: own_method:Shifts:pixels=2

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """Have every perturbed model answer five times."""
        moves = [(0, 0), (self.pixels, 0), (-self.pixels, 0), (0, self.pixels), (0, -self.pixels)]

        def shifted(model):
            return lambda x: sum(model(torch.roll(x, move, (2, 3))) for move in moves)

        return protected.answering(shifted, passes=len(moves))


if __name__ == "__main__":
    methods = ["own_method:Shifts", "batch-statistics", "own_method:Shifts+batch-statistics"]
    main(["compare", *methods, "--scale", "smoke", "--data", "GTSRB", "--base", "VGG11", "--rates", "0.01"])
