"""Proximal-gradient methods: linear operators, proximal operators, FISTA, gradients of its solutions. Needs only jax."""
