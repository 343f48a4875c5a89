"""Two Ray workers on this machine, one of them killed half way."""

import os
import signal
import warnings

import numpy as np
import pytest

from interp.activations import Store, StoreError
from interp.families import ModelError
from interp.inputs import to_prompts
from interp.token_positions import TraceError
from interp.trace import trace
from interp.vlm import VLM

pytest.importorskip("ray", reason="extra `distributed`")
# Of Ray, which leaves sockets and files to the end of the process.
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


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_missing_or_double(cluster, tiny_vlm, prompts, tmp_path):
    pids, done = [], []

    def kill_one(n_prompts):
        done.append(n_prompts)
        pids.extend(_pids_of_workers())
        if len(done) == 3:
            os.kill(pids[-1], signal.SIGKILL)

    found = trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=2, ray="local", advance=kill_one)
    assert sum(done) == 16 and len(done) == 8
    assert len(set(pids)) >= 3
    alone = trace(tiny_vlm, prompts).resid_post.values
    np.testing.assert_allclose(found.resid_post.values, alone, atol=1e-5 * np.abs(alone).max())
    assert Store(tmp_path / "store").n_done == 8 and Store(tmp_path / "store").damaged() == []


def _pids_of_workers() -> list[int]:
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::_Worker")
    ]


def test_what_is_done_is_not_done_again(cluster, tiny_vlm, prompts, tmp_path):
    trace(tiny_vlm, prompts, out=tmp_path / "store", batch_size=4)
    done = []
    trace(tiny_vlm, prompts, out=tmp_path / "store", ray="local", advance=done.append)
    assert done == [4, 4, 4, 4]


def test_a_model_in_hand_is_refused_and_mistakes_of_workers_come_back(cluster, tiny_vlm, prompts, tmp_path):
    in_hand = VLM(tiny_vlm.model, tiny_vlm.processor, "in hand")
    with pytest.raises(TraceError, match="workers can't load 'in hand', .* save_pretrained"):
        trace(in_hand, prompts[:4], out=tmp_path / "store", ray="local")
    lost = VLM(tiny_vlm.model, tiny_vlm.processor, "lost", tiny_vlm.loading | {"name_or_path": str(tmp_path / "gone")})
    with pytest.raises(ModelError, match="model folder '.*gone' does not exist"):
        trace(lost, prompts[:4], out=tmp_path / "other", ray="local")


def test_workers_with_other_weights_are_refused(cluster, tiny_vlm, prompts, tmp_path):
    other = VLM(type(tiny_vlm.model)(tiny_vlm.model.config).eval(), tiny_vlm.processor, "other", tiny_vlm.loading)
    with pytest.raises(StoreError, match="a worker loaded other weights"):
        trace(other, prompts[:4], out=tmp_path / "store", ray="local")


class Deadly(VLM):
    """Kills whoever loads it."""

    @classmethod
    def from_pretrained(cls, **loading):
        os._exit(1)


def test_workers_that_always_die_are_given_up(cluster, tiny_vlm, prompts, tmp_path):
    deadly = Deadly(tiny_vlm.model, tiny_vlm.processor, "deadly", tiny_vlm.loading)
    with pytest.raises(ModelError, match="3 workers died over piece 0"):
        trace(deadly, prompts[:4], out=tmp_path / "store", ray="local")
    assert Store(tmp_path / "store").n_done == 0


def test_a_cluster_needs_a_folder_and_must_be_there(tiny_vlm, prompts, tmp_path):
    with pytest.raises(TraceError, match="expected a folder: out="):
        trace(tiny_vlm, prompts, ray="local")
