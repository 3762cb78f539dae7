"""A shallower model: a configuration with fewer layers, and the teacher's tensors at their new indices.

Both steps use names and sizes that all families share. The student is constructed from its configuration, so that
properties that depend on a layer's index (`layer_idx`, its kind of attention) are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.errors import ModelError
from potstill.models.anatomy import model_layers

_NOT_PER_LAYER = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")


def per_layer_keys(config: PreTrainedConfig) -> list[str]:
    """The keys with one value per layer, such as `layer_types`: lists whose length is the number of layers."""
    count = getattr(config, "num_hidden_layers", None)  # convolutional nets have stages instead
    return [
        key
        for key, value in config.to_dict().items()
        if isinstance(value, (list, tuple)) and len(value) == count and key not in _NOT_PER_LAYER
    ]


def config_from(
    teacher: PreTrainedConfig, changes: Mapping[str, Any], derive_anew: Sequence[str] = ()
) -> PreTrainedConfig:
    """A configuration of the teacher's family with some keys changed, by the family's own names or the common ones
    (`num_hidden_layers` is GPT-2's `n_layer`). It names no folder, and its dtype is float32.

    Args:
        teacher: all other keys come from it.
        changes: keys and values.
        derive_anew: keys to drop, so that the family's own default rule applies.

    Raises:
        ModelError: the family refuses the result.
    """
    own_name = type(teacher).attribute_map
    document = {key: value for key, value in teacher.to_dict().items() if key not in derive_anew}
    document |= {own_name.get(key, key): value for key, value in changes.items()}
    return config_of(type(teacher), document)


def config_of(family: type[PreTrainedConfig], document: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration of a family by its own keys; other keys have the family's defaults.

    Raises:
        ModelError: the family refuses it.
    """
    try:
        return family.from_dict({**document, "_name_or_path": "", "dtype": "float32"})
    except (StrictDataclassError, ValueError, TypeError, ArithmeticError) as error:
        what = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{family.__name__} does not accept this shape: {what}") from error


def shallower_config(teacher: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """The teacher's configuration with only these layers; lists with one value per layer are reduced too."""
    document = teacher.to_dict()
    kept = {key: [document[key][layer] for layer in layers] for key in per_layer_keys(teacher)}
    return config_from(teacher, {"num_hidden_layers": len(layers), **kept})


def lost_kinds(teacher: PreTrainedConfig, layers: Sequence[int]) -> list[str]:
    """Kinds of layers that the teacher has and the kept layers lack, such as `full_attention` if only the sliding
    layers of an alternating pattern are kept. For a warning; it is no error."""
    document = teacher.to_dict()
    lost: set[str] = set()
    for key in per_layer_keys(teacher):
        kinds = document[key]
        if all(isinstance(kind, str) for kind in kinds):
            lost |= set(kinds) - {kinds[layer] for layer in layers}
    return sorted(lost)


@torch.no_grad()
def copy_layers(teacher: PreTrainedModel, student: PreTrainedModel, layers: Sequence[int]) -> None:
    """Copy the teacher's tensors: layer `layers[i]` becomes layer `i`, and everything outside the layers (embeddings,
    norms, head) is unchanged. Tied weights stay tied, since they are one tensor.

    Raises:
        ModelError: a tensor has no counterpart of equal shape, so the student cannot be made of these layers.
    """
    prefix = layers_name(teacher)
    given = teacher.state_dict()
    used = set()
    for name, tensor in student.state_dict().items():
        source = copied_name(name, prefix, layers)
        if source not in given or given[source].shape != tensor.shape:
            raise _not_made_of(teacher, f"the student's {name} has no counterpart of its shape (it would be {source})")
        tensor.copy_(given[source])
        used.add(source)
    kept = {f"{prefix}{layer}." for layer in layers}
    expected = {n for n in given if not n.startswith(prefix) or any(n.startswith(k) for k in kept)}
    if unused := sorted(expected - used):
        raise _not_made_of(teacher, f"the teacher's {unused[0]} has no place in the student")


def layers_name(model: PreTrainedModel) -> str:
    """The name of the layer list in the state dict, with a dot at the end: `model.layers.`, `transformer.h.`"""
    wanted = model_layers(model)
    name: str = next(name for name, module in model.named_modules() if module is wanted)
    return f"{name}."


def copied_name(name: str, prefix: str, layers: Sequence[int]) -> str:
    """The name of the teacher's tensor that a student's tensor is copied from, `layers[i]` being its layer i."""
    if not name.startswith(prefix):
        return name
    index, dot, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{layers[int(index)]}{dot}{rest}"


def _not_made_of(teacher: PreTrainedModel, why: str) -> ModelError:
    return ModelError(
        f"no student can be made of these layers of {type(teacher).__name__}: {why}",
        where="student.layers",
        fix="choose layers of one kind, or make the student from a config",
    )
