"""From a corpus to the rows of a training: read, ordered, curated, described."""
