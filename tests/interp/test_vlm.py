import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interp.verify import verify
from interp.vlm import VLM, ModelError, decoder_blocks


def test_blocks_belong_to_the_language_model(tiny_vlm):
    assert tiny_vlm.n_layers == 3 and tiny_vlm.d_model == 32 and tiny_vlm.picture_size == 96
    assert all(
        block is own for block, own in zip(tiny_vlm.blocks, tiny_vlm.model.model.language_model.layers, strict=True)
    )


def test_every_property_holds_on_a_sound_model(tiny_vlm):
    findings = verify(tiny_vlm)
    assert len(findings) == 10 and [f for f in findings if not f.holds] == []


def test_a_guard_that_stays_behind_is_found(tiny_vlm):
    """Breaks the property that `verify` ends with: a hook that adds noise to every pass after the first."""
    passes = []

    def late(module, args, output):
        passes.append(1)
        return output + 1e-3 if len(passes) > 4 else output

    hook = tiny_vlm.blocks[0].register_forward_hook(late)
    try:
        assert [f.claim for f in verify(tiny_vlm) if not f.holds]
    finally:
        hook.remove()


def test_right_padding_is_found(tiny_vlm):
    tiny_vlm.tokenizer.padding_side = "right"
    try:
        failed = [f.claim for f in verify(tiny_vlm) if not f.holds]
    finally:
        tiny_vlm.tokenizer.padding_side = "left"
    assert "text: a left-padded batch equals its single prompts" in failed


def test_a_hook_on_the_wrong_module_is_found(tiny_vlm):
    """The blocks of another model: their count is right, changing them does nothing."""
    broken = VLM(tiny_vlm.model, tiny_vlm.processor, "broken")
    strangers = LlamaForCausalLM(tiny_vlm.model.config.get_text_config())
    vars(broken)["blocks"] = decoder_blocks(strangers)
    batch_claim = "changing a block's output changes the logits"
    from interp.inputs import collate, to_prompts
    from interp.verify import QUERIES, _changes_logits

    batch = collate(broken, to_prompts(QUERIES, "text", 96))
    with torch.no_grad():
        plain = broken.model(**batch, use_cache=False).logits
    finding = _changes_logits(broken, batch, plain)
    assert finding.claim == batch_claim and not finding.holds


def test_bad_models_are_one_clear_line(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="'nowhere' can't be loaded: .* Expected a folder"):
        VLM.from_pretrained("nowhere")
    with pytest.raises(ModelError, match="can't be loaded"):
        VLM.from_pretrained(tmp_path)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path / "llm")
    with pytest.raises(ModelError, match="type 'llama', which takes no pictures"):
        VLM.from_pretrained(tmp_path / "llm")


def test_a_config_that_counts_other_layers_is_refused(tiny_vlm):
    config = tiny_vlm.model.config.get_text_config()
    config.num_hidden_layers = 7
    try:
        with pytest.raises(ModelError, match="its decoder has 3 blocks, its text config says 7"):
            decoder_blocks(tiny_vlm.model)
    finally:
        config.num_hidden_layers = 3
