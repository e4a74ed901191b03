"""Recordings: rollouts with every neuron's state, in files that can be trusted."""

from ncp_rl.recording.episode import Episode

__all__ = ["Episode"]
