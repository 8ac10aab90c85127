"""Throughput at equal latency for samples that arrive one by one: ``python bench/streaming [options]``."""
