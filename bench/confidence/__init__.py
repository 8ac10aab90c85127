"""Which confidence measure ranks errors best: ``python bench/confidence [options]``."""
