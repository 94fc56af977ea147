"""One Typer script a stage: files as arguments, parameters as options, nothing else is read."""
