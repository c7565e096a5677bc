"""``python -m dropout_grpo COMMAND`` is ``dropout-grpo COMMAND``."""

import sys

from dropout_grpo.cli.entry import entry

sys.exit(entry())
