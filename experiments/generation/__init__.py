"""Generating images: how good samples are, and figures of how they come about."""
