"""What TensorBoard shows of a run that was killed and resumed."""

from __future__ import annotations

from alignlab.curves import curves


def test_a_resumed_run_has_every_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 35), (28, 40)):  # killed after 35 steps, of which 27 were saved
        with curves(tmp_path, 40) as watch:
            for done in range(first, last + 1):
                watch(done, {"visual": float(first)})
    read = EventAccumulator(str(tmp_path / "logs"))
    read.Reload()
    found = [(one.step, one.value) for one in read.Scalars("loss/visual")]
    assert found == [(10, 1.0), (20, 1.0), (30, 28.0), (40, 28.0)]


def test_a_process_that_does_not_write_makes_no_folder(tmp_path):
    with curves(tmp_path, 10, writes=False) as watch:
        watch(10, {"visual": 1.0})
    assert not (tmp_path / "logs").exists()
