"""Rules on what only some models can be cut into: images, encoders beside decoders, repeated layers, convolutions."""

from __future__ import annotations

from functools import reduce
from operator import and_

from simulator.model.spec import TABLES
from simulator.parallel.case import Case, Check


def positions_cover_the_sequence(case: Case) -> Check:
    """The tokens of each sequence have a row in the table of positions."""
    encoder = case.model.encoder
    s, rows = case.training.sequence_length, case.model.num_positions or 0
    longest = max(s, (encoder.sequence_length or 0) if encoder else 0)
    path = "training.sequence_length" if longest == s else "model.encoder.sequence_length"
    return Check(
        # Of images `a_sequence_is_an_image` has its word.
        holds=case.model.image is not None or case.model.positions not in TABLES or longest <= rows,
        path=path,
        problem=lambda: f"{longest} tokens, but the model has only {rows} {case.model.positions} positions",
        why="every token needs a row of the position table",
        mend=lambda: f"set {path} to at most {rows}, or model.max_positions to {longest}",
    )


def a_sequence_is_an_image(case: Case) -> Check:
    """A model of images has as many tokens as an image has patches."""
    image = case.model.image
    tokens = image.tokens if image else 0
    s = case.training.sequence_length
    what = "the image itself" if case.model.convolution else "its patches and the class token, if it has one"
    return Check(
        holds=image is None or s == tokens,
        path="training.sequence_length",
        problem=lambda: f"{s}, but an image of model {case.model.name} has {tokens} token{'s' * (tokens > 1)}",
        why=f"a sequence of a model of images is one image, and its tokens are {what}",
        mend=lambda: f"set training.sequence_length to {tokens}",
    )


def convolutions_are_not_split(case: Case) -> Check:
    """Convolutional networks run data parallel only."""
    return _unsplit(
        case,
        holds=case.model.convolution is None,
        names=("tp", "cp", "pp", "vpp"),
        why="a convolutional network is split over data only; cutting its images or channels is not modelled",
    )


def encoders_stay_with_their_decoders(case: Case) -> Check:
    """An encoder-decoder is not cut along its layers or its sequences."""
    return _unsplit(
        case,
        holds=case.model.encoder is None,
        names=("cp", "pp", "vpp"),
        why="every layer of a decoder reads the encoder's output; handing it from stage to stage, or around a context "
        "ring, is not modelled",
    )


def repeated_layers_stay_together(case: Case) -> Check:
    """Layers that share weights lie on one rank."""
    return _unsplit(
        case,
        holds=case.model.distinct_layers in (None, case.model.layers),
        names=("pp", "vpp"),
        why="layers that share their weights lie on one rank; copies of them on several stages are not modelled",
    )


def sequence_parallel_divides_the_encoder(case: Case) -> Check:
    """The tensor ranks split the encoder's tokens evenly."""
    encoder, sequence = case.model.encoder, case.degrees.sequence
    tokens = (encoder.sequence_length if encoder else None) or 0
    return Check(
        holds=tokens % sequence == 0,
        path="layout.tp",
        problem=lambda: (
            f"{sequence} does not divide model.encoder.sequence_length, which is {tokens}, "
            "and sequence parallelism is on"
        ),
        why="with sequence parallelism each tensor rank holds an equal share of the encoder's tokens",
        mend=lambda: "set layout.sp to false, or choose a tp that divides the tokens",
    )


def _unsplit(case: Case, *, holds: bool, names: tuple[str, ...], why: str) -> Check:
    """A rule that some degrees are 1 for the models that `holds` does not let through."""
    split = next((name for name in names if getattr(case.layout, name) != 1), names[0])
    return Check(
        holds=reduce(and_, (getattr(case.degrees, name) == 1 for name in names)) | holds,
        path=f"layout.{split}",
        problem=lambda: f"{getattr(case.layout, split)} with model {case.model.name}",
        why=why,
        mend=lambda: f"set layout.{split} to 1, or choose another model",
    )
