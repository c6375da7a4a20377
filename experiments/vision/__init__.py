"""What the experiments with images share."""
