"""What the stages know: datasets, curation, templates, models, training, scoring, statistics."""
