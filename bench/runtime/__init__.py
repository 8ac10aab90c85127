"""Does measured time follow the predicted cost: ``python bench/runtime [PART] [options]``."""
