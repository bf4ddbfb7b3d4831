"""The plan of a fine-tuning run: what this machine can do in the time, measured, and what to do with it."""
