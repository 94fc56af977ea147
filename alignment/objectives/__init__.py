"""What a model is trained for, one method a file: rows as tokens, the trainer, its proof, its held-out figures."""
