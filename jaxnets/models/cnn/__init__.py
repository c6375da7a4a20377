"""Convolutional networks before the residual ones: LeNet-5, AlexNet, VGG. Each gives its maps by name: `features(x)`."""

from jaxnets.models.cnn.alexnet import AlexNet, local_response
from jaxnets.models.cnn.lenet import CONNECTIONS, LeNet, LeNet5, digit_codes, squash
from jaxnets.models.cnn.vgg import VGG, vgg11, vgg13, vgg16, vgg19

__all__ = [
    "CONNECTIONS",
    "VGG",
    "AlexNet",
    "LeNet",
    "LeNet5",
    "digit_codes",
    "local_response",
    "squash",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]
