import numpy as np
import pytest
import torch

from interp.activations import fingerprint, stored
from interp.inputs import collate, to_prompts
from interp.trace import last_resid_post, trace


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


def test_batching_and_order_do_not_matter(tiny_vlm, queries):
    prompts = [p for modality in ("blank", "text") for p in to_prompts(queries, modality, 96)]
    done = []
    together = trace(tiny_vlm, prompts, batch_size=3, advance=done.append)
    assert sum(done) == len(prompts) and max(done) == 3
    assert together.modality.values.tolist() == ["blank"] * 4 + ["text"] * 4
    for i, prompt in enumerate(prompts):
        alone = trace(tiny_vlm, [prompt]).resid_post.values[0]
        scale = np.abs(alone).max()
        np.testing.assert_allclose(together.resid_post.values[i] / scale, alone / scale, atol=1e-5)


def test_labels_ride_along(tiny_vlm, queries):
    traced = trace(tiny_vlm, to_prompts(queries, "text", 96))
    assert traced.resid_post.dims == ("prompt", "layer", "token", "d_model")
    assert traced.harmful.values.tolist() == [True, False, True, False]
    assert traced.pair.values.tolist() == ["a", "a", "b", "b"]


def test_a_stored_trace_is_found_again_and_never_half_written(tiny_vlm, queries, tmp_path):
    prompts = to_prompts(queries, "text", 96)
    key, made = fingerprint("model", prompts), []

    def make():
        made.append(1)
        return trace(tiny_vlm, prompts)

    first = stored(tmp_path, key, make)
    assert stored(tmp_path, key, make).identical(first) and len(made) == 1

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, "other", fail)
    assert [path.name for path in tmp_path.iterdir()] == [f"{key}.zarr"]


def test_the_fingerprint_sees_text_labels_pictures_and_model(queries):
    keys = {
        fingerprint(model, to_prompts(chosen, modality, 96))
        for model in ("a", "b")
        for chosen in (queries, queries[:2], queries[::-1])
        for modality in ("text", "blank", "noise")
    }
    assert len(keys) == 18
