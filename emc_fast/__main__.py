"""``python -m emc_fast`` is the command ``emc-fast``."""

from .cli import main

main()
