"""One thread for each test process: small tensors gain nothing from more, and processes run side by side."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before PyTorch is imported; subprocesses inherit it.
