"""Benchmarks as lm-eval defines them, scored by the engine; greedy answers."""
