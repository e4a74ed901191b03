"""Behaviour cloning over whole sequences: a policy learns the actions of demonstrations.

Episodes follow each other in lanes; a step of the optimizer uses the same stretch of every lane, and the recurrent
states are carried from stretch to stretch without gradient (truncated back-propagation through time).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ncp_rl.encoder import KeyFilter, Standardize
from ncp_rl.lessons import DEFAULT, Lessons
from ncp_rl.teach.demonstrations import Demonstration, Sequences, sequences, take_steps

#: The learning rate falls to this share of its initial value.
_LAST_RATE = 0.02
# Largest number of observations that a new standardisation is computed from.
_N_MOMENTS = 4096
# Smallest error of an action, in half ranges, that the deviation of sampled actions is set to.
_LEAST_ERROR = 0.01
# Error of an action, in half ranges, beyond which the squared error becomes linear.
_HUBER = 0.2


@dataclass(frozen=True)
class Taught:
    """The result of teaching.

    Attributes:
        loss: (E,), mean loss over the steps of each epoch.
        held_out_loss: (E,), mean loss over the held-out episodes after each epoch; the loss itself where none were held
            out.
        best_epoch: Epoch whose model is kept, counted from 0.
        error: Error of the kept model over the held-out episodes: root mean squared error of the action mean, in half
            ranges of the action; for discrete actions, the share of actions that differ from the expert's.
    """

    loss: tuple[float, ...]
    held_out_loss: tuple[float, ...]
    best_epoch: int
    error: float


def clone(
    model: OnPolicyAlgorithm,
    demonstrations: Sequence[Demonstration],
    lessons: Lessons = DEFAULT,
    *,
    progress_bar: bool = False,
) -> Taught:
    """Teach a model's actor the actions of demonstrations; the critic changes only by an encoder that both share.

    Where the loss is an error of the action mean, the deviation of sampled actions becomes that error on held-out
    episodes, so that reinforcement learning can go on from there.

    Where the model's environment normalises observations, so are demonstrations, by statistics that are
    computed from them if there are none yet; the same holds for the standardisation of `Receptors`.

    Args:
        model: A model of PPO or RecurrentPPO. Its logger, where it has one, gets teach/loss and teach/held_out_loss.
        demonstrations: Demonstrations to learn.
        lessons: Settings of the teaching.
        progress_bar: Whether to show progress.

    Raises:
        ValueError: There are no demonstrations, or too few to hold some out, or they do not fit the model's spaces.
    """
    return Imitation(model, lessons).learn(demonstrations, progress_bar=progress_bar)


class Imitation:
    """A model that is taught, with its optimizer; demonstrations may come in rounds.

    Attributes:
        n_steps: Number of steps learned from so far, repeated ones included.
    """

    def __init__(self, model: OnPolicyAlgorithm, lessons: Lessons) -> None:
        """Make a new optimizer of the policy's kind, since reinforcement learning later starts with its own."""
        self.model, self.lessons = model, lessons
        self.policy, self.normalize = model.policy, model.get_vec_normalize_env()
        self.loss = lessons.loss or ("huber" if isinstance(model.action_space, spaces.Box) else "likelihood")
        if self.loss != "likelihood" and not isinstance(model.action_space, spaces.Box):
            raise ValueError(
                f'loss must be "likelihood" for actions in {model.action_space}, which have no mean, got {self.loss!r}.'
            )
        groups = [{k: v for k, v in group.items() if k != "lr"} for group in self.policy.optimizer.param_groups]
        kind: Any = type(self.policy.optimizer)
        self.optimizer: torch.optim.Optimizer = kind(groups, lr=lessons.learning_rate)
        self.readout: nn.Linear | None = None
        self.takes_moments = [m for m in self.policy.modules() if isinstance(m, Standardize) and not m.count]
        self.n_steps = 0

    def learn(self, demonstrations: Sequence[Demonstration], *, progress_bar: bool = False) -> Taught:
        """Learn from demonstrations, including those of earlier rounds; see `clone`."""
        lessons, policy = self.lessons, self.policy
        check_demonstrations(demonstrations, policy.observation_space, policy.action_space)
        if lessons.readout and any(demonstration.privileged is None for demonstration in demonstrations):
            raise ValueError(
                "readout needs demonstrations that hold what the expert saw, and these do not; set readout=0."
            )
        shown, held_out = _split(demonstrations, lessons)
        self._take_moments(shown)
        self.scale = self._scale(shown)
        rng = np.random.default_rng(lessons.seed)
        losses: list[float] = []
        held_out_losses: list[float] = []
        best: dict[str, Any] = {}
        with tqdm(range(lessons.n_epochs), desc="learn", unit="epoch", disable=not progress_bar) as epochs:
            for epoch in epochs:
                losses.append(self._epoch(shown, rng, epoch))
                if not math.isfinite(losses[-1]):
                    raise ValueError(
                        f"The loss must stay finite, but that of epoch {epoch} is {losses[-1]}; use a smaller "
                        "learning_rate."
                    )
                held_out_losses.append(self.judge(held_out)[0] if held_out else losses[-1])
                epochs.set_postfix(loss=losses[-1], held_out=held_out_losses[-1])
                self._log({"teach/loss": losses[-1], "teach/held_out_loss": held_out_losses[-1]})
                if held_out_losses[-1] == min(held_out_losses):
                    best = copy.deepcopy(policy.state_dict())
                elif epoch - int(np.argmin(held_out_losses)) >= lessons.patience:
                    break
        policy.load_state_dict(best)
        error = self.judge(held_out or shown)[1]
        self._explore(error)
        return Taught(tuple(losses), tuple(held_out_losses), int(np.argmin(held_out_losses)), error)

    def _explore(self, error: float) -> None:
        """Set the deviation of sampled actions to the error of the mean, as maximum likelihood would.

        Other losses than the likelihood leave the deviation as it began, often 1: a reinforcement learning that goes on
        from there would lose what was taught to its own noise. gSDE's deviation has other units, and is left alone.
        """
        if self.loss == "likelihood" or not isinstance(self.policy.action_dist, DiagGaussianDistribution):
            return
        with torch.no_grad():
            self.policy.log_std.copy_((self.scale * max(error, _LEAST_ERROR)).log().expand_as(self.policy.log_std))

    def judge(self, demonstrations: Sequence[Demonstration]) -> tuple[float, float]:
        """Return mean loss and error (see `Taught`) over demonstrations, without learning from them."""
        losses, errors, n = 0.0, 0.0, 0
        self.policy.set_training_mode(False)
        with torch.no_grad():
            for batch, distribution, _ in self._walk(demonstrations, np.arange(len(demonstrations))):
                real = torch.from_numpy(batch.real)
                losses += float(self._losses(distribution, batch)[real].sum())
                errors += float(self._errors(distribution, batch)[real].sum())
                n += int(batch.real.sum())
        mean = errors / n
        return losses / n, mean**0.5 if isinstance(self.model.action_space, spaces.Box) else mean

    def _epoch(self, demonstrations: Sequence[Demonstration], rng: np.random.Generator, epoch: int) -> float:
        """Learn from all demonstrations once, and return the mean loss of the action."""
        lessons, total, n = self.lessons, 0.0, 0
        progress = epoch / lessons.n_epochs
        rate = _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = lessons.learning_rate * rate
        self.policy.set_training_mode(True)
        for batch, distribution, features in self._walk(demonstrations, rng.permutation(len(demonstrations))):
            real = torch.from_numpy(batch.real).to(self.model.device)
            loss = self._losses(distribution, batch)[real].mean()
            total += loss.item() * int(batch.real.sum())
            n += int(batch.real.sum())
            if features is not None:
                loss = loss + self._encoder_loss(features, batch, real)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.policy.parameters(), lessons.max_grad_norm)
            self.optimizer.step()
        self.n_steps += n
        return total / n

    def _walk(
        self, demonstrations: Sequence[Demonstration], order: npt.NDArray[np.int64]
    ) -> Iterator[tuple[Sequences, Distribution, Tensor | None]]:
        """Yield the policy's distributions along demonstrations, and its encoder's features where they are needed."""
        policy, lessons, device = self.policy, self.lessons, self.model.device
        states: tuple[Tensor, ...] = ()
        if isinstance(policy, RecurrentActorCriticPolicy):
            layers, _, units = policy.lstm_hidden_state_shape
            states = tuple(torch.zeros(layers, lessons.n_sequences, units, device=device) for _ in range(2))
        for batch in sequences(demonstrations, lessons.n_sequences, lessons.sequence_length, order):
            observation = self._tensor(batch.observation)
            with _features_of(policy, bool(lessons.readout or lessons.feature_pull)) as features:
                if isinstance(policy, RecurrentActorCriticPolicy):
                    lanes = torch.from_numpy(batch.lanes).to(device)
                    starts = torch.from_numpy(batch.starts).float().to(device)
                    before = states[0][:, lanes], states[1][:, lanes]
                    distribution, after = policy.get_distribution(observation, before, starts)
                    for state, new in zip(states, after, strict=True):
                        state[:, lanes] = new.detach()
                else:
                    distribution = policy.get_distribution(observation)
            yield batch, distribution, features[0] if features else None

    def _tensor(self, observation: Any) -> Any:
        """Normalise observations (B, ...) of the environment as the policy takes them."""
        if self.normalize is not None:
            observation = self.normalize.normalize_obs(observation)
        return self.policy.obs_to_tensor(observation)[0]

    def _losses(self, distribution: Distribution, batch: Sequences) -> Tensor:
        """Return the loss of each step, (B,)."""
        action = self._target(batch)
        if self.loss == "likelihood":
            return -distribution.log_prob(action)
        error = (distribution.mode() - action) / self.scale
        if self.loss == "squared":
            return error.square().flatten(1).sum(1)
        return 2 * functional.huber_loss(error, torch.zeros_like(error), "none", _HUBER).flatten(1).sum(1)

    def _errors(self, distribution: Distribution, batch: Sequences) -> Tensor:
        """Return squared errors averaged over actions, (B,); 1 where a discrete action differs."""
        mode, action = distribution.mode(), self._target(batch)
        if isinstance(self.model.action_space, spaces.Box):
            return ((mode - action) / self.scale).square().flatten(1).mean(1)
        return (mode != action).reshape(len(mode), -1).any(1).float()

    def _target(self, batch: Sequences) -> Tensor:
        """Return demonstrated actions (B, ...) in the units of the policy's distribution."""
        action, space = batch.action, self.model.action_space
        if isinstance(space, spaces.Box):
            action = np.clip(action, space.low, space.high).reshape(len(action), -1)
            action = self.policy.scale_action(action) if self.policy.squash_output else action
        tensor = torch.as_tensor(action, device=self.model.device)
        return tensor.long() if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else tensor.float()

    def _scale(self, shown: Sequence[Demonstration]) -> Tensor:
        """Return the unit of errors in the units of the distribution, (A,): half the range of a bounded action."""
        space = self.model.action_space
        if not isinstance(space, spaces.Box) or self.policy.squash_output:
            return torch.ones(1, device=self.model.device)
        if space.is_bounded():
            scale = (space.high - space.low).flatten() / 2
        else:
            scale = np.concatenate([d.action.reshape(len(d), -1) for d in shown]).std(0)
            scale = np.where(scale > 0, scale, 1.0)
        return torch.as_tensor(scale, dtype=torch.float32, device=self.model.device)

    def _encoder_loss(self, features: Tensor, batch: Sequences, real: Tensor) -> Tensor:
        """Return the loss of features that lie far from 1/2, or do not predict what the expert saw."""
        loss: Tensor = self.lessons.feature_pull * (features[real] - 0.5).square().mean()
        if not self.lessons.readout:
            return loss
        assert batch.privileged is not None
        seen = torch.as_tensor(batch.privileged, dtype=torch.float32, device=features.device).flatten(1)
        if self.readout is None:
            self.readout = nn.Linear(features.shape[1], seen.shape[1], device=features.device)
            group: dict[str, Any] = dict(params=list(self.readout.parameters()))
            self.optimizer.add_param_group(group | ({"lr_scale": 1.0} if "lr_scale" in self.optimizer.defaults else {}))
        told: Tensor = (self.readout(features) - seen)[real].square().mean()
        return loss + self.lessons.readout * told

    def _take_moments(self, shown: Sequence[Demonstration]) -> None:
        """Compute means and deviations of observations from demonstrations, where the model has none."""
        if not self.takes_moments and (self.normalize is None or not self.normalize.norm_obs):
            return
        rows = np.random.default_rng(0).permutation(sum(map(len, shown)))[:_N_MOMENTS]
        some = take_steps(shown, np.sort(rows))
        normalize = self.normalize
        if normalize is not None and normalize.norm_obs and normalize.training:
            moments: Any = normalize.obs_rms
            for key, one in moments.items() if isinstance(moments, dict) else [(None, moments)]:
                if one.count < 1:
                    one.update(some if key is None else some[key])
        for module in self.takes_moments:
            module.count.zero_()
            module.watching = True
        with torch.no_grad():
            for extractor in {self.policy.pi_features_extractor, self.policy.vf_features_extractor}:
                BasePolicy.extract_features(self.policy, self._tensor(some), extractor)
        for module in self.takes_moments:
            module.watching = False
            module.adapt()

    def _log(self, figures: dict[str, float]) -> None:
        if not hasattr(self.model, "_logger"):
            return
        for name, figure in figures.items():
            self.model.logger.record(name, figure)
        self.model.logger.dump(self.n_steps)


@contextmanager
def _features_of(policy: ActorCriticPolicy, asked: bool) -> Iterator[list[Tensor]]:
    """Yield a list to which the actor's encoder appends its features, where they are needed."""
    found: list[Tensor] = []
    if not asked:
        yield found
        return
    encoder = policy.pi_features_extractor
    encoder = encoder.extractor if isinstance(encoder, KeyFilter) else encoder
    hook = encoder.register_forward_hook(lambda *call: found.append(call[2]))
    try:
        yield found
    finally:
        hook.remove()


def check_demonstrations(
    demonstrations: Sequence[Demonstration], observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    """Refuse demonstrations that a policy for these spaces cannot learn from.

    Raises:
        ValueError: The message names the first demonstration that does not fit, and where.
    """
    if not sum(map(len, demonstrations)):
        raise ValueError("The demonstrations must hold at least one step, got none.")
    for index, demonstration in enumerate(demonstrations):
        where, n = f"Demonstration {index}", len(demonstration)
        parts = (
            demonstration.observation
            if isinstance(demonstration.observation, dict)
            else {"": demonstration.observation}
        )
        wanted = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        if set(parts) != set(wanted):
            raise ValueError(f"{where} must observe {sorted(wanted)}, got {sorted(parts)}.")
        for key, space in wanted.items():
            shape = tuple(space.shape or ())
            # Images may have their channels first or last, since policies transpose them.
            if parts[key].shape not in ((n, *shape), (n, *shape[1:], *shape[:1])):
                raise ValueError(
                    f"{where}: observation {key} must be {(n, *shape)} for {n} actions, got {parts[key].shape}."
                )
            _check_finite(f"{where}: observation {key}", parts[key])
        if demonstration.action.shape != (n, *(action_space.shape or ())):
            shape = (n, *(action_space.shape or ()))
            raise ValueError(f"{where}: actions must be {shape} for {action_space}, got {demonstration.action.shape}.")
        _check_finite(f"{where}: action", demonstration.action)


def _check_finite(name: str, values: npt.NDArray[Any]) -> None:
    if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
        return
    step, *place = np.argwhere(~np.isfinite(values))[0].tolist()
    raise ValueError(
        f"{name} must be finite, but {tuple(place)} is {values[(step, *place)]} in step {step}; leave the step out."
    )


def _split(
    demonstrations: Sequence[Demonstration], lessons: Lessons
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Split episodes to learn from and to hold out; held-out ones stay so when more demonstrations are appended."""
    n = len(demonstrations)
    if not lessons.held_out:
        return list(demonstrations), []
    if n < 2:
        raise ValueError(
            f"At least two episodes are needed to hold some of them out, got {n}; give more, or set held_out=0."
        )
    apart = np.random.default_rng(lessons.seed).random(n) < lessons.held_out
    apart[:2] = False, True  # There is always one episode of each kind.
    chosen = list(zip(demonstrations, apart.tolist(), strict=True))
    return [d for d, out in chosen if not out], [d for d, out in chosen if out]
