"""`NCPLearner`: RLlib's PPO learner with the optimizer of the policy, and with `Standardize` moved between rollouts."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2

from ncp_rl.distributed.rllib.module import NCPModule


class WatchReadings(ConnectorV2):
    """Shows each module the readings of the rollout that it is about to learn from; the batch stays as it is."""

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Show them; see upstream."""
        for name, part in batch.items():
            _unwrapped(rl_module[name]).watch(part)
        return batch


class NCPLearner(PPOTorchLearner):
    """A PPO learner that trains `NCPModule`s with the steps with which `RecurrentPPO` trains their policies.

    Each policy brings its own optimizer, by default `ncp_rl.learning.ScaledAdam` with a factor of the learning rate for
    each group of parameters; RLlib's own Adam takes one learning rate for all, with which a circuit hardly moves.
    """

    def build(self) -> None:
        """Build the learner, and let modules watch the readings at the end of the connectors."""
        super().build()
        assert self._learner_connector is not None
        self._learner_connector.append(WatchReadings())

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register the policy's own optimizer; see upstream."""
        assert self._module is not None
        module = self._module[module_id]
        self.register_optimizer(
            module_id=module_id,
            optimizer=_unwrapped(module).policy.optimizer,
            params=self.get_parameters(module),
            lr_or_lr_schedule=config.lr,
        )

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Move `Standardize` once the update has ended; see upstream."""
        super().after_gradient_based_update(timesteps=timesteps)
        for name in self.module.keys():
            _unwrapped(self.module[name]).adapt()


def _unwrapped(module: Any) -> NCPModule:
    """The module itself, where several learners wrap it for the exchange of gradients."""
    found = module.unwrapped()
    assert isinstance(found, NCPModule)
    return found
