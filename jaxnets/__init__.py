"""Nine classical systems of deep learning and inversion as pure functions that compose.

Import modules, not names: `from jaxnets import losses`, then `losses.softmax_cross_entropy`.
"""

__version__ = "0.1.0"
