"""One phase of training: photos, views, steps of the optimiser, averages, checkpoints, held-out photos."""
