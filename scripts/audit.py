"""Audit run folders and recordings: is it true, why, what never, what if. A verdict a line, audit.json and report.html.

Examples:
    python scripts/audit.py runs/mine
    python scripts/audit.py runs/ncp runs/lstm --disturbances sensor_noise action_delay --processes 2
    python scripts/audit.py flight.mcap --fail-on chain replay "certificate.width>2" --public-key key.pub.pem

Runs are recorded first, and perturbed; recordings answer for themselves.
"""

from ncp_rl.cli.audit import Args, main
from ncp_rl.cli.tree import door

if __name__ == "__main__":
    door(Args, main, __doc__)
