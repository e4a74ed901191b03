"""SB3's LSTM policies with sequences in one call of `torch.nn.LSTM`: baselines with upstream's numbers, sooner.

Upstream steps through a minibatch in Python as soon as one of its sequences begins an episode. RecurrentPPO cuts
sequences where episodes start, so that only their first steps can need a reset, and the rest is one call. Losses and
weights differ from upstream's by rounding.
"""

from __future__ import annotations

from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from torch import Tensor, nn

from ncp_rl.cores import States, run_lstm


class FastMlpLstmPolicy(RecurrentActorCriticPolicy):
    """SB3's `MlpLstmPolicy`; arguments, numbers and parameters are its own."""

    @staticmethod
    def _process_sequence(  # type: ignore[override]  # Upstream's annotation forgets that states are pairs.
        features: Tensor, lstm_states: States, episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, States]:
        """Run an LSTM over padded sequences; see upstream for shapes."""
        starts = episode_starts.reshape(lstm_states[0].shape[1], -1).swapaxes(0, 1)  # (T, N)
        return run_lstm(lstm, features, lstm_states, starts, held=None)


class FastMultiInputLstmPolicy(RecurrentMultiInputActorCriticPolicy):
    """SB3's `MultiInputLstmPolicy`; arguments, numbers and parameters are its own."""

    # Upstream's annotation forgets that states are pairs.
    _process_sequence = staticmethod(FastMlpLstmPolicy._process_sequence)  # type: ignore[assignment]
