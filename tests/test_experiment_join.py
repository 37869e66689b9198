"""Results of trainings made elsewhere: known by what was trained, and only what is asked for is taken."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up_cells import evaluate, finish, train
from omegaconf import OmegaConf

from immiscible_policy.evaluation.results import load_results
from immiscible_policy.experiment import Experiment, collect, is_done, status
from immiscible_policy.experiment_join import find_joined, incomplete, settings_of, take_over

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "experiment"
COUPLINGS = {"none": ["coupling=none"], "knn": ["coupling=knn", "k=2"]}
EVALUATIONS = [{"n_episodes": 3, "num_inference_steps": [4, 2], "inference_coupling": "none"}]


def experiment(**changes: Any) -> Experiment:
    given = {"name": "first", "factors": {"coupling": COUPLINGS}, "seeds": [0, 1], "evaluations": EVALUATIONS}
    return Experiment(**{**given, "train": ["steps=20"], "measurements": {"modes": {"n_starts": 4}}, **changes})


@pytest.fixture
def published(tmp_path: Path) -> Path:
    made = experiment()
    for cell in made.cells(tmp_path / "first"):
        finish(made, cell)
    return collect(made, tmp_path / "first")


def test_an_experiment_goes_on_from_its_results_alone(published: Path, tmp_path: Path) -> None:
    factors = {"coupling": {**COUPLINGS, "assignment": ["coupling=assignment"]}}
    larger, folder = experiment(factors=factors), tmp_path / "again"
    joined = find_joined(larger, folder, [published])
    assert [path.name for path in joined] == ["none-seed0", "knn-seed0", "none-seed1", "knn-seed1"]
    assert incomplete(larger, folder, joined) == []
    assert status(larger, folder, joined) == "first: 0 of 6 trained, 4 joined, at most 4 evaluations missing"
    finish(larger, larger.cells(folder)[2])
    together = collect(larger, folder, joined)
    assert load_results(together).levels("coupling") == ["none", "knn", "assignment"]
    # And back from what was joined, the same numbers.
    same = collect(experiment(), tmp_path / "third", find_joined(experiment(), tmp_path / "third", [together]))
    assert pq.read_table(same).equals(pq.read_table(published))
    assert load_results(same).runs == load_results(published).runs


def test_trainings_are_known_by_what_they_were_trained_with(published: Path, tmp_path: Path) -> None:
    factors = {"data": {"all": ["steps=20"], "few": ["steps=5"]}, "coupling": {"nearest": ["k=2", "coupling=knn"]}}
    other = experiment(name="other", factors=factors, seeds=[1], train=["steps=3"], baseline="nearest")
    joined = find_joined(other, tmp_path / "other", [published])
    assert [path.name for path in joined] == ["all-nearest-seed1"]
    results = load_results(collect(other, tmp_path / "other", joined))
    assert results.factors == ["data", "coupling"]
    assert results.runs[0]["levels"] == {"data": "all", "coupling": "nearest"}
    scores = results.scores("max_coverage", kind="final", coupling="nearest", num_inference_steps=4)
    assert list(scores) == [1]
    np.testing.assert_allclose(scores[1][100_002], 0.5 + 0.04 + 0.0100002, rtol=1e-6)
    with pytest.raises(ValueError, match=r"join=.*: none of its 4 trainings is one of experiment far"):
        find_joined(experiment(name="far", train=["steps=99"]), tmp_path / "far", [published])


def test_only_what_is_asked_for_is_taken_and_the_rest_is_named(published: Path, tmp_path: Path) -> None:
    fewer = experiment(evaluations=[{**EVALUATIONS[0], "num_inference_steps": 2}])
    results = load_results(collect(fewer, tmp_path / "a", find_joined(fewer, tmp_path / "a", [published])))
    assert results.levels("num_inference_steps", kind="final") == [2]
    assert int(results.where(kind="training").sum()) == 4

    more = experiment(
        evaluations=[
            {**EVALUATIONS[0], "num_inference_steps": 4},
            {"n_episodes": 4, "num_inference_steps": 2, "only": {"seed": [1]}},  # of which three are there
            {"n_episodes": 3, "num_inference_steps": 4, "inference_coupling": "warm"},  # of none it is plain inference
        ],
        seeds=[0, 1],
    )
    joined = find_joined(more, tmp_path / "b", [published])
    lacking = incomplete(more, tmp_path / "b", joined)
    assert [cell.folder.name for cell in lacking] == ["knn-seed0", "none-seed1", "knn-seed1"]

    exact = experiment(evaluations=[{**EVALUATIONS[0], "mixed_precision": "bf16"}])  # fp32 is there
    assert len(incomplete(exact, tmp_path / "d", find_joined(exact, tmp_path / "d", [published]))) == 4

    other = experiment(measurements={"modes": {"n_starts": 8}})
    joined = find_joined(other, tmp_path / "c", [published])
    assert len(incomplete(other, tmp_path / "c", joined)) == 4
    assert all(results.record["modes"] is None for results in joined.values())


def test_evaluations_by_another_sampler_are_others(published: Path, tmp_path: Path) -> None:
    """The rows there are of the policies' own sampler, ddim, whether the evaluation names it or not."""
    plain = EVALUATIONS[0]
    for sampler, lacking in (("ddim", 0), ("ddpm", 4), ([None, "ddim"], 0), ([None, "ddpm"], 4)):
        other = experiment(evaluations=[{**plain, "sampler": sampler}])
        folder = tmp_path / str(sampler)
        joined = find_joined(other, folder, [published])
        assert len(incomplete(other, folder, joined)) == lacking
        kept = {row["sampler"] for results in joined.values() for row in results.rows if row["kind"] == "final"}
        assert kept == ({"ddim"} if sampler != "ddpm" else set())
    both = experiment(evaluations=[{**plain, "sampler": [None, "ddpm", "ddim"]}])
    cell = both.cells(tmp_path / "both")[0]
    train(cell)
    assert {config.sampler for config in both.evaluation_configs(cell)} == {None, "ddpm"}
    for config in both.evaluation_configs(cell):
        evaluate(cell, config)
    results = collect(both, tmp_path / "both")
    assert sorted(load_results(results).levels("sampler", kind="final")) == ["ddim", "ddpm"]
    own = experiment()
    kept_rows = find_joined(own, tmp_path / "own", [results])[own.cells(tmp_path / "own")[0].folder].rows
    assert {row["sampler"] for row in kept_rows} == {"ddim"}
    assert len(find_joined(both, tmp_path / "c", [results])[both.cells(tmp_path / "c")[0].folder].rows) > len(kept_rows)


def test_the_selection_of_the_training_is_the_same_by_name(published: Path, tmp_path: Path) -> None:
    """Of policies trained with KNN(k=2), that is; of those without a coupling it is another evaluation."""
    warm = {"n_episodes": 3, "num_inference_steps": 4, "inference_coupling": "warm"}
    unnamed, named = ({**warm, "selection": selection} for selection in (None, "KNN(2)"))
    first, both = experiment(evaluations=[unnamed]), experiment(evaluations=[unnamed, named])
    for cell in first.cells(tmp_path / "unnamed"):
        finish(first, cell)
    table = collect(first, tmp_path / "unnamed")
    for asked, name in ((experiment(evaluations=[named]), "KNN(2)"), (both, None)):
        folder = tmp_path / str(name)
        joined = find_joined(asked, folder, [table])
        assert [cell.levels["coupling"] for cell in incomplete(asked, folder, joined)] == ["none", "none"]
        results = load_results(collect(asked, folder, joined))
        assert results.levels("selection", kind="final") == [name]
        assert int(results.where(kind="final", coupling="knn").sum()) == 6
    cells = both.cells(tmp_path / "trained")[:2]
    for cell in cells:
        train(cell)
    missing = [[config.selection for config in cell.missing(both.evaluation_configs(cell))] for cell in cells]
    assert missing == [["KNN(2)"], [None]]
    evaluate(cells[1], both.evaluation_configs(cells[1])[0])
    assert cells[1].missing(both.evaluation_configs(cells[1])) == []


def test_one_evaluation_under_two_names_is_joined_once(tmp_path: Path) -> None:
    """As older tables may have it."""
    warm = {"n_episodes": 3, "num_inference_steps": 4, "inference_coupling": "warm"}
    asked = experiment(evaluations=[{**warm, "selection": selection} for selection in (None, "KNN(k=2)")])
    cells = asked.cells(tmp_path / "twice")
    for cell in cells:
        finish(asked, cell)
        for config in asked.evaluation_configs(cell):
            evaluate(cell, config)
    table = collect(asked, tmp_path / "twice")
    assert int(load_results(table).where(kind="final", coupling="knn", training_seed=0).sum()) == 6
    joined = find_joined(asked, tmp_path / "once", [table])
    results = load_results(collect(asked, tmp_path / "once", joined))
    assert int(results.where(kind="final", coupling="knn", training_seed=0).sum()) == 3


def test_ways_with_chosen_noise_lack_where_they_could_be_measured(published: Path, tmp_path: Path) -> None:
    table = pq.read_table(published)  # as it was before there was such a measurement
    content = json.loads(table.schema.metadata[b"experiment"])
    for run in content["runs"]:
        del run["modes_warm"]
    pq.write_table(table.replace_schema_metadata({"experiment": json.dumps(content)}), published)
    warm = experiment(measurements={"modes": {"n_starts": 4}, "modes_warm": {"n_starts": 4}})
    joined = find_joined(warm, tmp_path / "warm", [published])
    assert [cell.folder.name for cell in incomplete(warm, tmp_path / "warm", joined)] == ["knn-seed0", "knn-seed1"]
    runs = load_results(collect(warm, tmp_path / "warm", joined)).runs
    assert [(bool(run["modes"]), run["modes_warm"]) for run in runs] == [(True, None)] * 4


def test_what_is_finished_here_comes_first(published: Path, tmp_path: Path) -> None:
    again, folder = experiment(), tmp_path / "again"
    finish(again, again.cells(folder)[0])
    joined = find_joined(again, folder, [published])
    assert [path.name for path in joined] == ["knn-seed0", "none-seed1", "knn-seed1"]
    collected = collect(again, folder, joined)
    assert pq.read_table(collected).equals(pq.read_table(published))
    again.cells(folder)[0].measurement_file("modes").unlink()  # no longer finished
    assert len(find_joined(again, folder, [published])) == 4


def test_a_policy_trained_here_is_not_hidden_by_one_that_adds_nothing(published: Path, tmp_path: Path) -> None:
    """Its evaluations stay, and what it lacks is made."""
    warm = {"n_episodes": 3, "num_inference_steps": 4, "inference_coupling": "warm"}
    more = experiment(evaluations=[*EVALUATIONS, warm], measurements={"modes": {"n_starts": 4}, "prior_gap": {}})
    folder = tmp_path / "more"
    cell = more.cells(folder)[1]
    finish(more, cell)
    cell.measurement_file("prior_gap").unlink()
    joined = find_joined(more, folder, [published])
    assert cell.folder not in joined
    results = load_results(collect(more, folder, joined))
    assert len(results.scores("max_coverage", kind="final", coupling="knn", inference_coupling="warm")[0]) == 3
    cell.measurement_file("modes").unlink()  # which those joined have
    assert cell.folder in find_joined(more, folder, [published])


def test_a_training_made_again_keeps_the_results_of_the_same_policy(published: Path, tmp_path: Path) -> None:
    more = experiment(
        evaluations=[*EVALUATIONS, {"n_episodes": 3, "num_inference_steps": 8}],
        measurements={"modes": {"n_starts": 4}, "prior_gap": {"n_windows": 2}},
    )
    folder = tmp_path / "again"
    joined = find_joined(more, folder, [published])
    cell = more.cells(folder)[1]
    train(cell)
    told = "the policy of the joined results, of which 2 evaluations and 1 measurements are kept"
    assert take_over(more, joined, cell) == told
    assert [config.num_inference_steps for config in cell.missing(more.evaluation_configs(cell))] == [8]
    assert more.missing_measurements(cell) == ["prior_gap"]
    assert take_over(more, joined, cell) == ""  # nothing more
    asked = experiment()
    assert is_done(asked, cell)
    one = collect(asked, folder)
    kept = load_results(one)
    assert kept.levels("coupling") == ["knn"]
    original = pq.read_table(published)
    rows = [r for r in original.to_pylist() if (r["coupling"], r["training_seed"]) == ("knn", 0)]
    assert pq.read_table(one).to_pylist() == rows
    assert kept.runs[0] == load_results(published).runs[1]


@pytest.mark.parametrize("file", ["rollouts.jsonl", "metrics.jsonl"])
def test_results_of_another_policy_are_not_kept(published: Path, tmp_path: Path, file: str) -> None:
    asked, folder = experiment(), tmp_path / "again"
    joined = find_joined(asked, folder, [published])
    cell = asked.cells(folder)[0]
    train(cell)
    path = cell.run_dir / file  # the same training on another processor
    path.write_text(path.read_text().replace("0.25", "0.2500001").replace("0.1}", "0.1000001}"))
    assert take_over(asked, joined, cell).startswith("not the policy of the joined results")
    assert len(cell.missing(asked.evaluation_configs(cell))) == 2
    path.write_text("")  # and one that was never looked at while it trained is not known to be the same
    assert take_over(asked, joined, cell).startswith("not the policy of the joined results")
    assert take_over(asked, {}, cell) == ""


def test_of_two_tables_the_first_that_has_a_training_counts(published: Path, tmp_path: Path) -> None:
    second = experiment(evaluations=[{**EVALUATIONS[0], "noise_seed": 5}])
    for cell in second.cells(tmp_path / "second"):
        finish(second, cell)
    other = collect(second, tmp_path / "second")
    folder = tmp_path / "third"
    assert incomplete(second, folder, find_joined(second, folder, [other, published])) == []
    assert len(incomplete(second, folder, find_joined(second, folder, [published, other]))) == 4


def test_a_table_without_overrides_is_refused(published: Path, tmp_path: Path) -> None:
    table = pq.read_table(published)
    content = json.loads(table.schema.metadata[b"experiment"])
    for run in content["runs"]:
        del run["overrides"]
    pq.write_table(table.replace_schema_metadata({"experiment": json.dumps(content)}), tmp_path / "old.parquet")
    with pytest.raises(ValueError, match=r"old.parquet: does not say what its runs were trained with"):
        find_joined(experiment(), tmp_path / "x", [tmp_path / "old.parquet"])


@pytest.mark.parametrize(("name", "shared"), [("observations", 6), ("data_efficiency", 6)])
def test_experiments_share_trainings_with_table2_floor(name: str, shared: int, tmp_path: Path) -> None:
    def trainings(of: str) -> set[frozenset[tuple[str, str]]]:
        content = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{of}.yaml"))
        return {settings_of(cell.overrides) for cell in Experiment(**content).cells(tmp_path)}  # type: ignore[arg-type]

    assert len(trainings(name) & trainings("table2_floor")) == shared
