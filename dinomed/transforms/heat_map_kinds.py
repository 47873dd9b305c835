"""Kinds of maps over slices of a CT: what each is and what it is not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MapKind:
    """What is always true of maps of one kind.

    Attributes:
        title: Name for people.
        what_it_is: A sentence or two, values and their range included.
        what_it_is_not: A sentence or two.
        unit: What its numbers count.
        signed: Whether values below zero mean something of their own.
        from_zero: Whether a picture's scale starts at zero instead of the smallest value.
    """

    title: str
    what_it_is: str
    what_it_is_not: str
    unit: str
    signed: bool = False
    from_zero: bool = False


HEAT_MAP_KINDS = {
    "rollout": MapKind(
        title="Attention rollout",
        what_it_is=(
            "Where the class token's attention flows when it is followed through all layers of the backbone, averaged "
            "over heads. Values are shares between 0 and 1; over one slice they sum to less than 1."
        ),
        what_it_is_not=(
            "It belongs to no label: it knows nothing of the part that decides, and a slice without bleeding has a map "
            "too. It is no segmentation, no probability and no evidence of bleeding."
        ),
        unit="share of the attention",
    ),
    "gradient": MapKind(
        title="Token gradients",
        what_it_is=(
            "How much each patch raises the label's score of this slice by itself (a logit, not calibrated), to first "
            "order: gradient times activation of the patch tokens that enter the backbone's last block, its positive "
            "part. Values are 0 or more."
        ),
        what_it_is_not=(
            "It shows what the model's answer hangs on, be the answer right or wrong. A patch token has seen the whole "
            "slice, so a high value need not lie on the finding. It is no segmentation and no probability, and its "
            "values do not add up to the score."
        ),
        unit="score",
        from_zero=True,
    ),
    "occlusion": MapKind(
        title="Occlusion",
        what_it_is=(
            "How far the label's score of this slice by itself (a logit, not calibrated) falls when a square window "
            "around each cell is filled with air. Values are above 0 where hiding lowers the score, else below 0."
        ),
        what_it_is_not=(
            "It is no segmentation and no probability, and no finer than its window. A hole of air in a head is "
            "unusual by itself and may move the score; a finding that other windows show as well may leave it as it is."
        ),
        unit="fall of the score",
        signed=True,
    ),
}

SIMILARITY = MapKind(
    title="Similarity to one patch",
    what_it_is=(
        "How alike the backbone finds each patch of the slice and the reference patch: the cosine of their tokens in "
        "the last layer. Values lie between -1 and 1; the reference itself has 1."
    ),
    what_it_is_not=(
        "It belongs to no label and knows nothing of bleeding. Tokens also carry where a patch lies and what surrounds "
        "it, so like tissue need not have like values. It is no segmentation and no probability."
    ),
    unit="cosine similarity",
)
