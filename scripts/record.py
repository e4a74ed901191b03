"""Record rollouts with every neuron's state; verify, replay and export recordings.

Examples:
    python scripts/record.py keygen key.pem
    python scripts/record.py record runs/my_run --out rollouts.mcap --sign key.pem
    python scripts/record.py verify rollouts.mcap --public-key key.pub.pem
    python scripts/record.py replay rollouts.mcap --run runs/my_run --env
    python scripts/record.py export rollouts.mcap --parquet rollouts.parquet
"""

from ncp_rl.cli import convert, keygen, record, replay, verify
from ncp_rl.cli.tree import door, run, union

Command = union({"keygen": keygen, "record": record, "verify": verify, "replay": replay, "export": convert})
main = run

if __name__ == "__main__":
    door(Command, main, __doc__)
