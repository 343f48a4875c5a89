"""Traces with two Ray workers on this machine, which are killed, fail, or load other weights."""

import os
import signal
import warnings

import numpy as np
import pytest

from interp.activations import Store, StoreError
from interp.errors import ModelError
from interp.inputs import to_prompts
from interp.token_positions import TraceError
from interp.trace import trace
from interp.vlm import VLM

pytest.importorskip("ray", reason="extra `distributed`")
# Raised by Ray, which leaves sockets and files open until the process ends.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def prompts(queries):
    return [p for modality in ("blank", "text", "scene", "noise") for p in to_prompts(queries, modality, 96)]


def test_a_killed_worker_is_replaced_and_no_batch_is_missing_or_repeated(cluster, tiny_vlm, prompts, tmp_path):
    pids, n_done = [], []

    def kill_one(n_prompts):
        n_done.append(n_prompts)
        pids.extend(_pids_of_workers())
        if len(n_done) == 3:
            os.kill(pids[-1], signal.SIGKILL)

    traced = trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=2, ray="local", advance=kill_one)
    assert sum(n_done) == 16 and len(n_done) == 8
    assert len(set(pids)) >= 3
    expected = trace(tiny_vlm, prompts).resid_post.values
    np.testing.assert_allclose(traced.resid_post.values, expected, atol=1e-5 * np.abs(expected).max())
    assert Store(tmp_path / "store").n_done == 8 and Store(tmp_path / "store").damaged() == []


def _pids_of_workers() -> list[int]:
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::_Worker")
    ]


def test_finished_batches_are_not_run_again(cluster, tiny_vlm, prompts, tmp_path):
    trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=4)
    n_done = []
    trace(tiny_vlm, prompts, out=tmp_path / "store", ray="local", advance=n_done.append)
    assert n_done == [4, 4, 4, 4]


def test_a_model_built_by_hand_is_refused_and_errors_of_workers_reach_the_caller(cluster, tiny_vlm, prompts, tmp_path):
    in_hand = VLM(tiny_vlm.model, tiny_vlm.processor, "in hand")
    with pytest.raises(TraceError, match="workers can't load 'in hand', .* save_pretrained"):
        trace(in_hand, prompts[:4], out=tmp_path / "store", ray="local")
    lost = VLM(tiny_vlm.model, tiny_vlm.processor, "lost", tiny_vlm.loading | {"name_or_path": str(tmp_path / "gone")})
    with pytest.raises(ModelError, match="model folder '.*gone' does not exist"):
        trace(lost, prompts[:4], out=tmp_path / "other", ray="local")


@pytest.mark.slow
def test_workers_with_other_weights_are_refused(cluster, tiny_vlm, prompts, tmp_path):
    other = VLM(type(tiny_vlm.model)(tiny_vlm.model.config).eval(), tiny_vlm.processor, "other", tiny_vlm.loading)
    with pytest.raises(StoreError, match="a worker loaded other weights"):
        trace(other, prompts[:4], out=tmp_path / "store", ray="local")


class Deadly(VLM):
    """A model that kills the process that loads it."""

    @classmethod
    def from_pretrained(cls, **loading):
        os._exit(1)


@pytest.mark.slow
def test_a_trace_whose_workers_always_die_is_given_up(cluster, tiny_vlm, prompts, tmp_path):
    deadly = Deadly(tiny_vlm.model, tiny_vlm.processor, "deadly", tiny_vlm.loading)
    with pytest.raises(ModelError, match="3 workers died on piece 0"):
        trace(deadly, prompts[:4], out=tmp_path / "store", ray="local")
    assert Store(tmp_path / "store").n_done == 0


def test_a_cluster_needs_a_folder(tiny_vlm, prompts, tmp_path):
    with pytest.raises(TraceError, match="expected a folder: out="):
        trace(tiny_vlm, prompts, ray="local")
