"""Scoring a checkpoint: the engine, benchmarks, safety."""
