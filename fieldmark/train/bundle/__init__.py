"""From something trained to a model folder: graph, golden answers, model card, classes added later."""
