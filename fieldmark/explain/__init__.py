"""Where in a photo the answer lies."""
