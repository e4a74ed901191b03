"""One thread for each test process, since they run side by side; no screen."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before PyTorch is imported; subprocesses inherit it.

# Windows are drawn, not shown: a screen's driver may load Mesa's LLVM, which clashes with Triton's in one process.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
