"""`make study`: every variant as an experiment of DVC, one after the other."""
