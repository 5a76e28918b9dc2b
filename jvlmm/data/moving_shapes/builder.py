"""The TFDS builders: one stores the scenes of every split, the other the questions about them.

Imported only when a dataset is built or opened; needs no TensorFlow.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_TEXTS = ("id", "question", "answer", "answer_text", "answer_type", "question_type", "form", "response", "cited")

tfds.disable_progress_bar()


class _RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes records given by split, in their order, as array_record."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: Mapping[str, Any] = {}

    def __init__(self, *, records: Mapping[str, Iterable[dict[str, Any]]] | None = None, **kwargs: Any) -> None:
        self._records = records or {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(dict(self.FEATURES))
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(records) for split, records in self._records.items()}

    def _generate_examples(self, records):
        yield from enumerate(records)


class MovingShapesScenes(_RecordsBuilder, skip_registration=True):
    """One record per clip or image: its ground truth as JSON."""

    FEATURES = {"scene": tfds.features.Text()}


class MovingShapesQuestions(_RecordsBuilder, skip_registration=True):
    """One record per question; `scene` is the row of its scene in the same split."""

    FEATURES = {
        **{name: tfds.features.Text() for name in _TEXTS},
        "scene": tfds.features.Scalar(dtype=np.int64),
        "options": tfds.features.Sequence(tfds.features.Text()),
    }


def write(data_dir: Path, scenes: Mapping[str, Iterable], questions: Mapping[str, Iterable]) -> None:
    """Write the records of all splits. Raises OSError where they cannot be written."""
    for builder_class, records in ((MovingShapesScenes, scenes), (MovingShapesQuestions, questions)):
        try:
            with redirect_stdout(StringIO()):  # the builder's notices speak of downloads
                builder_class(data_dir=str(data_dir), records=records).download_and_prepare()
        except RuntimeError as error:  # what the array_record writer raises, whatever the cause
            raise OSError(str(error).split(";")[0]) from error


def open_split(data_dir: Path, split: str) -> tuple[Sequence, Sequence]:
    """Random access to the scenes and the questions of a split."""
    builders = (builder_class(data_dir=str(data_dir)) for builder_class in (MovingShapesScenes, MovingShapesQuestions))
    scenes, questions = (builder.as_data_source(split=split) for builder in builders)
    return scenes, questions
