"""FCN: 8s on a residual network, on mosaics of photographs, or CamVid and other folders.

Measured 2026-11-23, jax 0.12, one CPU core, mosaics, lower halves of the photographs: mean IoU 0.844, 0.834 and 0.836 (seeds 0
to 2), pixel accuracy 0.915, 0.907 and 0.910 in 6 minutes (a pixel's logistic regression 0.30, 0.44; 1,600 mosaics for 8 epochs,
32 channels wide, 0.814). 2026-11-24, the same, beside other work: CamVid, validation images (180x240, from scratch, `--preset
camvid --data FOLDER`), seed 0: mean IoU 0.572, pixel accuracy 0.886 (0.224, 0.643) in 20 minutes of the processor.
"""

import dataclasses
import functools
from typing import Literal

from experiments.harness.run import Run
from experiments.vision import scenes
from jaxnets import losses
from jaxnets.data import segmentation
from jaxnets.models import fcn, resnet


@dataclasses.dataclass(frozen=True)
class Config(scenes.Config):
    variant: Literal["32s", "16s", "8s"] = "8s"  # how fine the maps are whose scores are added
    upsampling: Literal["fixed", "learned"] = "learned"  # bilinear, or starting from it


PRESETS = {
    "default": Config(),
    "camvid": Config(data="camvid", width=32, crop=160, batch=8, epochs=60, scale=(0.6, 1.5), color=0.3, balance=0.5, lr=0.05),
    "smoke": Config(images=4, width=4, crop=32, batch=2, epochs=1),
}


def main(config: Config, run: Run) -> dict[str, float]:
    def build(classes):
        backbone = resnet.resnet18(width=config.width, stem="deep", zero_scale=False)
        return fcn.FCN(config.variant, classes, backbone=backbone, upsampling=config.upsampling)

    loss = functools.partial(losses.softmax_cross_entropy, ignore_index=segmentation.VOID)
    return scenes.learn(config, run, build, loss, logits=lambda outputs: outputs)
