"""PSPNet, and pyramid pooling beside other networks: mosaics of photographs, or CamVid and other folders.

Measured 2026-11-23, jax 0.12, one CPU core, mosaics, lower halves of the photographs: mean IoU 0.838, 0.835 and 0.834 (seeds
0 to 2), pixel accuracy 0.911, 0.908 and 0.909 in 13 minutes (FCN-8s 0.844, 0.834, 0.836 in 6; a pixel's logistic regression
0.30). On a part of the upper halves, seed 0: 0.902 (FCN-8s 0.903); without the padding to a size whose corners are the map's
0.891, and then with a learning rate of 0.03 at first 0.88; without dropout 0.897. Of 1,600 mosaics for 8 epochs, 32 channels
wide, FCN-8s had 0.873, and 0.850 when images were scaled, turned and colored too. 2026-11-24, at 7e15026: 0.858 and 0.847
(seeds 0 and 1; FCN-8s 0.851 and 0.844), seed 0 in 7.0 minutes on two quiet cores.

CamVid, validation images (180x240, from scratch, `--preset camvid --data FOLDER`), seed 0, 2026-11-24, one core beside other
work: mean IoU 0.563, pixel accuracy 0.875 in 29 minutes of the processor. Before that padding, 16 epochs: 0.464, 0.814.
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
