"""`python -m ncp_rl` is `ncp-rl`."""

import sys

from ncp_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
