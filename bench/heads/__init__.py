"""What each kind of exit head brings: ``python bench/heads [options]``."""
