"""`record_rollouts` and `NeuronRecorder`: they record running policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from tqdm import tqdm

from ncp_rl.circuit import Circuit
from ncp_rl.policy import NCPPolicy, frozen_standardization
from ncp_rl.readings import BadInputError
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.layout import Layout
from ncp_rl.recording.manifest import make_layout, make_manifest, ncp_policy
from ncp_rl.recording.pictures import as_pictures
from ncp_rl.recording.steps import Step
from ncp_rl.recording.trace import PolicyTap
from ncp_rl.recording.writer import RecordingWriter
from ncp_rl.runs import EpisodeBound

Array = npt.NDArray[Any]


def record_rollouts(
    model: OnPolicyAlgorithm,
    env: VecEnv,
    path: Path | str,
    *,
    n_episodes: int = 10,
    deterministic: bool = True,
    seed: int = 0,
    images: bool = False,
    sign_key: Ed25519PrivateKey | None = None,
    progress_bar: bool = True,
) -> Path:
    """Run whole episodes from seeded environments and record them; the actions equal those of `runs.evaluate`.

    Where the policy holds bad readings (`policy.on_bad_input = "hold"`), the recording has the observation as it came
    and, for the circuit, zeros in place of bad readings and an elapsed time of -0.0 s, in which nothing changes: see
    `Episode.held`. Values and log-probabilities of such a step are computed with these zeros.

    Args:
        model: A model with an NCP policy.
        env: Environments side by side, normalised as the model was trained. Environment i gives its first
            (n_episodes + i) // n_envs episodes.
        path: New file.
        n_episodes: Number of episodes in all.
        deterministic: Whether to take the most likely action instead of a sampled one.
        seed: Environment i starts from seed + i; sampled actions follow it too.
        images: Whether to record what the environments render ("rgb_array") and observed images too.
        sign_key: Key that signs the recording; see `read_private_key`.
        progress_bar: Whether to show progress and remaining time.

    Returns:
        The path.

    Raises:
        RecordingError: The policy is not an NCP, the environment renders nothing, the file exists or cannot be written,
            or a reading is bad and is not held; the file keeps the steps before it.
        ncp_rl.runs.RunError: An episode does not end.
    """
    policy, path = ncp_policy(model), Path(path)
    if n_episodes < 1:
        raise RecordingError(f"n_episodes must be at least 1, got {n_episodes}.")
    layout = make_layout(policy, env)
    settings = dict(kind="rollouts", n_episodes=n_episodes, seed=seed, deterministic=deterministic, images=images)
    manifest = make_manifest(model, env, layout, **settings)
    writer = RecordingWriter(path, Circuit.from_policy(policy), layout, manifest, sign_key=sign_key)
    left = np.array([(n_episodes + i) // env.num_envs for i in range(env.num_envs)])
    with (
        writer,
        tqdm(total=n_episodes, desc=f"record {path.stem}", unit="episode", disable=not progress_bar) as progress,
    ):
        env.seed(seed)
        model.set_random_seed(seed)
        policy.set_training_mode(False)
        camera = _Camera(env, layout) if images else None
        bound = EpisodeBound(env)
        try:
            for step in _rollout(policy, env, camera, deterministic):
                writer.append(step._replace(keep=left > 0))
                done = step.terminated | step.truncated
                bound.count(done)
                ended = done & (left > 0)
                left -= ended
                progress.update(int(ended.sum()))
                if not left.any():
                    break
        except BadInputError as error:
            raise RecordingError(f"{error} The file holds what was recorded before, and can be read.") from error
    return path


def _rollout(policy: NCPPolicy, env: VecEnv, camera: _Camera | None, deterministic: bool) -> Any:
    """Yield steps without end."""
    tap, normalize, every = PolicyTap(policy), unwrap_vec_normalize(env), np.ones(env.num_envs, bool)
    try:
        observation: Any = env.reset()
        shape = (1, env.num_envs, policy.wiring.units)
        pi, vf = ((torch.zeros(shape, device=policy.device),) * 2 for _ in range(2))
        states, starts = RNNStates(pi, vf), np.ones(env.num_envs, bool)
        while True:
            raw = _raw_observation(observation, normalize)
            images = camera.look(raw) if camera else {}
            admitted, marked = policy.admit(observation, starts)
            tensors, _ = policy.obs_to_tensor(admitted)
            with torch.no_grad():
                first = torch.as_tensor(marked, dtype=torch.float32, device=policy.device)
                with frozen_standardization(policy):
                    drawn, _, _, states = policy(tensors, states, first, deterministic=deterministic)
            sample = drawn.cpu().numpy()
            action = to_environment(policy, sample)
            observation, reward, starts, infos = env.step(action)
            reward = _raw_reward(reward, normalize)
            yield _step(tap, normalize, raw, sample, action, reward, starts, infos, every, images)
    finally:
        tap.close()


def to_environment(policy: NCPPolicy, sample: Array) -> Array:
    """Return the action that `predict` makes of a sampled one."""
    if not isinstance(policy.action_space, spaces.Box):
        return sample
    if policy.squash_output:
        return np.asarray(policy.unscale_action(sample))
    return np.clip(sample, policy.action_space.low, policy.action_space.high)


def _step(
    tap: PolicyTap,
    normalize: VecNormalize | None,
    observation: Any,
    sample: Array,
    action: Array,
    reward: Array,
    done: Array,
    infos: Any,
    keep: Array,
    images: dict[str, Array],
) -> Step:
    assert tap.seen is not None
    if not np.count_nonzero(done):
        return Step(observation, tap.seen, sample, action, reward, done, done, keep, {}, images)
    truncated = done & [bool(info.get("TimeLimit.truncated", False)) for info in infos]
    ended = np.flatnonzero(done).tolist()
    final = {n: infos[n]["terminal_observation"] for n in ended if "terminal_observation" in infos[n]}
    if normalize is not None:
        # VecNormalize has replaced the environment's last observation by the normalised one.
        final = {n: normalize.unnormalize_obs(last) for n, last in final.items()}
    return Step(observation, tap.seen, sample, action, reward, done & ~truncated, truncated, keep, final, images)


def _raw_observation(observation: Any, normalize: VecNormalize | None) -> Any:
    # get_original_obs() would copy, which is not needed, since nothing changes the arrays.
    return observation if normalize is None else normalize.old_obs


def _raw_reward(reward: Array, normalize: VecNormalize | None) -> Array:
    return reward if normalize is None else np.asarray(normalize.old_reward)


class _Camera:
    """Takes the environments' pictures: what they render, and images that they observe."""

    def __init__(self, env: VecEnv, layout: Layout) -> None:
        self._env, self._layout = env, layout
        self._renders = "rgb_array" in {env.render_mode, *env.get_attr("render_mode")}
        self._observed = [part for part in layout.observed if not part.names]
        if not self._renders and not self._observed:
            raise RecordingError('The environment renders no images to record; make it with render_mode="rgb_array".')

    def look(self, observation: Any) -> dict[str, Array]:
        """Return pictures (N, H, W, 3) or (N, H, W) uint8 by name."""
        images = {}
        if self._renders:
            images["render"] = np.stack([np.asarray(frame) for frame in self._env.get_images()])
        for part in self._observed:
            frames = observation if part.key is None else observation[part.key]
            images[f"observation/{part.key or 'image'}"] = as_pictures(np.asarray(frames))
        return images


class NeuronRecorder(BaseCallback):
    """Records every n-th rollout of a training, each into its own file, with the policy of that rollout.

        model.learn(200_000, callback=NeuronRecorder("recordings", every=10))

    The training has the same actions, random numbers and parameters as without it.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        every: int = 10,
        images: bool = False,
        sign_key: Ed25519PrivateKey | None = None,
    ) -> None:
        """Choose what to record.

        Args:
            folder: Folder for the files rollout_STEPS.mcap, STEPS being the environment steps before the rollout.
            every: The first of this many rollouts is recorded, and the others are not.
            images: Whether to record what the environments render ("rgb_array") and observed images too.
            sign_key: Key that signs the recordings.
        """
        super().__init__()
        if every < 1:
            raise RecordingError(f"every must be at least 1, got {every}.")
        self.paths: list[Path] = []
        self._folder, self._every, self._images, self._sign_key = Path(folder), every, images, sign_key
        self._n_rollouts = 0
        self._tap: PolicyTap | None = None
        self._writer: RecordingWriter | None = None

    def _on_rollout_start(self) -> None:
        if self._n_rollouts % self._every == 0:
            self._begin()
        self._n_rollouts += 1

    def _begin(self) -> None:
        self._close()
        assert isinstance(self.model, RecurrentPPO)
        policy, env = ncp_policy(self.model), self.training_env
        path = self._folder / f"rollout_{self.num_timesteps:010d}.mcap"
        layout = make_layout(policy, env)
        manifest = make_manifest(
            self.model, env, layout, kind="training", timesteps=self.num_timesteps, deterministic=False
        )
        self._writer = RecordingWriter(path, Circuit.from_policy(policy), layout, manifest, sign_key=self._sign_key)
        self.paths.append(path)
        self._camera = _Camera(env, layout) if self._images else None
        self._normalize = unwrap_vec_normalize(env)
        self._observation = _raw_observation(self.model._last_obs, self._normalize)
        self._pictures = self._camera.look(self._observation) if self._camera else {}
        self._every_env = np.ones(env.num_envs, bool)
        self._tap = PolicyTap(policy)

    def _on_step(self) -> bool:
        if self._tap is None or self._writer is None:
            return True
        rollout = self.locals
        reward = _raw_reward(rollout["rewards"], self._normalize)
        actions = rollout["actions"], rollout["clipped_actions"]
        ended = rollout["dones"], rollout["infos"]
        seen = self._tap, self._normalize, self._observation
        self._writer.append(_step(*seen, *actions, reward, *ended, self._every_env, self._pictures))
        self._observation = _raw_observation(rollout["new_obs"], self._normalize)
        if self._camera:
            self._pictures = self._camera.look(self._observation)
        return True

    def _on_rollout_end(self) -> None:
        if self._tap is not None and self._writer is not None:
            self._tap.close()
            self._tap = None
            # The file is finished beside the training; the next recording, or the training's end, waits for it.
            self._writer.finish()

    def _on_training_end(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
