"""``python -m offramp`` and the command ``offramp``: the command line, which is imported with care.

A stop by Ctrl-C while it is imported ends the process at once: there is nothing to tidy up.
"""

import os
import signal

_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from offramp.cli import main  # noqa: E402 (imported under the handler above)

signal.signal(signal.SIGINT, _before)

if __name__ == "__main__":
    main()
