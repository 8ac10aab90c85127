"""Benchmarks of Offramp. Each folder is one benchmark: ``python bench/FOLDER [PART] [options]``.

    search          which search finds the better configurations, and how fast
    runtime         does measured time follow the predicted cost, and a race with what one would run instead
    streaming       throughput at equal latency when samples arrive one by one
    heads           what each kind of exit head brings
    confidence      which confidence measure ranks errors best, and what it saves
    survivors       weighting the training of a head by the samples that reach it
    models          which published architectures can be cut, and where
    compression     exits together with int8 and pruning
    fashion_mnist   exits against smaller models on images
    text            exits against smaller models on texts

``--help`` after any of them lists its parts and options. Run from the project root. ``shared`` is no
benchmark. Results lie in ``results``.
"""
