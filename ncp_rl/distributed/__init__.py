"""More than one process, on Ray: sweeps over environments, settings and seeds; and `ncp_rl.distributed.rllib`.

`Sweep` says what is tried, `run_sweep` tries it into a folder and goes on with an interrupted one. Ray places and
restarts trials, Optuna chooses settings, and a trial is a run folder of `ncp_rl.runs`. `ncp_rl.distributed.rllib`
spreads one training over many processes; it is imported by itself, since it needs more packages.
"""

from ncp_rl.extras import require

require("ray", "ray", "optuna", "matplotlib", by="A sweep or a training on Ray")

from ncp_rl.distributed.cluster import ClusterError
from ncp_rl.distributed.results import Row, read_table
from ncp_rl.distributed.space import Dimension, SpaceError, read_space, with_values
from ncp_rl.distributed.sweep import run_sweep
from ncp_rl.distributed.trial import Sweep, SweepError, Trial, read_sweep

__all__ = [
    "ClusterError",
    "Dimension",
    "Row",
    "SpaceError",
    "Sweep",
    "SweepError",
    "Trial",
    "read_space",
    "read_sweep",
    "read_table",
    "run_sweep",
    "with_values",
]
