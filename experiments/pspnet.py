"""PSPNet, and pyramid pooling beside other networks: mosaics of photographs, or CamVid and other folders.

Measured 2026-11-23, seed 0: mosaics, lower halves of the photographs, one CPU core, jax 0.12, mean IoU 0.796, pixel accuracy
0.884 in 17 minutes (FCN-8s 0.814; a pixel's logistic regression 0.305, 0.443). Two cores beside other work, jax 0.10.2:
CamVid, validation images (180x240, from scratch, `--preset camvid --data FOLDER`), stopped after 18 of 40 epochs: mean IoU
0.504, pixel accuracy 0.849. In 16 epochs, one core, jax 0.12, 15 minutes: 0.464, 0.814.
"""

import dataclasses
import functools
from typing import Literal

from experiments.harness.run import Run
from experiments.vision import scenes
from jaxnets import losses
from jaxnets.data import segmentation
from jaxnets.models import pspnet, resnet


@dataclasses.dataclass(frozen=True)
class Config(scenes.Config):
    auxiliary: float = 0.4  # weight of the loss of the head on stage 3
    output_stride: Literal[4, 8, 16, 32] = 8  # of the backbone's last map


PRESETS = {
    "default": Config(),
    "camvid": Config(data="camvid", width=32, crop=128, batch=8, epochs=40, scale=(0.6, 1.5), color=0.3, balance=0.5, lr=0.05),
    "smoke": Config(images=4, width=4, crop=32, batch=2, epochs=1),
}


def main(config: Config, run: Run) -> dict[str, float]:
    def build(classes):
        backbone = resnet.resnet18(width=config.width, output_stride=config.output_stride, stem="deep", zero_scale=False)
        return pspnet.PSPNet(backbone, classes, width=8 * config.width, auxiliary_width=4 * config.width)

    loss = losses.with_auxiliary(
        functools.partial(losses.softmax_cross_entropy, ignore_index=segmentation.VOID), config.auxiliary
    )
    return scenes.learn(config, run, build, loss, logits=lambda outputs: outputs[0])
