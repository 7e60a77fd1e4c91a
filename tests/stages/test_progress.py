"""How far a study is, told event by event."""

from pathlib import Path

from studies import events as run
from studies import having, opened

from pipeline.stages.study.progress import Progress
from pipeline.study.search import Ended, Epoch


def test_a_study_ends_at_the_end_of_its_bar_and_a_log_says_each_training_once(tmp_path: Path) -> None:
    study = opened(tmp_path, having(trials=3, epochs=2, seeds=2))
    progress = Progress(study)
    assert (progress.done(), progress.total) == (0, 3 * 2 * 2)
    done, notes, trainings, last = [0], [], 0, ""
    for event in run(study):
        if step := progress.after(event):
            at, note, last = step
            done.append(at)
            notes += [note] if note else []
        trainings += isinstance(event, Epoch) and event.fitted is not None
        assert not isinstance(event, Ended) or step is not None
    assert done == sorted(done)
    assert done[-1] == progress.total
    assert len(notes) == len(set(notes)) == trainings > 0
    assert last.startswith("3 of 3 trials done")
