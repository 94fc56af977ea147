"""The engine: log-probabilities of many continuations, with what they begin with read once."""
