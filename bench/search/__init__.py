"""Which search finds the better configurations, and how fast: ``python bench/search [PART] [options]``."""
