"""What several benchmarks use: command lines, results, figures, measures, and the training of backbones."""
