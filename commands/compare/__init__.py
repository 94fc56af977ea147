"""`make compare`: variants side by side, with paired tests, as Markdown and as a page."""
