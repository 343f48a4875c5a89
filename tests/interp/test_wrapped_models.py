"""What people bring around a model: adapters, parallel wrappers, modules of their own, offloaded weights."""

from tempfile import mkdtemp
from types import SimpleNamespace

import accelerate
import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from interp.directions import SafetyDirection, random_basis
from interp.errors import ModelError
from interp.guard import Guard
from interp.guard_batches import run_guards
from interp.identity import weights_identity
from interp.inputs import collate, to_prompts
from interp.trace import trace
from interp.verify import check_vlm
from interp.vlm import LLM, VLM


@pytest.fixture
def own_vlm(tiny_folder):
    """A model that a test may change."""
    return VLM.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def batch(tiny_vlm, queries):
    return collate(tiny_vlm, to_prompts(queries, "blank", 96))


def guard_of(vlm):
    basis = random_basis(torch.zeros(vlm.n_layers, 1, vlm.d_model), seed=0)
    return Guard(SafetyDirection(basis, "random"), (1,), rule="ablate", gate="always", strength=5.0)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


def lora(vlm, name="default"):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    return peft.get_peft_model(vlm.model, config, adapter_name=name)


class Wrapper(nn.Module):
    def __init__(self, *models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, **batch):
        return self.models[0](**batch)


@pytest.mark.parametrize("wrap", [nn.DataParallel, Wrapper, lambda model: Wrapper(nn.DataParallel(model))])
def test_wrappers_are_unwrapped_and_guarded(own_vlm, batch, wrap):
    wrapped = wrap(own_vlm.model)
    vlm = VLM(wrapped, own_vlm.processor)
    assert vlm.model is own_vlm.model
    with guard_of(own_vlm).on(own_vlm):
        wanted = logits(own_vlm.model, batch)
    with guard_of(vlm).on(vlm):
        assert torch.equal(logits(wrapped, batch), wanted)


def test_what_cannot_be_unwrapped_says_what_to_pass(own_vlm):
    with pytest.raises(ModelError, match=r"around 2 Hugging Face models .*; pass the one that is meant"):
        VLM(
            Wrapper(own_vlm.model, own_vlm.model.model.language_model.__class__(own_vlm.model.config.text_config)),
            own_vlm.processor,
        )
    with pytest.raises(ModelError, match="around 0 Hugging Face models"):
        VLM(nn.Linear(2, 2), own_vlm.processor)
    with pytest.raises(ModelError, match=r"a compiled LlavaForConditionalGeneration.*model\._orig_mod"):
        VLM(torch.compile(own_vlm.model, backend="eager"), own_vlm.processor)


class LearnedPrompts(Wrapper):
    """Like a model of PEFT that puts learned embeddings in front of every prompt."""

    active_peft_config = SimpleNamespace(is_prompt_learning=True)

    def get_base_model(self):
        return self.models[0]


def test_learned_prompts_which_the_model_inside_does_not_have_are_refused(own_vlm):
    with pytest.raises(ModelError, match="whose adapter is learned prompts"):
        VLM(LearnedPrompts(own_vlm.model), own_vlm.processor)


def test_models_of_text_and_encoder_decoders_are_refused_in_one_line(own_vlm, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    )
    with pytest.raises(ModelError, match=r"LLM\(model, tokenizer, name\) is for models of text"):
        VLM(llama, own_vlm.processor)
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=20))
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        LLM(t5, own_vlm.tokenizer, "t5")


def test_an_adapter_is_guarded_in_passes_and_in_generation(own_vlm, batch):
    adapted = lora(own_vlm)
    vlm, guard = VLM(adapted, own_vlm.processor), guard_of(own_vlm)
    kwargs = {"max_new_tokens": 3, "do_sample": False}
    plain = logits(adapted, batch)
    with guard.on(vlm):
        guarded, answers = logits(adapted, batch), adapted.generate(**batch, **kwargs)
        assert torch.equal(vlm.model.generate(**batch, **kwargs), answers)
    assert not torch.allclose(plain, guarded)
    assert not [f for f in check_vlm(vlm) if not f.is_accepted]


def test_the_folder_of_an_adapter_is_a_model(own_vlm, tiny_folder, batch, tmp_path):
    adapted = lora(own_vlm)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    adapted.save_pretrained(tmp_path / "adapter")
    vlm = VLM.from_pretrained(tmp_path / "adapter", device="cpu")
    assert torch.equal(logits(vlm.model, batch), logits(adapted, batch)) and vlm.name == str(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base model"):
        VLM.from_pretrained(tmp_path / "adapter")


def test_the_identity_of_a_model_covers_the_state_of_its_adapters(own_vlm):
    seen = {weights_identity(own_vlm)}
    adapted = lora(own_vlm, "first")
    import peft

    vlm = VLM(adapted, own_vlm.processor)

    def is_new():
        seen.add(found := weights_identity(vlm))
        assert weights_identity(vlm) == found
        return len(seen)

    assert is_new() == 2
    adapted.add_adapter("second", peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    assert is_new() == 3
    adapted.set_adapter("second")
    assert is_new() == 4
    with adapted.disable_adapter():
        assert is_new() == 5
    adapted.merge_adapter()
    assert is_new() == 6


def test_offloaded_weights_are_read_for_the_identity_and_run_exactly(own_vlm, tiny_folder, batch, queries, tmp_path):
    prompts = to_prompts(queries, "blank", 96)
    wanted, identity = trace(own_vlm, prompts).resid_post.values, weights_identity(own_vlm)
    with guard_of(own_vlm).on(own_vlm):
        guarded = logits(own_vlm.model, batch)
    rows = run_guards(own_vlm, prompts, [None, guard_of(own_vlm)], max_new_tokens=2, together=True).tokens

    def partly_on_disk(model):
        """Keep one block on disk and the rest in memory, as `device_map="auto"` does where memory is short."""
        places = dict.fromkeys(("model.vision_tower", "model.multi_modal_projector", "lm_head"), "cpu")
        places |= dict.fromkeys(("model.language_model.embed_tokens", "model.language_model.norm"), "cpu")
        places |= {"model.language_model.rotary_emb": "cpu"}
        n_layers = len(model.model.language_model.layers)
        places |= {f"model.language_model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(n_layers)}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=mkdtemp(dir=tmp_path), force_hooks=True)

    ways = (
        lambda model: accelerate.cpu_offload(model, execution_device="cpu"),
        # A folder each, since weights that are in one already are not written again.
        lambda model: accelerate.disk_offload(model, mkdtemp(dir=tmp_path), execution_device="cpu"),
        partly_on_disk,
    )
    for offload in ways:
        vlm = VLM.from_pretrained(tiny_folder, device="cpu")
        offload(vlm.model)
        assert weights_identity(vlm) == identity
        assert (trace(vlm, prompts).resid_post.values == wanted).all()
        with guard_of(vlm).on(vlm):
            assert torch.equal(logits(vlm.model, batch), guarded)
        found = run_guards(vlm, prompts, [None, guard_of(vlm)], max_new_tokens=2, together=True)
        assert (found.tokens == rows).all()
        other = VLM.from_pretrained(tiny_folder, device="cpu")
        with torch.no_grad():
            other.blocks[0].mlp.down_proj.weight.add_(0.5)
        offload(other.model)
        assert weights_identity(other) != identity


def test_tensor_subclasses_have_an_identity(own_vlm):
    torchao = pytest.importorskip("torchao.quantization")
    before = weights_identity(own_vlm)
    torchao.quantize_(own_vlm.model.model.language_model, torchao.Int8WeightOnlyConfig())
    quantised = weights_identity(own_vlm)
    assert quantised != before and weights_identity(own_vlm) == quantised


def test_an_llm_is_guarded_traced_and_explained_like_a_vlms_text(tiny_vlm, queries):
    inner = tiny_vlm.model.model.language_model
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_config(inner.config).eval()
    llama.model.load_state_dict(inner.state_dict())
    llama.lm_head.load_state_dict(tiny_vlm.model.lm_head.state_dict())
    tokenizer = tiny_vlm.tokenizer
    tokenizer.chat_template = tiny_vlm.processor.chat_template
    llm, prompts = LLM(llama, tokenizer, "llm"), to_prompts(queries, "text", 96)
    guard = Guard(guard_of(tiny_vlm).direction, (1,), strength=3.0)
    batch = collate(tiny_vlm, prompts)
    with guard.on(tiny_vlm):
        wanted = logits(tiny_vlm.model, batch)
    with guard.on(llm):
        torch.testing.assert_close(logits(llama, batch), wanted)
    assert trace(llm, prompts).sizes["layer"] == tiny_vlm.n_layers
    explained = guard.explain(llm, prompts[0])
    assert explained.coordinate.tolist() == pytest.approx(
        guard.explain(tiny_vlm, prompts[0]).coordinate.tolist(), rel=1e-4
    )


def test_training_mode_with_checkpointing_does_not_break_traces(own_vlm, queries):
    prompts = to_prompts(queries, "blank", 96)
    wanted = trace(own_vlm, prompts).resid_post.values
    own_vlm.model.train()
    own_vlm.model.activation_checkpointing_enable()
    assert (trace(own_vlm, prompts).resid_post.values == wanted).all()


def test_a_device_that_does_not_exist_is_one_line(tiny_folder):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="can't be loaded: .*CUDA"):
        VLM.from_pretrained(tiny_folder, device_map="cuda")
