"""Proximal-gradient methods: linear operators, proximal operators, FISTA, and gradients of its solutions. Usable alone: needs only jax."""
