"""Fine-tuning, from the instant model on: its material, its phases, the run, and cross-validation."""
