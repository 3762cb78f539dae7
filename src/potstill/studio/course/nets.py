"""Two convolutional nets for small images: one to teach, one to learn. Any size of image, since both pool to 2×2.

They are plain modules of the user's own, as any net may be (`student: {kind: module, source: convnets.py:SmallNet}`).
Objectives reach their layers by path: `stage1`, `stage2`.
"""

from __future__ import annotations

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Two convolutions and a linear layer: about 18·width² + 92·width numbers. No normalisation, no dropout.

    Args:
        width: channels of the first convolution; the second has twice as many.
        channels: of the image.
        classes: how many there are.
    """

    def __init__(self, width: int = 8, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2))
        self.head = nn.Linear(2 * width * 4, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        logits: Tensor = self.head(self.stage2(self.stage1(pixels)).flatten(1))
        return logits


class LargeNet(nn.Module):
    """Four convolutions with batch normalisation, dropout before the last layer: about 63·width² + 101·width numbers.

    Args: as `SmallNet`, and
        dropout: the share of features that is dropped while it trains.
    """

    def __init__(self, width: int = 32, channels: int = 1, classes: int = 10, dropout: float = 0.3) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(_convolution(channels, width), _convolution(width, width), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(
            _convolution(width, 2 * width), _convolution(2 * width, 2 * width), nn.AdaptiveMaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width * 4, classes))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        logits: Tensor = self.head(self.stage2(self.stage1(pixels)).flatten(1))
        return logits


def _convolution(inward: int, outward: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inward, outward, 3, padding=1, bias=False), nn.BatchNorm2d(outward), nn.ReLU())
