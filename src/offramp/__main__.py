"""``python -m offramp``: the command line."""

from offramp.cli import main

main()
