"""`new_file`: creates a file, and removes it if its beginning cannot be written."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ncp_rl.recording.errors import RecordingError


class WholeFile(io.FileIO):
    """An unbuffered file whose `write` writes everything or raises; the system's call may stop in the middle."""

    def write(self, data: Any, /) -> int:
        """Write all of `data` and return the number of bytes."""
        view = memoryview(data).cast("B")
        while view:
            view = view[super().write(view) :]
        return memoryview(data).nbytes


@contextmanager
def new_file(path: Path, what: str, *, permissions: int = 0o666) -> Iterator[WholeFile]:
    """Create a file, which stays open after the `with`; if the `with` fails, the file is removed.

    Half a file would be useless, and would make the next attempt fail because the file exists.

    Args:
        path: Path of the file.
        what: Name of the kind of file in errors, such as "The recording".
        permissions: Permissions of the file.

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
