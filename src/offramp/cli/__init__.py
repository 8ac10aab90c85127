"""The command line: ``offramp demo | build | search | eval | certify | run | bench | export | report``."""

from offramp.cli.app import main

__all__ = ["main"]
