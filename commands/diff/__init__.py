"""`make diff`: what the workspace changes, each metric with its test."""
