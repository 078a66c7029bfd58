"""VGG with BatchNorm: the CIFAR form with one linear layer, and torchvision's form with its 4096-wide classifier."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

# Convolutions per stage. Each stage ends with a 2x2 max-pool. Source: Simonyan & Zisserman (2014), table 1.
STAGES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """A VGG network. Parameters have torchvision's names (``features``, ``classifier``)."""

    def __init__(
        self,
        stages: tuple[int, ...],
        *,
        classes: int,
        channels: int = 3,
        width: int = 64,
        form: Literal["cifar", "imagenet"] = "cifar",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage, depth in enumerate(stages):
            outputs = width * min(2**stage, 8)
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if form == "cifar" else 7)
        self.classifier: nn.Module = nn.Linear(inputs, classes) if form == "cifar" else _wide_head(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, channels, H, W)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def _wide_head(inputs: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, classes),
    )
