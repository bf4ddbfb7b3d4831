"""Heads on frozen descriptors: ridge regression, cross-entropy, and a soft one from which fine-tuning starts."""
