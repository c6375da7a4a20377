"""Pure `flax.linen` models."""
