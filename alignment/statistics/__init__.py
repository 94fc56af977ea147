"""Every figure with its error: estimates, contrasts, permutations."""
