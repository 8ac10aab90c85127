"""Which architectures can be cut, and where: ``python bench/models [options]``."""
