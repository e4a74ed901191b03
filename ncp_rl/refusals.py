"""Checks that refuse, while a model is made, what NCP policies and their algorithms do not serve."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN

from ncp_rl.encoder import MultiInputReceptors, Receptors, module_name

# Side of the smallest image that NatureCNN's three layers take.
_SMALLEST_IMAGE = 36
# A Box of floats with one, three or four channels and at least this many rows and columns is treated as an image.
_IMAGE_SIZE = 16


def check_algorithm(policy_name: str) -> None:
    """Refuse an algorithm that keeps no states; to be called while an algorithm makes its policy.

    Stable-Baselines3 does not tell a policy which algorithm makes it, so the call stack is searched for it.

    Raises:
        TypeError: PPO, A2C, TRPO or an off-policy algorithm makes this policy.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "_setup_model":
        frame = frame.f_back
    maker = frame.f_locals.get("self") if frame is not None else None
    if isinstance(maker, (PPO, A2C, TRPO, OffPolicyAlgorithm)):
        raise TypeError(
            f"{policy_name} needs an algorithm that carries its state from step to step, got {type(maker).__name__}; "
            "use "
            "sb3_contrib.RecurrentPPO."
        )


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuse spaces that Stable-Baselines3's recurrent algorithms do not serve, or serve with wrong actions.

    Raises:
        ValueError: The message names the space and what to do.
    """
    _check_action_space(action_space)
    if not isinstance(observation_space, spaces.Dict):
        _check_observation_space("The observation space", observation_space)
        return
    if not observation_space.spaces:
        raise ValueError("The observation space must have at least one key, got a Dict without keys.")
    for key, space in observation_space.spaces.items():
        _check_observation_space(f"The observation space of key {key!r}", space)


def _check_action_space(space: spaces.Space[Any]) -> None:
    cure = ""
    if isinstance(space, spaces.Box):
        if not np.issubdtype(space.dtype, np.floating):
            cure = (
                "holds whole numbers, and a policy draws real ones, which lie outside it; make it a MultiDiscrete, or "
                "round in the environment (gymnasium.wrappers.TransformAction over a Box of float32)"
            )
        elif not np.prod(space.shape):
            cure = "holds no number; give the environment an action of at least one"
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        if np.any(space.start):
            cure = (
                "does not count from 0, and Stable-Baselines3 does: its actions lie outside; add the start in the "
                "environment (gymnasium.wrappers.TransformAction over a space that counts from 0)"
            )
        elif len(space.shape or ()) > 1:
            cure = (
                "has several axes, and Stable-Baselines3 takes one; reshape in the environment "
                "(gymnasium.wrappers.TransformAction over a flat MultiDiscrete)"
            )
    elif isinstance(space, spaces.MultiBinary):
        if len(space.shape or ()) > 1:
            cure = (
                "has several axes, and Stable-Baselines3 takes one; reshape in the environment "
                "(gymnasium.wrappers.TransformAction over a flat MultiBinary)"
            )
    else:
        cure = "is of a kind that policies do not serve; make it a Box, Discrete, MultiDiscrete or MultiBinary"
    if cure:
        raise ValueError(f"The action space {_in_a_line(space)} {cure}.")


def _in_a_line(space: spaces.Space[Any]) -> str:
    return " ".join(str(space).split())


def _check_observation_space(name: str, space: spaces.Space[Any]) -> None:
    cure = ""
    flatten = "wrap the environment in gymnasium.wrappers.FlattenObservation"
    if isinstance(space, spaces.Box):
        if not np.prod(space.shape):
            cure = "holds no number; leave it out of the observation"
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        if np.any(space.start):
            cure = f"does not count from 0, as Stable-Baselines3's one-hot code does; subtract the start, or {flatten}"
        elif len(space.shape or ()) > 1:
            cure = f"has several axes, and Stable-Baselines3's one-hot code takes one; {flatten}"
    elif isinstance(space, (spaces.Dict, spaces.Tuple)):
        cure = f"is nested, and Stable-Baselines3 takes a Dict of arrays alone; {flatten}"
    elif not isinstance(space, spaces.MultiBinary):
        cure = (
            "is of a kind that policies do not serve; let the environment give a Box, Discrete, MultiDiscrete, "
            "MultiBinary or a Dict of these"
        )
    if cure:
        raise ValueError(f"{name}, {_in_a_line(space)}, {cure}.")


def check_encoder(
    policy_name: str,
    space: spaces.Space[Any],
    encoder: type[BaseFeaturesExtractor],
    arguments: Mapping[str, Any],
    *,
    normalize_images: bool,
) -> None:
    """Refuse a policy class, or an encoder of ncp_rl or Stable-Baselines3, that does not fit the observation.

    Args:
        policy_name: Name of the policy class.
        space: Space of the observations that the encoder reads.
        encoder: Class of the encoder; a user's own class is not checked.
        arguments: Arguments of the encoder.
        normalize_images: Whether the policy scales images; if not, its images are scaled floats already.

    Raises:
        ValueError: The message names the class that fits, or what to change in the observation.
    """
    if not issubclass(encoder, (Receptors, MultiInputReceptors, NatureCNN, FlattenExtractor, CombinedExtractor)):
        return
    reads_dict = issubclass(encoder, (MultiInputReceptors, CombinedExtractor))
    parts: dict[str | None, spaces.Space[Any]] = {None: space}
    if isinstance(space, spaces.Dict):
        parts = {key: part for key, part in space.spaces.items()}
        if not reads_dict:
            raise ValueError(
                f"{policy_name} with {encoder.__name__} reads one array, the observation is a Dict of "
                f"{', '.join(map(repr, parts))}; use MultiInputNCPPolicy."
            )
    elif reads_dict:
        fitting = "CnnNCPPolicy" if is_image_space(space) else "NCPPolicy"
        raise ValueError(
            f"{policy_name} with {encoder.__name__} reads Dict observations, the observation space is {space}; use "
            f"{fitting}."
        )
    scaled = not normalize_images and issubclass(encoder, (NatureCNN, CombinedExtractor))  # As SB3 then tells them.
    normalized_image = scaled or bool(arguments.get("normalized_image", False))
    for key, part in parts.items():
        name = "The observation" if key is None else f"The observation {key!r}"
        _check_image(policy_name, name, part, encoder, normalized_image)
        _check_upstream_encoder(name, key, part, encoder)


def _check_image(
    policy_name: str, name: str, space: spaces.Space[Any], encoder: type[BaseFeaturesExtractor], normalized: bool
) -> None:
    by_cnn = issubclass(encoder, (NatureCNN, MultiInputReceptors, CombinedExtractor))
    if is_image_space(space, normalized_image=normalized):
        if by_cnn and min(sorted(space.shape or ())[1:]) < _SMALLEST_IMAGE:
            raise ValueError(
                f"{name} is an image of shape {space.shape}, and NatureCNN takes {_SMALLEST_IMAGE} x {_SMALLEST_IMAGE} "
                "pixels or more; enlarge it (gymnasium.wrappers.ResizeObservation), or name another encoder "
                "(features_extractor_class)."
            )
        return
    if _looks_like_image(space) and not issubclass(encoder, FlattenExtractor):
        raise ValueError(
            f"{name} has the shape of an image, {space.shape}, but holds {space.dtype} and would be read number by "
            f"number, {int(np.prod(space.shape or ())):,} of them; if VecNormalize normalises it, leave it out "
            "(norm_obs_keys names the others, norm_obs=False where there are none), else give it as uint8 from 0 to "
            "255, or flatten it (gymnasium.wrappers.FlattenObservation) if it is no image."
        )
    if issubclass(encoder, NatureCNN):
        raise ValueError(f"{policy_name} with NatureCNN reads images, the observation space is {space}; use NCPPolicy.")


def _looks_like_image(space: spaces.Space[Any]) -> bool:
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return False
    first, _, last = space.shape
    channels, *sides = sorted(space.shape)
    return channels in (1, 3, 4) and channels in (first, last) and min(sides) >= _IMAGE_SIZE


def _check_upstream_encoder(
    name: str, key: str | None, space: spaces.Space[Any], encoder: type[BaseFeaturesExtractor]
) -> None:
    if not issubclass(encoder, (FlattenExtractor, CombinedExtractor)):
        return
    if isinstance(space, spaces.Box) and space.shape == ():
        raise ValueError(f"{name} has no axes, which {encoder.__name__} cannot read; give it the shape (1,).")
    if key is not None and key != module_name(key):
        raise ValueError(
            f"{name} has a name that {encoder.__name__} cannot hold; rename it, or use MultiInputReceptors."
        )
