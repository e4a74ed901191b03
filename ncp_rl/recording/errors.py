"""`RecordingError`, the one exception of this package."""

from ncp_rl.errors import NCPError


class RecordingError(NCPError):
    """Raised where a recording cannot be made or read; the message says what was expected, what came, what to do."""


class MemoryLimitError(RecordingError):
    """Raised where reading would take more memory than allowed; the recording itself may be intact."""
