"""The shapes of an evaluation."""

import json

import pytest

from jvlmm.errors import JvlmmError
from jvlmm.recipes import evaluating
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import Source
from jvlmm.sharding.mesh import MeshOptions


@pytest.mark.parametrize(
    ("questions", "batch_size", "mesh", "rows"),
    [(3, 32, None, 3), (40, 32, None, 32), (3, 32, MeshOptions(data=-1), 8), (9, 8, MeshOptions(data=-1), 8)],
)
def test_a_batch_is_no_larger_than_there_are_questions(tmp_path, monkeypatch, questions, batch_size, mesh, rows):
    """On eight devices each has whole rows."""
    row = {"question": "Red?", "answer": "yes", "answer_type": "yesno"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n in range(questions)))
    opened = []

    def generator_of(stage, *_):
        opened.append(stage.batch_size)
        raise JvlmmError("seen enough")

    monkeypatch.setattr(evaluating, "generator_of", generator_of)
    stage = Evaluate(model="m", sources=(Source(str(tmp_path / "rows.jsonl")),), batch_size=batch_size, mesh=mesh)
    with pytest.raises(JvlmmError, match="seen enough"):
        stage.run(Run(tmp_path / "run", seed=0))
    assert opened == [rows]
