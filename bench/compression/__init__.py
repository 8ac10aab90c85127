"""Exits together with int8 and pruning: ``python bench/compression [PART] [options]``."""
