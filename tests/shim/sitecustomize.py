"""Read by every Python process that has this folder on PYTHONPATH: the shim for tests of the command line."""

import torchvision_operators

torchvision_operators.install()
