"""Training as pure functions: state, steps, ensembles; one loop that jits, checkpoints and calls back."""
