"""Models of images: one function for each `model_type`, from its keys to those of a model file.

Defaults are those of the configuration classes of the transformers library, version 5.23.
"""

from __future__ import annotations

from simulator.config.huggingface.keys import Keys
from simulator.config.huggingface.parts import Spec, biases, head_of, num_labels

BOTTLENECK_EXPANSION = 4
"""Channels that leave a bottleneck block over its width (class ResNetBottleNeckLayer)."""


def vit(keys: Keys) -> Spec:
    """Vision transformer: patches of an image and a class token, norms before the blocks."""
    heads: dict[str, Spec] = {"Model": {"pooler": True}, "ForImageClassification": {"classes": num_labels(keys)}}
    return {
        "layers": keys.layers("num_hidden_layers"),
        "hidden": keys.count("hidden_size"),
        "heads": keys.count("num_attention_heads"),
        "ffn": keys.count("intermediate_size"),
        "gated_mlp": False,
        "attention": {"causal": False},
        "norm": "layernorm",
        "biases": biases(qkv=keys.flag("qkv_bias", default=True), output=True, mlp=True),
        "dropout": keys.positive("hidden_dropout_prob"),
        "positions": "learned",
        "image": {
            "size": keys.count("image_size", default=224),
            "channels": keys.count("num_channels", default=3),
            "patch": keys.count("patch_size", default=16),
            "class_token": True,
        },
        "output_head": head_of(keys, heads),
    }


def resnet(keys: Keys) -> Spec:
    """ResNet: groups of residual blocks whose widths double; no file says the size of images, so it is ImageNet's."""
    widths = keys.counts("hidden_sizes") or (256, 512, 1024, 2048)
    depths = keys.counts("depths") or (3, 4, 6, 3)
    bottleneck = keys.text("layer_type") in ("", "bottleneck")
    width = keys.count("embedding_size", default=64)
    first = width * BOTTLENECK_EXPANSION if bottleneck else width
    if list(widths) != [first * 2**group for group in range(min(len(depths), len(widths)))] or len(widths) != len(
        depths
    ):
        why = "each group is twice as wide as the one before it, the first one as the stem"
        mend = f"begin hidden_sizes with {first}, double, and list as many depths"
        keys.refuse("hidden_sizes", "are not those of a residual network that is known", why=why, mend=mend)
    if keys.flag("downsample_in_first_stage", default=False):
        why, mend = "the first group keeps the size of the image", "set it to false"
        keys.refuse("downsample_in_first_stage", "true is not known", why=why, mend=mend)
    return {
        "layers": sum(depths),
        "hidden": widths[-1],
        "convolution": {"blocks": depths, "bottleneck": bottleneck, "width": width},
        "image": {"size": IMAGENET_SIZE, "channels": keys.count("num_channels", default=3)},
        "output_head": head_of(keys, {"Model": {}, "ForImageClassification": {"classes": num_labels(keys)}}),
    }


IMAGENET_SIZE = 224
"""Pixels along the edge of an image in the training of ResNets (He 2016, section 3.4)."""
