"""Faults on purpose, at length."""
