"""The files that kernels of the scan are compiled from: an edit of any of them compiles the kernels anew."""

from __future__ import annotations

import functools
from pathlib import Path

from ncp_rl import jit

_FOLDER = Path(__file__).parent

SOURCES = (_FOLDER.parent / "contract.py", *sorted(_FOLDER.glob("*.py")))

#: Digest of the sources and the processor; where it differs, the last bits of potentials may differ too.
DIGEST = jit.digest_of((Path(jit.__file__), *SOURCES))

#: `ncp_rl.jit.kernel` for functions that call functions of these files.
scan_kernel = functools.partial(jit.kernel, sources=DIGEST)
