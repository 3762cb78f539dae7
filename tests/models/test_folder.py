"""What a model's folder is refused for, before any weights are read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ModelError
from potstill.models.folder import (
    check_folder,
    check_remote_code,
    read_config,
    stated_licence,
    weights_digest,
)
from potstill.models.kinds import check_task


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    assert caught.value.fix, "an error says what to do"
    return str(caught.value)


def test_a_whole_folder_passes(folder: Path) -> None:
    check_folder(folder)


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "llava": (
        {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {"depth": 2}},
        "llava (LlavaForConditionalGeneration) is a vision-language model",
    ),
    "qwen2-vl": (
        {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": {"depth": 2}},
        "Qwen2VLForConditionalGeneration) is a vision-language model",
    ),
    "phi3-v": (
        {"model_type": "phi3_v", "architectures": ["Phi3VForCausalLM"], "img_processor": {"name": "clip"}},
        "phi3_v (Phi3VForCausalLM) is a vision-language model",
    ),
    "qwen2-audio": (
        {
            "model_type": "qwen2_audio",
            "architectures": ["Qwen2AudioForConditionalGeneration"],
            "audio_config": {"a": 1},
        },
        "is a speech or audio model",
    ),
    "t5": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        "t5 (T5ForConditionalGeneration) is an encoder-decoder model",
    ),
    "sequence to sequence of another name": (
        {"model_type": "seamless", "architectures": ["SeamlessForSpeech"]},
        "seamless (SeamlessForSpeech) is nothing that potstill can use",
    ),
    "tagger": (
        {"model_type": "bert", "architectures": ["BertForTokenClassification"]},
        "bert (BertForTokenClassification) is nothing that potstill can use",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_are_of_no_use_are_refused_by_name(kind: str, folder: Path) -> None:
    config, said = KINDS[kind]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()  # the configuration alone decides
    assert said in refusal(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]},
        {"model_type": "llama", "vision_config": None, "is_encoder_decoder": False},
    ],
    ids=["llama", "gpt2", "gemma3 text", "no architecture named"],
)
def test_causal_models_pass(config: dict[str, Any]) -> None:
    check_task(config, "causal_lm", where="here")


@pytest.mark.parametrize(
    ("architecture", "task", "said"),
    [
        ("BertForMaskedLM", "causal_lm", "is no causal language model"),
        ("LlamaForSequenceClassification", "causal_lm", "is no causal language model"),
        ("ConvNextForImageClassification", "sequence_classification", "is no classifier of texts"),
        ("BertForMaskedLM", "image_classification", "is no classifier of images"),
    ],
)
def test_a_model_for_another_task_is_refused_by_name(architecture: str, task: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        check_task({"model_type": "some", "architectures": [architecture]}, task, where="here")
    assert architecture in str(caught.value) and caught.value.fix


@pytest.mark.parametrize("task", ["masked_lm", "sequence_classification", "sentence_embedding"])
@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_an_encoder_may_be_used_for_any_task_of_texts_but_writing(architecture: str, task: Any) -> None:
    check_task({"model_type": "bert", "architectures": [architecture]}, task, where="here")


def test_pickled_weights_are_refused_with_the_fix(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refusal(folder)
    assert "pickled (pytorch_model.bin)" in said and "save_pretrained" in said


def test_safetensors_beside_pickles_are_used(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    check_folder(folder)


def test_a_folder_without_configuration_says_what_was_meant_instead(tmp_path: Path) -> None:
    assert "there is no config.json" in refusal(tmp_path)
    (tmp_path / "weights.Q4_1.gguf").touch()
    assert f"name the GGUF file itself: {tmp_path}/weights.Q4_1.gguf" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge it first" in refusal(tmp_path)


def test_a_damaged_configuration_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json is no JSON" in refusal(folder)


@pytest.mark.parametrize("cut", [0, 5, 100, 5000])
def test_weights_that_are_cut_short_are_found_without_reading_them(cut: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    assert "model.safetensors" in refusal(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 of 2 weight files are missing (model-00002-of-00002.safetensors" in refusal(folder)


def test_no_weights_and_no_tokenizer_are_said(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "elsewhere")
    assert "there is no tokenizer" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "there are no weights" in refusal(folder)


CODE = {
    "model_type": "strange",
    "auto_map": {"AutoConfig": "configuration_strange.S", "AutoModelForCausalLM": "code.S"},
}


def test_code_of_its_own_is_refused_unless_trusted_by_name() -> None:
    with pytest.raises(
        ModelError, match=r"strange runs code of its own \(code.py, configuration_strange.py\)"
    ) as caught:
        check_remote_code(CODE, trust_remote_code=False, where="here")
    assert "trust_remote_code: true" in str(caught.value)
    check_remote_code(CODE, trust_remote_code=True, where="here")


def test_code_beside_a_model_that_transformers_knows_is_not_needed() -> None:
    check_remote_code(CODE | {"model_type": "phi3"}, trust_remote_code=False, where="here")


def test_the_licence_is_what_the_card_states(tmp_path: Path) -> None:
    assert stated_licence(tmp_path) == ""
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: apache-2.0\n---\n# Model\n")
    assert stated_licence(tmp_path) == "apache-2.0"
    card.write_text("---\nlicense: other\nlicense_name: llama3.2\n---\n")
    assert stated_licence(tmp_path) == "llama3.2"
    for silent in ("# Model\nlicense: mit\n", "---\n: [\n---\n", "---\nonly a line"):
        card.write_text(silent)
        assert stated_licence(tmp_path) == ""


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_the_digest_knows_everything_that_answers_depend_on(file: str, folder: Path) -> None:
    before = weights_digest(folder)
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    assert weights_digest(folder) != before


def test_the_digest_does_not_depend_on_place_or_card(folder: Path, tmp_path: Path) -> None:
    before = weights_digest(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / "README.md").write_text("a card")
    assert weights_digest(moved) == before


def test_looking_at_a_folder_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from potstill.models import locate\n"
        "print(locate(sys.argv[1]).digest, {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [weights_digest(folder), "set()"]


def test_a_configuration_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="no JSON object"):
        read_config(tmp_path)
