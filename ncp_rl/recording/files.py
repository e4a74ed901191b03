"""`new_file`: a file that either begins as it should or is not there."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ncp_rl.recording.errors import RecordingError


class WholeFile(io.FileIO):
    """An unbuffered file that writes all that it is given, or raises; the system's own call may stop in the middle."""

    def write(self, data: Any, /) -> int:
        """Write all of `data`; gives how many bytes."""
        view = memoryview(data).cast("B")
        while view:
            view = view[super().write(view) :]
        return memoryview(data).nbytes


@contextmanager
def new_file(path: Path, what: str, *, permissions: int = 0o666) -> Iterator[WholeFile]:
    """A new file, which stays open after the `with`; where that fails, the file is removed.

    Half a file would be of no use, and in the way of the next attempt, which would find that it exists.

    Args:
        path: Of the file.
        what: What it is, for errors, such as "The recording".
        permissions: Of the file.

    Raises:
        RecordingError: The file exists or cannot be written.
    """
    try:
        file = WholeFile(path, "xb", opener=lambda name, flags: os.open(name, flags, permissions))
    except FileExistsError as error:
        raise RecordingError(f"{what} {path} exists and is left as it is; name another file.") from error
    except OSError as error:
        raise RecordingError(f"{what} {path} cannot be created: {error}.") from error
    try:
        yield file
    except BaseException as error:
        file.close()
        path.unlink()
        if isinstance(error, OSError):
            raise RecordingError(
                f"{what} {path} cannot be written: {error}. The unfinished file was removed."
            ) from error
        raise
