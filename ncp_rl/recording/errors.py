"""`RecordingError`, the one exception of this package."""

from ncp_rl.errors import NCPError


class RecordingError(NCPError):
    """A recording cannot be made or read; the message says what was expected, what came and what to do."""


class MemoryLimitError(RecordingError):
    """To read on would take more memory than is allowed; nothing is said of whether the recording is true."""
