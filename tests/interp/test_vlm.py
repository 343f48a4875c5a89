import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from interp import loading
from interp.errors import ModelError
from interp.families import decoder_blocks
from interp.inputs import collate, to_prompts
from interp.vlm import LLM, VLM


def test_blocks_belong_to_the_language_model(tiny_vlm):
    assert tiny_vlm.n_layers == 3 and tiny_vlm.d_model == 32 and tiny_vlm.picture_size == 96
    assert all(
        block is own for block, own in zip(tiny_vlm.blocks, tiny_vlm.model.model.language_model.layers, strict=True)
    )


def test_bad_models_are_one_clear_line(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="'nowhere' can't be loaded: .* Expected a folder"):
        VLM.from_pretrained("nowhere")
    with pytest.raises(ModelError, match="can't be loaded"):
        VLM.from_pretrained(tmp_path)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path / "llm")
    with pytest.raises(ModelError, match="type 'llama', which accepts no pictures"):
        VLM.from_pretrained(tmp_path / "llm")


def test_a_config_with_another_number_of_layers_is_rejected(tiny_vlm):
    config = tiny_vlm.model.config.get_text_config()
    config.num_hidden_layers = 7
    try:
        with pytest.raises(ModelError, match="its decoder has 3 blocks, its text config says 7"):
            decoder_blocks(tiny_vlm.model)
    finally:
        config.num_hidden_layers = 3


def test_a_checkpoint_with_missing_weights_is_rejected(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "incomplete")
    weights = load_file(folder / "model.safetensors")
    missing = next(name for name in weights if "mlp.up_proj" in name)
    save_file(
        {name: w for name, w in weights.items() if name != missing}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match=r"1 weights \(.*mlp.up_proj.*\) are not in the checkpoint"):
        VLM.from_pretrained(folder)


def test_a_diffusion_pipeline_and_an_unknown_architecture_are_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelError, match="is a diffusion pipeline; expected a vision-language model"):
        VLM.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "from_the_future"}')
    with pytest.raises(ModelError, match="from_the_future"):
        VLM.from_pretrained(tmp_path)


def test_too_little_memory_is_reported_before_anything_is_read(tiny_folder, monkeypatch):
    monkeypatch.setattr("interp.loading.psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr("interp.vlm.AutoModelForImageTextToText", None)
    with pytest.raises(ModelError, match=r"needs 0.0 GB, 0.0 GB are free. Give dtype=torch.bfloat16, device_map"):
        VLM.from_pretrained(tiny_folder, device="cpu")


def test_a_loaded_model_needs_no_folder(tiny_vlm):
    vlm = VLM(tiny_vlm.model, tiny_vlm.processor)
    assert vlm.n_layers == 3 and vlm.name
    with pytest.raises(ModelError, match="has no processor"):
        _ = VLM(tiny_vlm.model, None).tokenizer


def test_parts_have_one_name_each(tiny_vlm):
    inner = tiny_vlm.model.model
    assert tiny_vlm.final_norm is inner.language_model.norm and tiny_vlm.unembedding is tiny_vlm.model.lm_head
    assert tiny_vlm.projector is inner.multi_modal_projector and len(tiny_vlm.vision_blocks) == 1


def test_an_llm_that_the_vlm_was_not_built_on_is_rejected(tiny_vlm):
    config = tiny_vlm.model.config.get_text_config()
    own = LLM(LlamaForCausalLM(config), tiny_vlm.tokenizer, "own")
    own.check_matches(tiny_vlm)
    deeper = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 4})
    with pytest.raises(ModelError, match="'deeper' has 4 layers, .* has 3; expected the language model"):
        LLM(LlamaForCausalLM(deeper), tiny_vlm.tokenizer, "deeper").check_matches(tiny_vlm)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"how": 0, "do": 1}, "how")))
    with pytest.raises(ModelError, match="2 of the 2 tokens of 'other' have another id"):
        LLM(own.model, other, "other").check_matches(tiny_vlm)


def test_the_unembedding_never_gets_a_slice(tiny_folder, queries):
    """`logits_to_keep` makes slices, which PyTorch multiplies with a copy of frozen weights for each row."""
    vlm = VLM.from_pretrained(tiny_folder, device="cpu")
    again = VLM(vlm.model, vlm.processor)
    assert len(again.unembedding._forward_pre_hooks) == 1
    inputs = []
    hook = vlm.unembedding.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    batch = collate(vlm, to_prompts(queries, "scene", 96))
    try:
        with torch.no_grad():
            last = vlm.model(**batch, logits_to_keep=1).logits
            vlm.model.generate(**batch, max_new_tokens=2, do_sample=False)
    finally:
        hook.remove()
    assert len(inputs) == 3 and all(states.shape[:2] == (4, 1) and states.is_contiguous() for states in inputs)
    with torch.no_grad():
        torch.testing.assert_close(last[:, -1], vlm.model(**batch).logits[:, -1])


@pytest.mark.parametrize(
    ("stored", "width", "supported", "expected"),
    [
        (torch.bfloat16, 896, True, torch.bfloat16),
        (torch.bfloat16, 896, False, torch.float32),
        (torch.bfloat16, 192, True, torch.float32),
        (torch.float16, 896, True, torch.float32),
        (None, 896, True, torch.float32),
    ],
)
def test_the_precision_auto_on_a_cpu(stored, width, supported, expected, monkeypatch):
    monkeypatch.setattr(loading, "has_bfloat16", lambda: supported)
    config = Qwen2Config(hidden_size=width, dtype=stored)
    placement = loading.Placement.of("cpu", "auto", None, None).in_precision_of(config)
    assert placement.dtype == placement.loading["dtype"] == expected
    given = loading.Placement.of("cpu", torch.float16, None, None)
    assert given.in_precision_of(config) == given
    spread = loading.Placement.of("cpu", "auto", "auto", None)
    assert spread.in_precision_of(config).dtype == "auto"
