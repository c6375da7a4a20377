"""Which parameter of ours is which of PyTorch's: tables of diffusion's networks, whose structure is read off what there is."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from jaxnets.weights.names import Entry, Path, Shape, convolution, dense, layer_norm

Find: TypeAlias = Callable[[str, str], Shape]  # PyTorch's shape of an array by either name, () where there is none


class Inferred:
    """An architecture whose structure, and not only its number of classes, the arrays of either side say."""

    def __init__(self, table: Callable[[Find], list[Entry]]):
        self.table = table

    def __call__(self, shapes: Mapping[str, Shape]) -> list[Entry]:
        """The entries for a state_dict of these shapes."""
        return self.table(lambda name, path: shapes.get(name, ()))

    def of_variables(self, shapes: Mapping[str, Shape]) -> list[Entry]:
        """The entries for variables of ours, whose names are "params/conv_in/kernel"."""

        def find(name: str, path: str) -> Shape:
            shape = shapes.get(path, ())
            kernel = path.endswith("/kernel") and len(shape) > 1
            return (shape[-1], shape[-2], *shape[:-2]) if kernel else shape

        return self.table(find)


# ---- the U-Net of diffusers -----------------------------------------------------------------------------------------


def unet2d(find: Find) -> list[Entry]:
    """`diffusers.UNet2DModel`: `models.unet.UNet`, whose docstring says with what fields.

    Of blocks "DownBlock2D", "AttnDownBlock2D" and their counterparts on the way up, resampled by convolutions; attention's
    parameters by the names of today, or by those from before diffusers 0.15.
    """
    levels = _each(find, "down_blocks.{}.resnets.0.conv1.weight", "params/down{}_block0/conv1/kernel")
    widths = [shape[0] for shape in levels] or [64]
    depth = len(_each(find, "down_blocks.0.resnets.{}.conv1.weight", "params/down0_block{}/conv1/kernel")) or 1
    inputs = _at(find("conv_in.weight", "params/conv_in/kernel"), 1, 3)
    outputs = _at(find("conv_out.weight", "params/conv_out/kernel"), 0, 3)
    width = _at(find("time_embedding.linear_1.weight", "params/condition/dense1/kernel"), 0, 4 * widths[0])
    rows = find("class_embedding.weight", "params/condition/label/embedding")
    told = find("down_blocks.0.resnets.0.time_emb_proj.weight", "params/down0_block0/condition/kernel")
    told = 2 if _at(told, 0, 0) == 2 * widths[0] else 1  # scale and shift, or a summand

    def block(name: str, path: str, inputs: int, outputs: int) -> list[Entry]:
        shortcut = convolution(f"{name}.conv_shortcut", (path, "shortcut_conv"), inputs, outputs, 1, bias=True)
        return [
            *layer_norm(f"{name}.norm1", (path, "norm1"), inputs),
            *convolution(f"{name}.conv1", (path, "conv1"), inputs, outputs, bias=True),
            *dense(f"{name}.time_emb_proj", (path, "condition"), width, told * outputs),
            *layer_norm(f"{name}.norm2", (path, "norm2"), outputs),
            *convolution(f"{name}.conv2", (path, "conv2"), outputs, outputs, bias=True),
            *(shortcut if inputs != outputs else []),
        ]

    def attention(name: str, path: str, channels: int) -> list[Entry]:
        """The entries, if there is such attention."""
        leaves = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
        old = {"query": "query", "key": "key", "value": "value", "out": "proj_attn"}
        if find(f"{name}.query.weight", ""):
            leaves = old
        if not find(f"{name}.{leaves['query']}.weight", f"params/{path}/query/kernel"):
            return []
        norm = find(f"{name}.group_norm.weight", f"params/{path}/norm/scale")
        entries = layer_norm(f"{name}.group_norm", (path, "norm"), channels) if norm else []
        return entries + [
            each for ours, theirs in leaves.items() for each in dense(f"{name}.{theirs}", (path, ours), channels, channels)
        ]

    entries = convolution("conv_in", ("conv_in",), inputs, widths[0], bias=True)
    entries += dense("time_embedding.linear_1", ("condition", "dense1"), widths[0], width)
    entries += dense("time_embedding.linear_2", ("condition", "dense2"), width, width)
    if rows:
        entries.append(_same("class_embedding.weight", ("params", "condition", "label", "embedding"), (rows[0], width)))
    channels, skips = widths[0], widths[:1]
    for level, outputs_here in enumerate(widths):
        name = f"down_blocks.{level}"
        for index in range(depth):
            entries += block(f"{name}.resnets.{index}", f"down{level}_block{index}", channels, outputs_here)
            entries += attention(f"{name}.attentions.{index}", f"down{level}_attention{index}", outputs_here)
            channels = outputs_here
            skips.append(channels)
        if level < len(widths) - 1:
            entries += convolution(f"{name}.downsamplers.0.conv", (f"down{level}_conv",), channels, channels, bias=True)
            skips.append(channels)
    entries += block("mid_block.resnets.0", "middle_block0", channels, channels)
    entries += attention("mid_block.attentions.0", "middle_attention", channels)
    entries += block("mid_block.resnets.1", "middle_block1", channels, channels)
    for level in reversed(range(len(widths))):
        name = f"up_blocks.{len(widths) - 1 - level}"
        for index in range(depth + 1):
            entries += block(f"{name}.resnets.{index}", f"up{level}_block{index}", channels + skips.pop(), widths[level])
            entries += attention(f"{name}.attentions.{index}", f"up{level}_attention{index}", widths[level])
            channels = widths[level]
        if level:
            entries += convolution(f"{name}.upsamplers.0.conv", (f"up{level}_conv",), channels, channels, bias=True)
    entries += layer_norm("conv_norm_out", ("norm_out",), channels)
    return entries + convolution("conv_out", ("conv_out",), channels, outputs, bias=True)


# ---- DiT ------------------------------------------------------------------------------------------------------------


def dit(find: Find) -> list[Entry]:
    """DiT by the names of its authors: `models.dit.DiT(..., time_scale=1)`; `pos_embed` if it is there."""
    patches = find("x_embedder.proj.weight", "params/patches/kernel")
    width, inputs, window = (_at(patches, axis, default) for axis, default in enumerate((384, 4, 2)))
    rows = find("y_embedder.embedding_table.weight", "params/condition/label/embedding")
    waves = _at(find("t_embedder.mlp.0.weight", "params/condition/dense1/kernel"), 1, 256)
    outputs = _at(find("final_layer.linear.weight", "params/dense_out/kernel"), 0, window**2 * inputs)
    hidden = _at(find("blocks.0.mlp.fc1.weight", "params/block0/mlp1/kernel"), 0, 4 * width)
    depth = len(_each(find, "blocks.{}.attn.qkv.weight", "params/block{}/qkv/kernel")) or 1
    grid = find("pos_embed", "constants/positions")

    entries = [_same("pos_embed", ("constants", "positions"), (1, _at(grid, 1, 0), width))] if grid else []
    entries += convolution("x_embedder.proj", ("patches",), inputs, width, window, bias=True)
    entries += dense("t_embedder.mlp.0", ("condition", "dense1"), waves, width)
    entries += dense("t_embedder.mlp.2", ("condition", "dense2"), width, width)
    if rows:
        path = ("params", "condition", "label", "embedding")
        entries.append(_same("y_embedder.embedding_table.weight", path, (rows[0], width)))
    for index in range(depth):
        name, path = f"blocks.{index}", f"block{index}"
        entries += dense(f"{name}.attn.qkv", (path, "qkv"), width, 3 * width)
        entries += dense(f"{name}.attn.proj", (path, "project"), width, width)
        entries += dense(f"{name}.mlp.fc1", (path, "mlp1"), width, hidden)
        entries += dense(f"{name}.mlp.fc2", (path, "mlp2"), hidden, width)
        entries += dense(f"{name}.adaLN_modulation.1", (path, "condition"), width, 6 * width)
    entries += dense("final_layer.linear", ("dense_out",), width, outputs)
    return entries + dense("final_layer.adaLN_modulation.1", ("condition_out",), width, 2 * width)


def _each(find: Find, name: str, path: str) -> list[Shape]:
    """The shapes of the arrays whose names have 0, 1, ... for `{}`, as many as there are."""
    shapes: list[Shape] = []
    while shape := find(name.format(len(shapes)), path.format(len(shapes))):
        shapes.append(shape)
    return shapes


def _at(shape: Shape, axis: int, default: int) -> int:
    return shape[axis] if len(shape) > axis else default


def _same(name: str, path: Path, shape: Shape) -> Entry:
    return Entry(name, path, shape, shape, tuple(range(len(shape))), shape)


ARCHITECTURES = {"diffusers/unet2d": Inferred(unet2d), "dit": Inferred(dit)}
