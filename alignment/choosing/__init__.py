"""What the first stages know: whether parameters can be used, and which versions of libraries results rest on."""
