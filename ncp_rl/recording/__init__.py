"""Recordings: rollouts with every neuron's state, in files whose integrity can be verified."""

from ncp_rl.extras import require

require("record", "mcap", "zstandard", "safetensors", "cryptography", "PIL", "tqdm", by="ncp_rl.recording")

from ncp_rl.recording.chain import generate_key, read_private_key, read_public_key
from ncp_rl.recording.compare import Comparison, Divergence
from ncp_rl.recording.datasets import to_pandas, write_minari, write_parquet
from ncp_rl.recording.episode import Episode
from ncp_rl.recording.errors import MemoryLimitError, RecordingError
from ncp_rl.recording.reader import RecordedImage, Recording
from ncp_rl.recording.recorder import NeuronRecorder, record_rollouts
from ncp_rl.recording.records import MAX_MEMORY
from ncp_rl.recording.replay import Replay, replay
from ncp_rl.recording.trace import NeuronTrace, trace_neurons
from ncp_rl.recording.verify import Verification, verify

__all__ = [
    "MAX_MEMORY",
    "Comparison",
    "Divergence",
    "Episode",
    "MemoryLimitError",
    "NeuronRecorder",
    "NeuronTrace",
    "RecordedImage",
    "Recording",
    "RecordingError",
    "Replay",
    "Verification",
    "generate_key",
    "read_private_key",
    "read_public_key",
    "record_rollouts",
    "replay",
    "to_pandas",
    "trace_neurons",
    "verify",
    "write_minari",
    "write_parquet",
]
