"""The lane keeping environments in batches: all cars in one simulation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ncp_envs.lane_keeping import camera
from ncp_envs.lane_keeping.drawing import RENDER_FPS, birds_eye
from ncp_envs.lane_keeping.dynamics import CRASH, DISTANCE, ERROR, INTERVAL, JERK, REWARD, Vehicle
from ncp_envs.lane_keeping.simulation import ACTION_SPACE, OBSERVATION_NAMES, OBSERVATION_SPACE, Simulation

Bools = npt.NDArray[np.bool_]


class LaneKeepingVectorBase(VectorEnv[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]], ABC):
    """Many cars in one simulation, with the trajectories of `SyncVectorEnv` under equal seeds and actions.

        gym.make_vec("ncp_envs:ncp/LaneKeeping-v0", num_envs=64)

    Subclasses define what is observed.

    Attributes:
        interval: (N,) float64, seconds from this observation to the next of each car, to be changed in place.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 1000,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        vehicle: Vehicle | None = None,
    ) -> None:
        """Make the cars.

        Args:
            num_envs: Number of cars.
            max_episode_steps: Steps after which an episode is truncated; None: never.
            render_mode: None or "rgb_array".
            autoreset_mode: As in `SyncVectorEnv`; DISABLED leaves the resets to `options["reset_mask"]`.
            vehicle: Parameters of the cars.
        """
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = self._space(), ACTION_SPACE
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.max_episode_steps = max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = dict(render_modes=["rgb_array"], render_fps=RENDER_FPS, autoreset_mode=self.autoreset_mode)
        self.simulation = Simulation(num_envs, vehicle)
        self.interval = np.full(num_envs, INTERVAL)
        self._done = np.zeros(num_envs, dtype=np.bool_)
        self._generators: list[np.random.Generator] = []

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Start all cars, or those of `options["reset_mask"]`, on new roads; car i from seed + i."""
        mask = self._reset_mask(options)
        seeds = [None] * self.num_envs if seed is None else seed
        seeds = [seeds + i for i in range(self.num_envs)] if isinstance(seeds, int) else seeds
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one number or {self.num_envs} of them, got {len(seeds)}.")
        if not self._generators:
            self._generators = [seeding.np_random(None)[0] for _ in seeds]
        for i in np.flatnonzero(mask).tolist():
            if seeds[i] is not None:
                self._generators[i] = seeding.np_random(seeds[i])[0]
        self.start(mask)
        self._done[mask] = False
        infos = self._infos()
        if not mask.all():
            infos = _where(mask, infos)
        return self.observations(), infos

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64], Bools, Bools, dict[str, Any]]:
        """Steer all cars for their intervals."""
        rewards, terminations, truncations = self.advance(actions)
        observations, infos = self.observations(), self._infos()
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._done.any():
            observations, infos = self._restart(self._done, observations, infos)
        return observations, rewards, terminations, truncations, infos

    def advance(self, actions: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], Bools, Bools]:
        """Drive all cars: the first half of `step`, before it observes the cars and restarts those that are done.

        Returns:
            (N,) rewards, terminations and truncations.
        """
        simulation, waiting = self.simulation, self._done
        if not self._generators:
            raise RuntimeError("The cars have not been started; call reset first.")
        if self.autoreset_mode == AutoresetMode.DISABLED and waiting.any():
            raise RuntimeError(
                f"The episodes of cars {np.flatnonzero(waiting).tolist()} have ended; reset these cars first "
                "(reset_mask)."
            )
        simulation.step(actions, self.interval)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP and waiting.any():
            # What these cars did after their episode's end is overwritten.
            self.start(waiting)
        terminations = simulation.outcome[CRASH] != 0.0
        limit = self.max_episode_steps
        truncations = np.zeros_like(terminations) if limit is None else simulation.steps >= limit
        self._done = terminations | truncations
        return simulation.outcome[REWARD].copy(), terminations, truncations

    def start(self, mask: Bools) -> None:
        """Put the cars of (N,) `mask` at the start of new roads."""
        for i in mask.nonzero()[0].tolist():
            self.simulation.start(i, self._generators[i])

    @property
    def true_state(self) -> npt.NDArray[np.float32]:
        """(N, 11) float32, the true states, which an expert may see; see `Simulation.true_states`."""
        return self.simulation.true_states()

    @abstractmethod
    def observations(self) -> npt.NDArray[Any]:
        """Return the present observations of all cars."""

    @abstractmethod
    def _space(self) -> spaces.Box:
        """Return the space of one car's observation."""

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """Return a frame for each car."""
        if self.render_mode is None:
            return None
        return tuple(birds_eye(self.simulation, i).frame() for i in range(self.num_envs))

    def _reset_mask(self, options: dict[str, Any] | None) -> Bools:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not (isinstance(mask, np.ndarray) and mask.shape == (self.num_envs,) and mask.dtype == np.bool_):
            raise ValueError(f"reset_mask must be a bool array of shape {(self.num_envs,)}, got {mask!r}.")
        return mask

    def _restart(
        self, done: Bools, last: npt.NDArray[Any], last_info: dict[str, Any]
    ) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Start the cars that are done; their last observations go into the infos, in the form of `SyncVectorEnv`."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(done).tolist():
            final_obs[i] = last[i]
        final_info = _where(done, last_info)
        self.start(done)
        infos = self._infos() | dict(final_obs=final_obs, _final_obs=done, final_info=final_info, _final_info=done)
        return self.observations(), infos

    def _infos(self) -> dict[str, Any]:
        outcome, all_cars = self.simulation.outcome, np.ones(self.num_envs, dtype=np.bool_)
        return {
            "lateral_error": outcome[ERROR].copy(),
            "_lateral_error": all_cars,
            "lateral_jerk": outcome[JERK].copy(),
            "_lateral_jerk": all_cars,
            "crash": outcome[CRASH] != 0.0,
            "_crash": all_cars,
            "distance": outcome[DISTANCE].copy(),
            "_distance": all_cars,
        }


class LaneKeepingVectorEnv(LaneKeepingVectorBase):
    """`num_envs` of `ncp/LaneKeeping-v0`."""

    observation_names = OBSERVATION_NAMES
    action_names = ("steering",)

    def observations(self) -> npt.NDArray[Any]:
        """Return the errors and curvatures, (N, 6) float32."""
        return self.simulation.observations.copy()

    def _space(self) -> spaces.Box:
        return OBSERVATION_SPACE


class LaneKeepingCameraVectorEnv(LaneKeepingVectorBase):
    """`num_envs` of `ncp/LaneKeepingCamera-v0`."""

    def __init__(
        self,
        num_envs: int = 1,
        light: float | Sequence[float] = 0.0,
        shadow: float | Sequence[float] = 0.0,
        noise: float | Sequence[float] = 0.0,
        missing_markings: float | Sequence[float] = 0.0,
        rows: tuple[int, int] = (0, camera.HEIGHT),
        pool: int = 1,
        **kwargs: Any,
    ) -> None:
        """Make `num_envs` cars; see `LaneKeepingVectorBase`, `camera.Frame` and `camera.PictureDisturbances`.

        Each level may be one number for all cars, or a sequence of one number for each.

        Raises:
            ValueError: A level is neither one number nor one for each car.
        """
        self.frame = camera.Frame(rows, pool)
        super().__init__(num_envs, **kwargs)
        given = dict(light=light, shadow=shadow, noise=noise, missing_markings=missing_markings)
        for name, levels in given.items():
            if np.shape(levels) not in ((), (num_envs,)):
                raise ValueError(f"{name} must be one level or {num_envs} of them, got {np.shape(levels)}.")
        by_car = np.stack([np.broadcast_to(levels, num_envs) for levels in given.values()], axis=1)
        self.disturbances = [camera.PictureDisturbances(*levels) for levels in by_car.tolist()]

    def observations(self) -> npt.NDArray[Any]:
        """Pictures, (N, 48, 160, 3) uint8 where the whole frame is observed."""
        return self.frame.cut(camera.look(self.simulation, self.disturbances))

    def _space(self) -> spaces.Box:
        return self.frame.space


def _where(mask: Bools, infos: dict[str, Any]) -> dict[str, Any]:
    """Return the infos of the cars in `mask` alone, zeros for the others."""
    return {name: mask if name.startswith("_") else values * mask for name, values in infos.items()}
