"""Builds a model from its specification; the families differ in what embeds, what repeats, and what ends them."""

from __future__ import annotations

from simulator.model.adapters import Adapters, with_adapters
from simulator.model.embedding import embedding, token_table
from simulator.model.encoder_decoder import encoder_decoder_layers, encoder_length
from simulator.model.head import head
from simulator.model.kernels import FUSED, Kernels
from simulator.model.layers import Model
from simulator.model.prediction import prediction_blocks
from simulator.model.residual_network import build_residual_network
from simulator.model.spec import ModelSpec
from simulator.model.transformer import transformer_layers
from simulator.model.vision import build_vision_transformer


def build_model(
    spec: ModelSpec, *, sequence_length: int, kernels: Kernels = FUSED, adapters: Adapters | None = None
) -> Model:
    """Returns the model: its layers of operators and weights.

    Args:
        spec: the architecture.
        sequence_length: tokens of a sequence; of an encoder-decoder, of the decoder's.
        kernels: which operators are fused.
        adapters: which low-rank adapters are trained in place of the model; None: all of it is trained.
    """
    model = _whole_model(spec, sequence_length=sequence_length, kernels=kernels)
    return model if adapters is None else with_adapters(model, rank=adapters.rank, targets=adapters.targets)


def _whole_model(spec: ModelSpec, *, sequence_length: int, kernels: Kernels) -> Model:
    if spec.convolution is not None and spec.image is not None:
        return build_residual_network(spec, spec.convolution, spec.image, kernels=kernels)
    if spec.image is not None:
        return build_vision_transformer(spec, spec.image, kernels=kernels)
    memory = None
    if spec.encoder is not None:
        memory = encoder_length(spec.encoder, sequence_length=sequence_length)
        layers = encoder_decoder_layers(spec, spec.encoder, sequence_length=sequence_length, kernels=kernels)
    else:
        layers = transformer_layers(spec, sequence_length=sequence_length, kernels=kernels)
    further = prediction_blocks(spec, sequence_length=sequence_length, kernels=kernels)
    return Model(
        spec=spec,
        sequence_length=sequence_length,
        embedding=embedding(spec, kernels=kernels, sequence_length=memory),
        layers=layers,
        head=head(spec, kernels=kernels, further=further),
        tied_table=token_table(spec) if spec.tied_embeddings or further else None,
    )
