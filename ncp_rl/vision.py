"""What a circuit sees through a camera: a small convolutional encoder, and the map of what it looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional

from ncp_rl.encoder import Standardize
from ncp_rl.kernels import exporting

# Where sensory synapses open, and how far around it the features begin (`LTCInit.sensory_mu`).
_MIDDLE, _DEVIATION = 0.5, 0.5
# Added to the variance of an image of values from 0 to 1: a dark frame's noise is not blown up.
_VARIANCE_FLOOR = 4e-4
# Images that go through the convolutions at once on a CPU, where feature maps of more would leave its cache.
_PART = 128


class ConvHead(BaseFeaturesExtractor):
    """Three convolutions, each of which halves the image twice in area, and a linear layer; for `CnnNCPPolicy`.

    Each image is standardised by its own mean and deviation first, so that how light it is takes no part. The features
    begin around 1/2 with a deviation of 1/2, over the observations that the policy sees first.

    Attributes:
        convolutions: The convolutions, whose outputs are rectified.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        features_dim: int = 32,
        channels: Sequence[int] = (16, 24, 32),
        normalized_image: bool = False,
    ) -> None:
        """Make it.

        Args:
            observation_space: Images, channels first.
            features_dim: Sensory inputs of the circuit.
            channels: Of the convolutions; the first has a kernel of 5, the others of 3; all have a stride of 2.
            normalized_image: As in `NatureCNN`.

        Raises:
            ValueError: No image, or one that is too small.
        """
        if not is_image_space(observation_space, check_channels=False, normalized_image=normalized_image):
            raise ValueError(f"ConvHead is for images, got {observation_space}; use Receptors for vectors.")
        super().__init__(observation_space, features_dim)
        sizes = [observation_space.shape[0], *channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2)
            for before, after, kernel in zip(sizes, channels, [5] + [3] * len(channels), strict=False)
        )
        with torch.no_grad():
            maps = self.maps(torch.zeros(1, *observation_space.shape))
        if not maps[-1].numel():
            raise ValueError(f"Of images of {observation_space.shape}, {len(channels)} convolutions leave nothing.")
        self.linear = nn.Linear(maps[-1].numel(), features_dim)
        self.standardize = Standardize(features_dim)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, each image standardised."""
        around = images.flatten(1) - images.flatten(1).mean(1, keepdim=True)
        variance = around.square().sum(1, keepdim=True) / (around.shape[1] - 1)
        standard: Tensor = around / (variance + _VARIANCE_FLOOR).sqrt()
        return standard.view_as(images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The rectified feature maps of each convolution, (B, channels, h, w) each."""
        found = [self.prepare(images)]
        for convolution in self.convolutions:
            found.append(functional.relu(convolution(found[-1]), inplace=True))
        return found[1:]

    def forward(self, observations: Tensor) -> Tensor:
        """(B, C, H, W) images from 0 to 1 -> (B, features_dim)."""
        in_parts = observations.device.type == "cpu" and not exporting()
        parts = observations.split(_PART) if in_parts else (observations,)
        features = torch.cat([self.linear(self.maps(part)[-1].flatten(1)) for part in parts])
        standard: Tensor = self.standardize(features)
        return _MIDDLE + _DEVIATION * standard


def visual_back_prop(head: ConvHead, images: Tensor) -> Tensor:
    """Where in images the features of a head come from: VisualBackProp (Bojarski et al., ICRA 2018).

    The mean map of the deepest convolution is scaled up to the size of the one before it and multiplied with that one's
    mean map, and so on up to the image. No gradient is taken: where nothing was active, nothing was looked at.

    Args:
        head: The head.
        images: (B, C, H, W), as the head takes them.

    Returns:
        (B, H, W) from 0 to 1, where 1 is the most of each image; zeros where nothing was active.
    """
    with torch.no_grad():
        maps = [found.mean(1, keepdim=True) for found in head.maps(images)]  # (B, 1, h, w)
        mask = maps.pop()
        for convolution in reversed(list(head.convolutions)):
            assert isinstance(convolution, nn.Conv2d)
            mask = _spread(mask, convolution, maps[-1].shape[2:] if maps else images.shape[2:])
            mask = mask * maps.pop() if maps else mask
        most = mask.amax((1, 2, 3), keepdim=True)
        return torch.where(most > 0, mask / most, mask)[:, 0]


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """How alike two maps are: SSIM (Wang et al., IEEE Transactions on Image Processing 2004), in windows of 7 x 7.

    Args:
        a: (B, H, W), from 0 to 1.
        b: (B, H, W).

    Returns:
        (B,), 1 for equal maps; the mean over all windows.
    """
    stacked = torch.stack([a, b, a * a, b * b, a * b], 1)  # (B, 5, H, W)
    mean_a, mean_b, square_a, square_b, product = functional.avg_pool2d(stacked, 7, stride=1).unbind(1)
    # Variances and covariance of a window's 49 numbers, without bias.
    var_a, var_b, covariance = (
        49 / 48 * (second - first)
        for second, first in ((square_a, mean_a**2), (square_b, mean_b**2), (product, mean_a * mean_b))
    )
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)
    similarity: Tensor = (luminance * structure).mean((1, 2))
    return similarity


def _spread(mask: Tensor, convolution: nn.Conv2d, size: Sequence[int]) -> Tensor:
    """Scale (B, 1, h, w) up to `size` by a transposed convolution with ones: to whatever each place has seen."""
    ones = torch.ones(1, 1, *convolution.kernel_size, dtype=mask.dtype, device=mask.device)
    stride, padding = convolution.stride, convolution.padding
    assert not isinstance(padding, str)
    reached = [
        (n - 1) * s - 2 * p + k
        for n, s, p, k in zip(mask.shape[2:], stride, padding, convolution.kernel_size, strict=True)
    ]
    rest = [want - got for want, got in zip(size, reached, strict=True)]
    return functional.conv_transpose2d(mask, ones, stride=stride, padding=padding, output_padding=rest)
