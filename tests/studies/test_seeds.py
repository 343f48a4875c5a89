import json

import pandas as pd
import pytest

from studies import organism, repro, seeds
from studies.bookkeeping.tables import read_table
from studies.claims import CLAIMS
from studies.experiment.config import Config, ConfigError
from studies.experiment.experiment import load_experiment

CHOSEN = {"setting": "chosen", "split": "test", "modality": "blank", "judge": "exact@1", "metric": "refusal_rate"}
COMPARED = {"setting": "compared", "split": "test", "modality": "blank", "metric": "refusal_score_gain"}
ATTACK = {"setting": "plain", "split": "test", "modality": "blank", "judge": "exact@1", "metric": "asr"}


def a_run(folder, layer, refused, gain):
    """Write tables of a finished run with the columns that seeds are compared by."""
    folder.mkdir()
    guard = {"defence": "guard", "layer": layer, "rule": "substitute", "gate": "sign", "n": 60}
    sweep = [CHOSEN | guard | {"value": refused}, CHOSEN | {"defence": "unguarded", "value": 0.6, "n": 60}]
    sweep.append(CHOSEN | guard | {"setting": "finalists", "value": 0.1})
    tables = {
        "layer_sweep": sweep,
        "readings": [
            COMPARED | guard | {"value": gain},
            COMPARED | guard | {"rule": "ablate", "value": -gain},
            # The chosen guard, whose gate is another one for each seed.
            COMPARED | guard | {"gate": f"gate {layer}", "value": 2 * gain, "selection_rule": "layer_sweep"},
        ],
        "defence": [
            ATTACK | guard | {"value": 1 - refused, "reference": "prompt_text"},
            ATTACK | guard | {"judge": "keywords@1", "value": 0.5, "reference": "prompt_text"},
            ATTACK | guard | {"setting": "xstest_like", "value": 0.5, "reference": "prompt_text"},
        ],
        "claims": [{"claim": "it works", "theirs": "yes", "ours": f"{refused}", "verdict": "shown"}],
    }
    for name, rows in tables.items():
        empty = dict.fromkeys(
            ("judge", "category", "control", "selection_rule", "ci_low", "ci_high", "interval", "strength")
        )
        pd.DataFrame([empty | row for row in rows]).to_csv(folder / f"{name}.csv", index=False)
    (folder / "provenance.json").write_text(json.dumps({"commit": "abc", "inputs": {"model": f"hash {layer}"}}))
    return folder


def test_seeds_are_put_side_by_side_with_their_spread(tmp_path):
    layers, rates, gains = (7, 6, 7), (1.0, 0.8, 0.9), (5.0, 4.0, 3.0)
    folders = {
        seed: a_run(tmp_path / f"seed{seed}", *values)
        for seed, values in enumerate(zip(layers, rates, gains, strict=True))
    }
    result = seeds.compare(folders)
    table = result.table
    guarded = table[(table.setting == "chosen") & (table.defence == "guard")]
    own = guarded[guarded.seed.notna()]
    # The guard of each seed has its own layer, and is one row of the spread all the same.
    assert dict(zip(own.seed, own.layer, strict=True)) == dict(enumerate(layers))
    spread = guarded[guarded.seed.isna()].iloc[0]
    assert spread[["value", "ci_low", "ci_high", "n"]].tolist() == pytest.approx([0.9, 0.8, 1.0, 3])
    assert spread.interval == "range of 3 seeds"
    chosen = table[table.seed.isna() & table.selection_rule.notna()]
    assert chosen.value.tolist() == pytest.approx([8])
    ablated = table[table.seed.isna() & (table.rule == "ablate")].iloc[0]
    assert ablated.value == pytest.approx(-4)
    # The first judge and the settings with attacks only.
    assert set(table.setting) == {"chosen", "compared", "plain"}
    assert table[(table.setting == "plain") & table.seed.isna()].value.tolist() == pytest.approx([0.1])
    assert result.inputs["seed1"] == {"model": "hash 6", "commit": "abc"}
    assert result.claims.verdict.tolist() == ["shown"] * 3 and result.claims.seed.tolist() == [0, 1, 2]


@pytest.mark.parametrize("names", [("run1",), ("seed0",), ("seed1", "other/seed1")])
def test_folders_are_named_by_their_seeds(names):
    with pytest.raises(ConfigError, match="seed1, seed2"):
        seeds.run(names, "tiny", "nowhere")


def test_another_training_is_loaded_with_its_own_llm(tmp_path):
    for name in ("vlm", "llm"):
        (tmp_path / name).symlink_to(organism.FOLDER / name)
    experiment = load_experiment(Config(scale="tiny", out=str(tmp_path / "out"), weights=str(tmp_path)))
    shipped = load_experiment(Config(scale="tiny", out=str(tmp_path / "out")))
    assert experiment.labels == shipped.labels and experiment.identity == shipped.identity
    (tmp_path / "llm").unlink()
    (tmp_path / "llm").mkdir()
    with pytest.raises(ConfigError, match="lack llm"):
        load_experiment(Config(scale="tiny", weights=str(tmp_path)))
    (tmp_path / "llm/config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="for 'organism' only"):
        load_experiment(Config(model="elsewhere", scale="tiny", weights=str(tmp_path)))


def test_the_committed_table_has_three_seeds_with_their_own_guards():
    folder = repro.REFERENCE / "seeds"
    table, claims = (pd.read_csv(folder / f"{name}.csv", low_memory=False) for name in ("seeds", "seed_claims"))
    chosen = table[(table.setting == "chosen") & (table.defence == "guard") & table.seed.notna()]
    assert len(chosen.groupby("seed")[["layer", "rule", "strength"]].first().drop_duplicates()) == 3
    assert claims.groupby("seed").claim.nunique().to_dict() == dict.fromkeys(range(3), len(CLAIMS))
    assert set(json.loads((folder / "provenance.json").read_text())["inputs"]) == {"seed0", "seed1", "seed2"}
    # The committed run of the shipped weights is one of the three.
    shipped = read_table(repro.REFERENCE / "quick", "claims")[["claim", "ours", "verdict"]]
    assert claims[claims.seed == 0].drop(columns="seed").reset_index(drop=True).equals(shipped)
