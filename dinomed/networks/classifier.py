"""Classification: a backbone's class token, its mean patch token or both, and a head on top.

Heads take vectors, so the same ones serve images (`Classifier`) and embeddings that were made before, of slices or of
whole volumes, which `GatedAttentionPooling` sums up slice by slice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dinomed.networks.backbones import LayerTokens, TimmBackbone

FEATURES = ("cls", "patch", "both", "all")


class ClassificationHead(nn.Sequential):
    """Logits of vectors: LayerNorm, Linear, GELU, Dropout, Linear, or one Linear.

    Args:
        in_features: Length C of the vectors.
        num_classes: Number of logits.
        hidden_features: Width inside; 0 makes the head one linear layer.
        dropout: Probability before the last layer; not used by one linear layer.

    Raises:
        ValueError: If a number makes no sense.
    """

    def __init__(self, in_features: int, num_classes: int, hidden_features: int = 256, dropout: float = 0.2) -> None:
        if in_features < 1 or num_classes < 1 or hidden_features < 0:
            raise ValueError(
                f"a head needs 1 or more features and classes and 0 or more hidden features, not {in_features}, "
                f"{num_classes} and {hidden_features}"
            )
        layers: list[nn.Module] = [nn.Linear(in_features, num_classes)]
        if hidden_features > 0:
            layers = [
                nn.LayerNorm(in_features),
                nn.Linear(in_features, hidden_features),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_features, num_classes),
            ]
        super().__init__(*layers)
        self.in_features = in_features
        self.num_classes = num_classes


class GatedAttentionPooling(nn.Module):
    """One vector out of a bag of them: their mean, weighted by a gated attention over the bag.

    Source: Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, equation 9.

    Args:
        in_features: Length C of the vectors.
        hidden_features: Width of the attention.
    """

    def __init__(self, in_features: int, hidden_features: int = 128) -> None:
        super().__init__()
        self.value = nn.Linear(in_features, hidden_features)
        self.gate = nn.Linear(in_features, hidden_features)
        self.score = nn.Linear(hidden_features, 1)

    def forward(self, bags: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool bags.

        Args:
            bags: (B, N, C).
            valid: Which vectors of each bag count, (B, N) bool; None: all. Every bag needs at least one.

        Returns:
            The pooled vectors (B, C) and the weight of each vector (B, N), which sum to 1.
        """
        scores = self.score(torch.tanh(self.value(bags)) * torch.sigmoid(self.gate(bags))).squeeze(-1)
        if valid is not None:
            scores = scores.masked_fill(~valid, float("-inf"))
            bags = bags.masked_fill(~valid[..., None], 0.0)
        weights = scores.softmax(dim=-1)
        return (weights[..., None] * bags).sum(dim=-2), weights


class Classifier(nn.Module):
    """Class logits of images.

    Args:
        backbone: Class and patch tokens come from its last layer; its freezing is its own affair.
        head: Maps vectors of `features_width(backbone, features)` numbers to logits; or several heads by name, for
            several tasks at once.
        features: "cls" the class token, "patch" the mean of the patch tokens, "both" the two joined, "all" these and
            the maximum of the patch tokens, which keeps what is seen in a small place only.

    Raises:
        ValueError: If the features are unknown or a head takes vectors of another length.
    """

    def __init__(
        self, backbone: TimmBackbone, head: nn.Module | Mapping[str, nn.Module], features: str = "both"
    ) -> None:
        super().__init__()
        width = features_width(backbone, features)
        heads = dict(head) if isinstance(head, Mapping) else {"": head}
        for name, each in heads.items():
            given = getattr(each, "in_features", width)
            if given != width:
                raise ValueError(
                    f"the head {name or type(each).__name__} takes {given} features, but {features!r} of "
                    f"{backbone.name} has {width}; make it with in_features={width}"
                )
        self.features = features
        self.tasks = tuple(heads) if isinstance(head, Mapping) else ()
        safe = {_module_key(name): each for name, each in heads.items()}
        self.head = nn.ModuleDict(safe) if isinstance(head, Mapping) else head
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Map images (B, 3, H, W) to logits (B, num_classes), or to those of each task by its name."""
        vectors = self.embed(image)
        if isinstance(self.head, nn.ModuleDict):
            return {name: head(vectors) for name, head in zip(self.tasks, self.head.values(), strict=True)}
        logits: Tensor = self.head(vectors)
        return logits

    def embed(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the vectors that the head sees, (B, C)."""
        return join_features(self.backbone.forward_last(image), self.features)


def _module_key(name: str) -> str:
    """Name a head as `nn.ModuleDict` takes it: no dot, and nothing that modules have already, such as `type`."""
    if name and "." not in name and not name.startswith("task:") and not hasattr(nn.ModuleDict(), name):
        return name
    return "task:" + name.replace("%", "%25").replace(".", "%2E")


def join_features(tokens: LayerTokens, features: str) -> Tensor:
    """Make the vectors of images, (B, C), out of a layer's tokens; `features` is one of `FEATURES`."""
    parts = []
    if features != "patch":
        parts.append(tokens.class_token)
    if features != "cls":
        parts.append(tokens.patch_map.mean((-2, -1)))
    if features == "all":
        parts.append(tokens.patch_map.amax((-2, -1)))
    return torch.cat(parts, dim=1)


def features_width(backbone: TimmBackbone, features: str) -> int:
    """Give the length of an image's vector.

    Raises:
        ValueError: If `features` is none of `FEATURES`.
    """
    if features not in FEATURES:
        raise ValueError(f"features {features!r} are unknown; choose from {', '.join(FEATURES)}")
    width: int = backbone.model.num_features
    return {"both": 2, "all": 3}.get(features, 1) * width
