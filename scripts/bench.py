"""Time the scan and the whole training loop against nn.LSTM, ncps and SB3's own policies, side by side.

Examples:
    python scripts/bench.py                       # the table, on the CPU with one thread
    python scripts/bench.py --device cuda         # the scan on a GPU
    python scripts/bench.py --parts cars          # lane keeping: one simulation against many, the camera
    python scripts/bench.py --parts deployed      # exported controllers: here, and on a Cortex-M4F
    python scripts/bench.py --out results/cpu.json

Contenders take turns, round after round, so that a machine whose speed drifts slows all of them; figures are medians
over rounds. Compilation and caches come before the first round.
"""

from ncp_rl.cli.bench import PARTS, Args, main
from ncp_rl.cli.tree import door

if __name__ == "__main__":
    door(Args, main, __doc__, default=Args(parts=PARTS))
