"""Models and tokenizers: the chat template, what can be loaded, how it is loaded and saved."""
