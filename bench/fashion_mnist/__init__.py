"""Exits against smaller models on images: ``python bench/fashion_mnist [PART] [options]``."""
