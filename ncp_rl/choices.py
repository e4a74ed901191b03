"""What arguments of a policy may be, by name; apart from the policy, so that a command line can show them at once."""

from typing import Literal

#: The neurons of a policy; `ncp_rl.cores.CELLS` has their classes.
CellName = Literal["ltc", "cfc"]
#: The recurrent core of a policy's critic; see `ncp_rl.policy.NCPPolicy`.
Critic = Literal["cell", "ltc", "cfc", "lstm", "mlp", "shared"]
