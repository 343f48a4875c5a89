import pytest
import torch

from interp.errors import ModelError
from interp.inputs import collate, to_prompts
from interp.token_positions import TraceError
from interp.trace import trace
from interp.tracing.forward import DECODER_SITES, PassSpec, last_resid_post, read
from interp.vlm import VLM


@pytest.mark.parametrize("modality", ["text", "scene", "typographic"])
def test_resid_post_is_what_hugging_face_calls_hidden_states(tiny_vlm, queries, modality):
    prompts = to_prompts(queries, modality, 96)
    with torch.no_grad():
        plain = tiny_vlm.model(**collate(tiny_vlm, prompts), use_cache=False, output_hidden_states=True)
    resid = last_resid_post(tiny_vlm, prompts)
    for layer in range(tiny_vlm.n_layers - 1):
        assert torch.equal(resid[:, layer], plain.hidden_states[layer + 1][:, -1])
    last = tiny_vlm.model.get_decoder().norm(resid[:, -1])
    torch.testing.assert_close(last, plain.hidden_states[-1][:, -1], atol=1e-6, rtol=0)
    assert not torch.allclose(resid[:, -1], plain.hidden_states[-1][:, -1])


def test_a_trace_leaves_the_logits_alone(tiny_vlm, queries):
    prompts = to_prompts(queries, "blank", 96)
    batch = collate(tiny_vlm, prompts)
    with torch.no_grad():
        before = tiny_vlm.model(**batch).logits
        last_resid_post(tiny_vlm, prompts)
        assert torch.equal(tiny_vlm.model(**batch).logits, before)


def test_a_pass_stops_after_the_last_state_that_is_read(tiny_vlm, queries):
    """Neither later blocks run nor the unembedding."""
    ran = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
        for name, module in [*enumerate(tiny_vlm.blocks), ("unembedding", tiny_vlm.unembedding)]
    ]
    batch, end = collate(tiny_vlm, to_prompts(queries, "blank", 96)), torch.full((4, 1), -1)
    try:
        read(tiny_vlm, batch, PassSpec(("resid_post",), (0, 1), end))
        assert ran == [0, 1]
        ran.clear()
        read(tiny_vlm, batch, PassSpec(("projector_out",), (0, 1), end))
        assert ran == []
    finally:
        for hook in hooks:
            hook.remove()


def test_attn_out_and_mlp_out_add_up_to_what_a_block_adds(tiny_vlm, queries):
    batch = collate(tiny_vlm, to_prompts(queries, "scene", 96))
    states = read(tiny_vlm, batch, PassSpec(DECODER_SITES, (0, 2), torch.full((4, 1), -1)))
    assert torch.equal(states["resid_pre"] + states["attn_out"] + states["mlp_out"], states["resid_post"])
    assert states["resid_post"].shape == (4, 2, 1, tiny_vlm.d_model)


def test_a_pass_on_a_server_gives_the_same_states(tiny_vlm, queries):
    """The simulated server hides this project's own modules from the code that runs there."""
    prompts = [p for modality in ("scene", "text") for p in to_prompts(queries[:2], modality, 96)]
    kwargs = {"sites": ("resid_pre", "mlp_out", "resid_post", "projector_out"), "tokens": ("last", "text_mean")}
    here, there = (trace(tiny_vlm, prompts, **kwargs, remote=remote) for remote in (False, "local"))
    for site in kwargs["sites"]:
        torch.testing.assert_close(
            torch.from_numpy(there[site].values), torch.from_numpy(here[site].values), atol=1e-5, rtol=0, equal_nan=True
        )


def test_a_server_cannot_load_a_model_built_by_hand(tiny_vlm, queries):
    in_hand = VLM(tiny_vlm.model, tiny_vlm.processor, "in hand")
    with pytest.raises(ModelError, match="a server can't load 'in hand', which was built by hand"):
        trace(in_hand, to_prompts(queries, "text", 96), remote="local")
    with pytest.raises(TraceError, match="ray and remote exclude each other"):
        trace(in_hand, to_prompts(queries, "text", 96), remote="local", ray="local")


def test_a_model_without_weights_makes_the_same_batches(tiny_vlm, queries):
    empty = VLM.from_pretrained(tiny_vlm.name, device="meta")
    assert {parameter.device.type for parameter in empty.model.parameters()} == {"meta"}
    prompts = to_prompts(queries, "scene", 96)
    ours, theirs = collate(empty, prompts), collate(tiny_vlm, prompts)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert empty.n_layers == tiny_vlm.n_layers and len(empty.vision_blocks) == len(tiny_vlm.vision_blocks)
