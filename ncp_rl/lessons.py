"""`Lessons`: the settings by which a policy is taught, without heavy imports, so that help texts come at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Lessons:
    """Settings by which a policy is taught."""

    n_epochs: int = 30
    """Number of passes over the demonstrations."""
    sequence_length: int = 32
    """Number of steps through which gradients flow back."""
    n_sequences: int = 16
    """Number of sequences in a step of the optimizer."""
    learning_rate: float = 1e-3
    """Initial learning rate; it falls to a fiftieth along a cosine. `ScaledAdam` takes five times it for a circuit."""
    loss: Literal["likelihood", "squared", "huber"] | None = None
    """Loss of the demonstrated action: its likelihood, or the error of the action mean in half ranges of the action.
    None stands for likelihood for discrete actions and for "huber" for others: squared, but linear beyond a tenth of
    the range."""
    held_out: float = 0.1
    """Share of the episodes that are held out: the model that is best on them is kept."""
    patience: int = 10
    """Number of epochs without improvement after which teaching ends."""
    max_grad_norm: float = 0.5
    """Norm to which gradients are clipped."""
    readout: float = 0.0
    """Weight of a second task for the encoder: a linear map of its features predicts what the expert saw
    (`Demonstration.privileged`), by squared error."""
    feature_pull: float = 0.0
    """Weight of the mean square of the encoder's features around 1/2, where sensory synapses open."""
    seed: int = 0
    """Seed of the order of episodes and of the choice of held-out ones."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        for name in ("n_epochs", "sequence_length", "n_sequences", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be a share from 0 to below 1, got {self.held_out}.")
        if self.loss not in (None, "likelihood", "squared", "huber"):
            raise ValueError(f'loss must be "likelihood", "squared", "huber" or None, got {self.loss!r}.')


#: The default lessons.
DEFAULT = Lessons()
