"""Exits against smaller models on texts: ``python bench/text [PART] [options]``."""
