"""Perplexities of harmful and benign sentences, and the safety scores made of them."""
