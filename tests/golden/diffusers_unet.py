"""Writes diffusers_unet.npz: diffusers' U-Nets and a DiT of PyTorch with drawn weights, their outputs and gradients.

    python tests/golden/diffusers_unet.py        # needs torch and diffusers, on a CPU

Made 2026-11-23 with torch 2.13 and diffusers 0.42. The DiT is written from the paper's equations with its authors' names.
Weights are drawn by name, so the file has only outputs and digests of the names and shapes; all in float64, the embedding of
the time too, which diffusers computes in float32.
"""

import math
import pathlib
import zlib

import numpy as np

IMAGES = (2, 8, 12, 3)
TIMES = (17.25, 801.0)
LABELS = (2, 4)
PLAIN, ATTENTIVE = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
# Of each U-Net the channels of its levels, the levels with attention, diffusers' other options, and our fields.
UNETS = {
    "ddpm": (
        (8, 16, 16),
        (1,),
        {
            "attention_head_dim": None,
            "layers_per_block": 2,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "downsample_padding": 0,
            "norm_eps": 1e-6,
        },
        {"depth": 2, "scale_shift": False, "frequency_shift": 1, "sine_first": True, "downsample_padding": 0, "epsilon": 1e-6},
    ),
    "adm": (
        (8, 16),
        (0, 1),
        {
            "attention_head_dim": 4,
            "layers_per_block": 1,
            "resnet_time_scale_shift": "scale_shift",
            "num_class_embeds": 5,
            "out_channels": 6,
        },
        {"depth": 1, "head_width": 4, "classes": 4, "outputs": 6, "middle_norm": False},
    ),
    "plain": (
        (8, 12),
        (),
        {"layers_per_block": 1, "add_attention": False, "num_class_embeds": 5, "time_embedding_dim": 20},
        {"depth": 1, "scale_shift": False, "classes": 5, "null": False, "middle_attention": False, "time_width": 20},
    ),
    "normed": (
        (8,),
        (),
        {"layers_per_block": 1, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "attention_head_dim": 8},
        {"depth": 1, "head_width": 8},
    ),
}
DIT = {"width": 16, "depth": 2, "heads": 2, "patch": 2, "classes": 5, "outputs": 6}


def drawn(name, shape):
    """A parameter or an input by its name, such that activations neither vanish nor explode."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    normal = rng.standard_normal(shape, np.float32)
    if name.endswith("weight") and len(shape) > 1:
        return normal / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    return (
        1 + 0.2 * normal if "norm" in name and name.endswith("weight") else normal if name in ("images", "to") else 0.2 * normal
    )


def digest(shapes):
    """A number for the names and shapes of a state_dict."""
    return zlib.crc32(repr(sorted((name, tuple(shape)) for name, shape in shapes.items())).encode())


def diffusers():
    """The package; torchvision, which it imports if it is there, does so on a CPU once two of its operators are declared."""
    import importlib

    import torch

    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("diffusers")


def unet(name):
    """diffusers' model with PyTorch's own weights."""
    widths, attention, options, _ = UNETS[name]
    kinds = [ATTENTIVE if level in attention else PLAIN for level in range(len(widths))]
    return (
        diffusers()
        .UNet2DModel(
            block_out_channels=widths,
            down_block_types=tuple(down for down, _ in kinds),
            up_block_types=tuple(up for _, up in reversed(kinds)),
            norm_num_groups=4,
            **options,
        )
        .eval()
    )


def waves(t, width, *, shift=0, sine_first=False):
    """The sinusoids of a time in its own dtype."""
    import torch

    half = width // 2
    phases = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half, dtype=t.dtype) / (half - shift))
    parts = [torch.sin(phases), torch.cos(phases)]
    return torch.cat(parts if sine_first else parts[::-1], dim=1)


def dit(width, depth, heads, patch, classes, outputs):
    """A DiT of 8x12 images with three channels, with PyTorch's own weights: Peebles & Xie (2023), section 3.2."""
    import torch
    from torch import nn

    def told(condition, parts):
        """What a block hears: SiLU and a dense layer, in so many parts, each [batch, 1, width]."""
        return nn.Sequential(nn.SiLU(), nn.Linear(condition, parts * condition))

    def normal(x):
        centered = x - x.mean(-1, keepdim=True)
        return centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-6)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x):
            parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)]
            logits = parts[0] @ parts[1].transpose(-1, -2) / math.sqrt(width // heads)
            return self.proj((logits.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2))

    class Perceptron(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.mlp, self.adaLN_modulation = Attention(), Perceptron(), told(width, 6)

        def forward(self, x, condition):
            b1, s1, g1, b2, s2, g2 = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
            x = x + g1 * self.attn(normal(x) * (1 + s1) + b1)
            return x + g2 * self.mlp(normal(x) * (1 + s2) + b2)

    class DiT(nn.Module):
        def __init__(self):
            super().__init__()
            self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
            self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))})
            self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
            self.blocks = nn.ModuleList([Block() for _ in range(depth)])
            self.final_layer = nn.ModuleDict(
                {"linear": nn.Linear(width, patch**2 * outputs), "adaLN_modulation": told(width, 2)}
            )
            rows, columns = IMAGES[1] // patch, IMAGES[2] // patch
            self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, width), requires_grad=False)
            for place in range(rows * columns):
                both = torch.tensor([place % columns, place // columns], dtype=torch.float64)
                self.pos_embed[0, place] = waves(both, width // 2, sine_first=True).flatten().float()

        def forward(self, x, t, label):
            condition = self.t_embedder["mlp"](waves(t, 256)) + self.y_embedder["embedding_table"](label)
            x = self.x_embedder["proj"](x)
            grid = x.shape[2:]
            x = x.flatten(2).transpose(1, 2) + self.pos_embed
            for block in self.blocks:
                x = block(x, condition)
            shift, scale = self.final_layer["adaLN_modulation"](condition)[:, None].chunk(2, -1)
            x = self.final_layer["linear"](normal(x) * (1 + scale) + shift)
            rows = []
            for i in range(grid[0]):
                patches = [x[:, i * grid[1] + j].unflatten(-1, (patch, patch, outputs)) for j in range(grid[1])]
                rows.append(torch.cat(patches, dim=2))
            return torch.cat(rows, dim=1).permute(0, 3, 1, 2)

    return DiT().eval()


def double(model):
    """The model in float64 with drawn weights; its positions stay what they are."""
    import torch

    fixed = {key: value for key, value in model.state_dict().items() if key == "pos_embed"}
    arrays = {key: torch.from_numpy(drawn(key, tuple(value.shape))) for key, value in model.state_dict().items()}
    model.double().load_state_dict(arrays | fixed)
    return model


def exact_time(model, options):
    """The U-Net with its embedding of the time in float64."""
    import torch

    class Waves(torch.nn.Module):
        def forward(self, t):
            shift, sine_first = options.get("freq_shift", 0), not options.get("flip_sin_to_cos", True)
            return waves(t, model.config.block_out_channels[0], shift=shift, sine_first=sine_first)

    model.time_proj = Waves()
    return model


def results(model, *, labels):
    """Outputs, and the gradient of their product with a drawn direction by the images, channels last."""
    import torch

    x = torch.from_numpy(drawn("images", IMAGES).astype(np.float64)).permute(0, 3, 1, 2).requires_grad_()
    arguments = (x, torch.tensor(TIMES, dtype=torch.float64), *([torch.tensor(LABELS)] if labels else []))
    output = model(*arguments)
    output = getattr(output, "sample", output)
    direction = torch.from_numpy(drawn("to", (*IMAGES[:3], output.shape[1])).astype(np.float64)).permute(0, 3, 1, 2)
    (gradient,) = torch.autograd.grad((output * direction).sum(), x)
    return {"outputs": output.detach().permute(0, 2, 3, 1).numpy(), "gradient": gradient.permute(0, 2, 3, 1).numpy()}


if __name__ == "__main__":
    arrays = {}
    models = {name: exact_time(double(unet(name)), options[2]) for name, options in UNETS.items()}
    for name, model in {**models, "dit": double(dit(**DIT))}.items():
        labels = name == "dit" or "num_class_embeds" in UNETS[name][2]
        found = results(model, labels=labels)
        found["state_dict"] = np.array(digest({key: value.shape for key, value in model.state_dict().items()}))
        arrays |= {f"{name}/{key}": value for key, value in found.items()}
    arrays["dit/pos_embed"] = model.pos_embed.detach().numpy()
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
