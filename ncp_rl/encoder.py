"""Encoders from observations to sensory neurons, as features extractors of Stable-Baselines3.

The default for vector observations is `Receptors`: k sensory neurons for each observed quantity, each with its own gain
and offset on that one quantity. They cost little compared with a dense layer, and a sensory neuron keeps the name of
its quantity (`theta_3` is the fourth receptor of theta).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import Tensor, nn

#: Key of a Dict observation that holds the seconds since the last observation, shape (1,).
ELAPSED_TIME = "elapsed_time"

# Potential at which a new synapse opens: the middle of the range from which its `mu` is drawn (`LTCInit.sensory_mu`).
_OPENING = 0.55

# Added to variances, as in Stable-Baselines3's VecNormalize, so that constant quantities are not divided by zero.
_VARIANCE_FLOOR = 1e-8


class Standardize(nn.Module):
    """A layer that standardises quantities by their mean and deviation over all rollouts of the training so far.

    Mean and deviation stand still while a rollout is collected and while PPO learns from it, so that the probability
    ratios of an update refer to the same inputs; `adapt` moves them between two rollouts.

    Attributes:
        mean, std: (D,), mean and deviation of each quantity; 0 and 1 at first.
        count: Number of observations behind them.
        watching: Whether `forward` keeps its input for the next `adapt`.
        seen: The inputs kept since the last `adapt`, (B, D) each.
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        """Start with mean 0 and deviation 1 of `size` quantities."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.watching = False
        self.seen: list[Tensor] = []

    def forward(self, quantities: Tensor) -> Tensor:
        """Standardise (B, D) quantities."""
        if self.watching:
            self.seen.append(quantities.detach().clone())
        return (quantities - self.mean) / self.std

    def adapt(self) -> None:
        """Update mean and deviation by the inputs since the last call (Chan, Golub and LeVeque, 1983)."""
        if not self.seen:
            return
        seen = torch.cat(self.seen).double()
        self.seen = []
        total = self.count + len(seen)
        shift, old = seen.mean(0) - self.mean, self.std.double().square()
        spread = (
            self.count * old + len(seen) * seen.var(0, correction=0) + shift.square() * self.count * len(seen) / total
        )
        self.mean += shift * len(seen) / total
        self.std.copy_((spread / total + _VARIANCE_FLOOR).sqrt())
        self.count.copy_(total)


class Receptors(BaseFeaturesExtractor):
    """An encoder with several sensory neurons for each quantity: `gain * quantity + offset`, both learned.

    Quantities come in their own units: the receptors see them standardised over the training so far (see
    `Standardize`). At the start the receptors of a quantity tile its standardised range from -1 to 1: a new synapse
    behind receptor r opens (every second one closes) where the quantity crosses the middle of the r-th part of the
    range.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        receptors: int = 8,
        names: Sequence[str] | None = None,
        standardize: bool = True,
        normalized_image: bool = False,
    ) -> None:
        """Make receptors for a vector observation; Discrete observations are one-hot, as SB3 encodes them.

        Args:
            observation_space: Any space that flattens to a vector.
            receptors: Sensory neurons per observed quantity.
            names: Names of the D observed quantities; None stands for obs_0, obs_1, ...
            standardize: Whether quantities are standardised first; False suits quantities that lie from -1 to 1.
            normalized_image: As in `NatureCNN`; it decides which spaces are images, which are refused.

        Raises:
            ValueError: The space is an image, receptors is below 1, or there are not as many names as quantities.
        """
        if is_image_space(observation_space, check_channels=False, normalized_image=normalized_image):
            raise ValueError(
                f"Receptors read vectors, but the observation is an image of shape {observation_space.shape}; use "
                "CnnNCPPolicy."
            )
        if receptors < 1:
            raise ValueError(f"receptors must be at least 1, got {receptors}.")
        size = int(get_flattened_obs_dim(observation_space))
        names = _numbered("obs", size) if names is None else list(names)
        if len(names) != size:
            raise ValueError(f"names must name the {size} observed quantities, got {len(names)}: {names}.")
        super().__init__(observation_space, features_dim=size * receptors)
        self.receptors = receptors
        self.observed_names = tuple(names)
        self.sensory_names = tuple(f"{name}_{r}" for name in names for r in range(receptors))
        sign = 1.0 - 2.0 * (torch.arange(receptors) % 2)
        middle = (2.0 * torch.arange(receptors) + 1.0) / receptors - 1.0
        self.standardize = Standardize(size) if standardize else nn.Identity()
        self.gain = nn.Parameter(sign.repeat(size))
        self.offset = nn.Parameter((_OPENING - sign * middle).repeat(size))

    def forward(self, observations: Tensor) -> Tensor:
        """Encode (B, ...) with D quantities as (B, D * receptors), the receptors of a quantity side by side."""
        # An observation without axes gives (B, 1).
        quantities = self.standardize(observations.reshape(observations.shape[0], -1))
        return torch.addcmul(self.offset, quantities.repeat_interleave(self.receptors, dim=1), self.gain)


class MultiInputReceptors(BaseFeaturesExtractor):
    """An encoder of Dict observations: `Receptors` for each vector and a `NatureCNN` for each image, side by side."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        receptors: int = 8,
        cnn_output_dim: int = 32,
        normalized_image: bool = False,
        names: Mapping[str, Sequence[str]] | None = None,
        standardize: bool = True,
    ) -> None:
        """Make an encoder for each key.

        Args:
            observation_space: Dict of vectors and images.
            receptors: Sensory neurons per observed quantity of the vectors.
            cnn_output_dim: Sensory neurons per image; 32 as in the lane-keeping circuit of Lechner et al. (2020).
            normalized_image: As in SB3's `CombinedExtractor`.
            names: Names of the observed quantities, by key of a vector; key_0, key_1, ... for keys without names. Names
                of keys that the observation lacks are ignored, since such keys may be hidden from this encoder.
            standardize: As in `Receptors`.

        Raises:
            ValueError: A key has not as many names as quantities.
        """
        names = names or {}
        encoders: dict[str, BaseFeaturesExtractor] = {}
        observed_names: dict[str, tuple[str, ...]] = {}
        sensory_names: list[str] = []
        for key, space in observation_space.spaces.items():
            if is_image_space(space, normalized_image=normalized_image):
                encoders[key] = NatureCNN(space, cnn_output_dim, normalized_image)
                sensory_names += _numbered(key, cnn_output_dim)
            else:
                size = int(get_flattened_obs_dim(space))
                numbered = [key] if size == 1 else _numbered(key, size)
                receptor_layer = Receptors(space, receptors, names.get(key) or numbered, standardize)
                sensory_names += receptor_layer.sensory_names
                observed_names[key] = receptor_layer.observed_names
                encoders[key] = receptor_layer
        super().__init__(observation_space, features_dim=len(sensory_names))
        self.encoders = nn.ModuleDict({module_name(key): encoder for key, encoder in encoders.items()})
        self.keys = tuple(encoders)
        self.observed_names = observed_names
        self.sensory_names = tuple(sensory_names)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Encode a dict of (B, ...) as (B, features_dim)."""
        encoders = zip(self.keys, self.encoders.values(), strict=True)
        return torch.cat([encoder(observations[key]) for key, encoder in encoders], dim=1)


class KeyFilter(BaseFeaturesExtractor):
    """Shows an extractor some keys of a Dict observation; the elapsed time becomes the last feature, unencoded."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        extractor_class: type[BaseFeaturesExtractor],
        extractor_kwargs: dict[str, Any],
        hidden_keys: frozenset[str] = frozenset(),
    ) -> None:
        """Wrap a new `extractor_class` that sees neither `hidden_keys` nor the elapsed time."""
        shown = {k: s for k, s in observation_space.items() if k not in hidden_keys and k != ELAPSED_TIME}
        if not shown:
            raise ValueError(
                f"The encoder must read at least one key of {list(observation_space)} beside {ELAPSED_TIME!r}; hide "
                f"fewer than {sorted(hidden_keys)}."
            )
        extractor = extractor_class(spaces.Dict(shown), **extractor_kwargs)
        self.timed = ELAPSED_TIME in observation_space.spaces
        if self.timed and get_flattened_obs_dim(observation_space[ELAPSED_TIME]) != 1:
            shape = observation_space[ELAPSED_TIME].shape
            raise ValueError(f"The observation {ELAPSED_TIME!r} must be one number of seconds, got shape {shape}.")
        super().__init__(observation_space, features_dim=extractor.features_dim + self.timed)
        self.extractor = extractor
        self.keys = tuple(shown)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Encode a dict of (B, ...) as (B, features_dim); the last feature is the elapsed time, if any, in seconds."""
        features: Tensor = self.extractor({key: observations[key] for key in self.keys})
        if not self.timed:
            return features
        return torch.cat([features, observations[ELAPSED_TIME].reshape(-1, 1)], dim=1)


def module_name(key: str) -> str:
    """Return the name of a key's module in a `nn.ModuleDict`: the key, escaped where PyTorch refuses it."""
    name = key.replace("%", "%25").replace(".", "%2e")
    return f"%{name}" if not name or hasattr(nn.ModuleDict(), name) else name


def observed_names(encoder: nn.Module) -> dict[str | None, tuple[str, ...]]:
    """Return the names of an encoder's readings by key, or under None without a Dict; {} where it has no names."""
    inner = encoder.extractor if isinstance(encoder, KeyFilter) else encoder
    if isinstance(inner, MultiInputReceptors):
        return {key: names for key, names in inner.observed_names.items()}
    return {None: inner.observed_names} if isinstance(inner, Receptors) else {}


def _numbered(name: str, size: int) -> list[str]:
    return [f"{name}_{i}" for i in range(size)]


def sensory_names(encoder: nn.Module, size: int) -> tuple[str, ...]:
    """Return names of an encoder's `size` outputs: its own `sensory_names`, or feature_0, feature_1, ..."""
    inner = encoder.extractor if isinstance(encoder, KeyFilter) else encoder
    return tuple(getattr(inner, "sensory_names", None) or _numbered("feature", size))
