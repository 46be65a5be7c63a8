"""ViTHf: a small vision transformer of the transformers library, whose Auto classes load the generated weights.

Dosovitskiy et al. 2021 (arXiv:2010.11929). Tensors, names and config.json are those of ViTForImageClassification; this
module imports transformers, so the registry imports it only when such a network is built.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

PATCH, IMAGE_SIZE = 4, 28


class ViTHf(ViTForImageClassification):
    """Maps images (n, c, 28, 28) in [0, 1] to logits (n, num_classes); patches of 4x4."""

    SCALABLE = ()
    """No hidden word may be scaled: GELU, softmax and LayerNorm do not commute with scale."""
    INPUT = "image"
    HUB_LIBRARY = "transformers"
    HUB_LOADER = "AutoModelForImageClassification"

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 1, width: int = 48, depth: int = 4, num_heads: int = 4
    ) -> None:
        config = ViTConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            num_channels=in_channels,
        )
        config.num_labels = num_classes
        super().__init__(config)

    @property
    def AXES(self) -> dict[str, str]:
        tokens = (IMAGE_SIZE // PATCH) ** 2 + 1
        axes = {
            "vit.embeddings.cls_token": "1 1 d",
            "vit.embeddings.position_embeddings": f"1 {tokens} d",
            "vit.embeddings.patch_embeddings.projection.weight": f"d CHANNELS {PATCH} {PATCH}",
            "vit.embeddings.patch_embeddings.projection.bias": "d",
            "vit.layernorm.weight": "d",
            "vit.layernorm.bias": "d",
            "classifier.weight": "CLASSES d",
            "classifier.bias": "CLASSES",
        }
        for i in range(self.config.num_hidden_layers):
            # The same permutation of k moves q and k, so q.k is unchanged; o_proj reads v in the order of v.
            layer, heads = f"vit.layers.{i}", f"h{i}={self.config.num_attention_heads}"
            for name, word in (("q_proj", f"k{i}"), ("k_proj", f"k{i}"), ("v_proj", f"v{i}")):
                axes[f"{layer}.attention.{name}.weight"] = f"({heads} {word}) d"
                axes[f"{layer}.attention.{name}.bias"] = f"({heads} {word})"
            axes |= {
                f"{layer}.attention.o_proj.weight": f"d ({heads} v{i})",
                f"{layer}.attention.o_proj.bias": "d",
                f"{layer}.layernorm_before.weight": "d",
                f"{layer}.layernorm_before.bias": "d",
                f"{layer}.layernorm_after.weight": "d",
                f"{layer}.layernorm_after.bias": "d",
                f"{layer}.mlp.fc1.weight": f"m{i} d",
                f"{layer}.mlp.fc1.bias": f"m{i}",
                f"{layer}.mlp.fc2.weight": f"d m{i}",
                f"{layer}.mlp.fc2.bias": "d",
            }
        return axes

    def hub_files(self, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """File name -> content of the JSON files with which transformers loads a state and prepares its images."""
        config = self.config.to_dict()
        config.pop("transformers_version", None)  # so that the bytes are the same under every version
        names = list(class_names)
        return {
            "config.json": {
                **config,
                "architectures": [ViTForImageClassification.__name__],
                "dtype": "float32",
                "id2label": {str(i): name for i, name in enumerate(names)},
                "label2id": {name: i for i, name in enumerate(names)},
            },
            "preprocessor_config.json": {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": True,
                "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": False,
            },
        }

    @property
    def head(self) -> nn.Module:
        return self.classifier

    def features(self, pixel_values: Tensor) -> Tensor:
        """Inputs of the head: the class token after the last norm, (n, width)."""
        return self.vit(pixel_values).last_hidden_state[:, 0]

    def forward(self, pixel_values: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.classifier(self.features(pixel_values))
