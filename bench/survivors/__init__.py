"""Weighting head training by the samples that reach a head: ``python bench/survivors [options]``."""
