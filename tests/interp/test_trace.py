import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from interp import trace as public_trace
from interp.activations import open_store
from interp.batches import BatchPlan
from interp.errors import ModelError
from interp.inputs import Query, collate, to_prompt, to_prompts
from interp.pictures import PictureError
from interp.trace import trace
from interp.tracing.forward import SITES, PassSpec, last_resid_post, read
from interp.vlm import LLM

TOKENS = ("last", "image_mean", "instruction", "text_mean", -2)


@pytest.fixture
def prompts(queries):
    """Prompts of all kinds: with a picture of their own, without one, with a shared one."""
    return [p for modality in ("scene", "text", "blank") for p in to_prompts(queries, modality, 96)]


def assert_same(ours, theirs, atol=1e-5):
    """Assert that numbers agree relative to the largest one, with NaN in the same places."""
    scale = np.nanmax(np.abs(theirs), initial=0) or 1.0
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=atol, equal_nan=True)


def test_a_trace_carries_the_labels_of_its_prompts(tiny_vlm, prompts):
    traced = trace(tiny_vlm, prompts)
    assert public_trace is trace
    assert traced.resid_post.dims == ("prompt", "layer", "token", "d_model")
    assert traced.resid_post.shape == (12, tiny_vlm.n_layers, 1, tiny_vlm.d_model)
    assert traced.harmful.values.tolist() == [True, False] * 6
    assert traced.pair.values.tolist() == ["a", "a", "b", "b"] * 3
    assert traced.modality.values.tolist() == ["scene"] * 4 + ["text"] * 4 + ["blank"] * 4
    assert len(set(traced.picture.values[8:])) == 1 < len(set(traced.picture.values[:4])) == 4
    assert len(set(traced.prompt_hash.values)) == 12
    ends = [collate(tiny_vlm, [prompt])["input_ids"].shape[1] - 1 for prompt in prompts]
    assert traced.position.values[:, 0].tolist() == ends


@pytest.mark.parametrize("batch_size", [None, 1, 5])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_batching_order_and_sharing_do_not_matter(tiny_vlm, prompts, batch_size, share_prefix):
    n_done = []
    kwargs = {"sites": SITES, "tokens": TOKENS, "share_prefix": share_prefix, "batch_size": batch_size}
    together = trace(tiny_vlm, prompts, **kwargs, advance=n_done.append)
    assert sum(n_done) == 12
    for i, prompt in enumerate(prompts):
        if prompt.pictures:
            alone = trace(tiny_vlm, [prompt], sites=SITES, tokens=TOKENS)
            for site in SITES:
                assert_same(together[site].values[i], alone[site].values[0])
        else:
            alone = trace(tiny_vlm, [prompt], tokens=TOKENS)
            assert_same(together.resid_post.values[i], alone.resid_post.values[0])
            assert np.isnan(together.resid_post.sel(token="image_mean").values[i]).all()
            assert np.isnan(together.projector_out.values[i]).all()
        assert together.position.values[i].tolist() == alone.position.values[0].tolist()


def test_each_token_role_reads_the_tokens_it_names(tiny_vlm, prompts):
    """Compared with states of whole prompts, selected by hand."""
    traced = trace(tiny_vlm, prompts, tokens=TOKENS)
    for i, prompt in enumerate(prompts):
        batch = collate(tiny_vlm, [prompt])
        ids = batch["input_ids"][0]
        every_position = torch.arange(len(ids))[None]
        states = read(tiny_vlm, batch, PassSpec(("resid_post",), (0, 1, 2), every_position))["resid_post"][0]
        is_image = ids == tiny_vlm.image_token_id
        expected_states = [
            states[:, -1],
            states[:, is_image].mean(1),
            None,
            states[:, ~is_image].mean(1),
            states[:, -2],
        ]
        for token, expected in zip(TOKENS, expected_states, strict=True):
            if expected is not None:
                assert_same(traced.resid_post.sel(token=token).values[i], expected.numpy())
        end = traced.position.sel(token="instruction").values[i]
        assert tiny_vlm.tokenizer.decode(ids[: end + 1]).endswith(prompt.text)
        assert_same(traced.resid_post.sel(token="instruction").values[i], states[:, end].numpy())


def test_a_trace_of_all_tokens_and_some_layers(tiny_vlm, prompts):
    all_tokens = trace(tiny_vlm, prompts, tokens="all", layers=[2, 0])
    last = trace(tiny_vlm, prompts)
    assert all_tokens.layer.values.tolist() == [0, 2]
    for i, prompt in enumerate(prompts):
        n = collate(tiny_vlm, [prompt])["input_ids"].shape[1]
        assert_same(all_tokens.resid_post.values[i, :, n - 1], last.resid_post.values[i, [0, 2], 0])
        assert all_tokens.position.values[i, :n].tolist() == list(range(n))
        assert (
            np.isnan(all_tokens.resid_post.values[i, :, n:]).all() and (all_tokens.position.values[i, n:] == -1).all()
        )


def test_vision_sites_are_means_of_the_outputs_of_the_blocks(tiny_vlm, queries):
    outputs = {}
    hooks = [
        tiny_vlm.vision_blocks[-1].register_forward_hook(lambda module, args, out: outputs.update(block=out)),
        tiny_vlm.projector.register_forward_hook(lambda module, args, out: outputs.update(projector=out)),
    ]
    prompts = to_prompts(queries, "scene", 96)
    traced = trace(tiny_vlm, prompts, sites=("vision_resid_post", "projector_out"))
    assert set(traced.data_vars) == {"vision_resid_post", "projector_out"}
    assert traced.vision_resid_post.dims == ("prompt", "vision_layer", "d_vision")
    with torch.no_grad():
        tiny_vlm.model(**collate(tiny_vlm, prompts[:1]))
    for hook in hooks:
        hook.remove()
    block = outputs["block"][0] if isinstance(outputs["block"], tuple) else outputs["block"]
    assert_same(traced.vision_resid_post.values[0, -1], block.flatten(0, -2).mean(0).numpy())
    assert_same(traced.projector_out.values[0], outputs["projector"].flatten(0, -2).mean(0).numpy())


def test_a_picture_is_encoded_once_whatever_the_batches(tiny_vlm, queries):
    blank, other = to_prompts(queries, "blank", 96), to_prompts(queries[:1], "noise", 96)[0].pictures
    prompts = [replace(prompt, pictures=pictures) for prompt in blank for pictures in (prompt.pictures, other)]
    # The first trace on a model tests whether prefixes can be shared.
    trace(tiny_vlm, prompts)
    passes = []
    hook = tiny_vlm.vision_blocks[0].register_forward_hook(lambda module, args, output: passes.append(1))
    trace(tiny_vlm, prompts, batch_size=3, sites=("resid_post", "projector_out"))
    n_shared, _ = len(passes), passes.clear()
    trace(tiny_vlm, prompts, batch_size=8, share_prefix=False)
    hook.remove()
    # One more pass measures the width of the vision sites.
    assert n_shared == 2 + 1 and len(passes) == 1


def test_batches_are_halved_when_memory_runs_out(tiny_vlm, prompts, monkeypatch):
    expected, sizes = trace(tiny_vlm, prompts, sites=SITES), []

    def read_small_batches(model, batch, spec, cache=None, remote=False):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(model, batch, spec, cache, remote)

    monkeypatch.setattr("interp.tracing.runner.read", read_small_batches)
    monkeypatch.setattr("interp.tracing.prefix.read", read_small_batches)
    trace(tiny_vlm, prompts, sites=("resid_post",), batch_size=4)
    # A size that does not fit is tried once, not in every batch.
    assert sum(size > 2 for size in sizes) == 1
    halved = trace(tiny_vlm, prompts, sites=SITES)
    for site in SITES:
        assert_same(halved[site].values, expected[site].values)


def test_one_prompt_that_does_not_fit_is_a_one_line_error(tiny_vlm, queries, monkeypatch):
    def read_out_of_memory(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr("interp.tracing.runner.read", read_out_of_memory)
    with pytest.raises(ModelError, match="one prompt does not fit into memory together with .*can't allocate memory"):
        trace(tiny_vlm, to_prompts(queries, "text", 96))


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(tiny_vlm, queries, monkeypatch):
    def read_wrong_shapes(*args, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("interp.tracing.runner.read", read_wrong_shapes)
    with pytest.raises(RuntimeError, match="shapes differ"):
        trace(tiny_vlm, to_prompts(queries, "text", 96))


def test_the_plan_keeps_prompts_about_the_same_picture_together(queries):
    prompts = [p for modality in ("text", "blank", "scene") for p in to_prompts(queries, modality, 96)]
    plan = BatchPlan.of(prompts, [""] * 4 + ["white"] * 4 + ["a", "b", "c", "d"], 5)
    assert set(plan.order[:4]) == {4, 5, 6, 7} and set(plan.order[4:8]) == {8, 9, 10, 11}
    assert sorted(plan.order) == list(range(12))
    assert plan.keys == ("",) * 4 + ("white",) * 4 + ("",) * 4
    assert [plan.rows(batch) for batch in range(plan.n_batches)] == [plan.order[:5], plan.order[5:10], plan.order[10:]]
    lengths = [len(prompts[i].text) for i in plan.order[4:8]]
    assert lengths == sorted(lengths)


def test_means_without_single_tokens(tiny_vlm, prompts):
    both = trace(tiny_vlm, prompts, tokens=("text_mean", "last"))
    alone = trace(tiny_vlm, prompts, tokens=("text_mean",))
    assert_same(alone.resid_post.values, both.resid_post.values[:, :, :1])
    assert (alone.position.values == -1).all()


def test_layers_and_tokens_can_be_those_of_another_trace(tiny_vlm, prompts, tmp_path):
    first = trace(tiny_vlm, prompts, layers=[0, 2], tokens=("last", -2))
    again = trace(tiny_vlm, prompts, layers=first.layer.values, tokens=first.token.values, out=tmp_path / "store")
    assert again.layer.values.tolist() == [0, 2] and again.token.values.tolist() == ["last", -2]
    assert_same(again.resid_post.values, first.resid_post.values)


def press_ctrl_c(n_prompts):
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_the_last_batch_still_raises(tiny_vlm, prompts, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=12, advance=press_ctrl_c)
    assert open_store(tmp_path / "store").sizes["prompt"] == 12


def test_ctrl_c_stops_after_the_batch_and_the_trace_can_be_resumed(tiny_vlm, prompts, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="run the same trace again to resume"):
        trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=3, advance=press_ctrl_c)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(list((tmp_path / "store" / "done").iterdir())) == 1
    n_done = []
    resumed = trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=3, advance=n_done.append)
    assert n_done == [3, 3, 3, 3]
    assert_same(resumed.resid_post.values, trace(tiny_vlm, prompts).resid_post.values)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"sites": ("resid_mid",)}, r"sites \['resid_mid'\]; expected some of resid_pre"),
        ({"sites": "resid_post"}, "sites 'resid_post'"),
        ({"sites": ()}, "expected some of"),
        ({"layers": [3]}, r"layers \(3,\); .* has layers 0 to 2"),
        ({"layers": []}, "has layers 0 to 2"),
        ({"tokens": ("first",)}, r"tokens \['first'\]; expected 'all', or some of last"),
        ({"tokens": "last"}, "tokens 'last'"),
        ({"tokens": ("last", 5000)}, r"prompt 0 \('.*'\): token 5000 of a prompt of \d+ tokens; expected"),
        ({"remote": "locl"}, r"remote='locl'; expected True \(NDIF\), 'local'"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16'; expected one of float32, float16"),
    ],
)
def test_an_invalid_request_is_refused_before_anything_runs(tiny_vlm, queries, monkeypatch, kwargs, message):
    monkeypatch.setattr("interp.tracing.runner.read", None)
    with pytest.raises(ValueError, match=message):
        trace(tiny_vlm, to_prompts(queries, "text", 96), **kwargs)


def test_a_trace_without_prompts_or_without_pictures_is_refused(tiny_vlm, queries):
    with pytest.raises(ValueError, match="no prompts"):
        trace(tiny_vlm, [])
    with pytest.raises(ValueError, match="projector_out of prompts without pictures"):
        trace(tiny_vlm, to_prompts(queries, "text", 96), sites=("projector_out",))
    llm = LLM(tiny_vlm.model.model.language_model, tiny_vlm.tokenizer, "llm")
    with pytest.raises(ValueError, match="'llm' is a text-only model and has no vision_resid_post"):
        trace(llm, to_prompts(queries, "text", 96), sites=("projector_out",))


def test_unreadable_pictures_are_all_named_before_the_run_or_are_left_out(tiny_vlm, queries, tmp_path, monkeypatch):
    good, truncated, no_picture = tmp_path / "good.png", tmp_path / "truncated.png", tmp_path / "words.png"
    Image.effect_noise((96, 96), 64).convert("RGB").save(good)
    truncated.write_bytes(good.read_bytes()[:2000])
    no_picture.write_text("no picture")
    paths = [good, truncated, no_picture, tmp_path / "missing.png"]
    queries_with_pictures = [replace(query, picture=str(path)) for query, path in zip(queries, paths, strict=True)]
    prompts = to_prompts(queries_with_pictures, "scene", 96)
    with monkeypatch.context() as patched:
        patched.setattr("interp.tracing.runner.read", None)
        with pytest.raises(PictureError) as raised:
            trace(tiny_vlm, prompts, out=tmp_path / "store")
    lines = str(raised.value).splitlines()
    assert [line.split(" ")[1] for line in lines[:3]] == ["1", "2", "3"] and "skip_unreadable=True" in lines[3]
    assert "truncated.png" in lines[0] and "words.png" in lines[1] and "missing.png" in lines[2]
    assert not (tmp_path / "store").exists()
    with pytest.warns(UserWarning, match="3 of 4 prompts are left out"):
        traced = trace(tiny_vlm, prompts, skip_unreadable=True)
    assert traced.text.values.tolist() == [queries[0].text]


def test_an_image_that_was_opened_but_never_loaded_is_checked_too(tiny_vlm, queries, tmp_path):
    path = tmp_path / "truncated.png"
    Image.effect_noise((96, 96), 64).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image:
        prompt = replace(to_prompt(queries[0], "blank", 96), pictures=(image,))
        with pytest.raises(PictureError, match="prompt 0 .* given as an image can't be read"):
            trace(tiny_vlm, [prompt])


def test_a_picture_of_a_billion_pixels_is_refused_by_its_header(tiny_vlm, tmp_path):
    """A file of some kilobytes that would unpack to three gigabytes."""
    path = tmp_path / "bomb.png"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", None)
        Image.new("1", (31_700, 31_700)).save(path)
    assert path.stat().st_size < 200_000
    prompt = to_prompt(Query("What is this?", False, picture=str(path)), "scene", 96)
    with pytest.raises(PictureError, match="bomb.png' is too large: Image size .* make it smaller"):
        trace(tiny_vlm, [prompt])


def test_a_trace_of_the_last_token_is_last_resid_post(tiny_vlm, queries):
    prompts = to_prompts(queries, "typographic", 96)
    assert_same(trace(tiny_vlm, prompts).resid_post.values[:, :, 0], last_resid_post(tiny_vlm, prompts).numpy())
