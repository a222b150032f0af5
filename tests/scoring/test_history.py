from graft.scoring.history import FIGURES, History


def test_kept_without_their_times(history, tmp_path):
    timed = History(
        tuple({**row, "seconds": 9.87654321} for row in history.rows), history.unfrozen_at
    )
    timed.write(tmp_path / "curves.csv")
    text = (tmp_path / "curves.csv").read_text()
    assert text.splitlines()[0] == "epoch,phase,lr,train_loss,train_accuracy,val_loss,val_accuracy"
    assert text.splitlines()[5] == "4,fine-tune,0.0001,0.4,0.85,0.8,0.74"
    assert "9.87" not in text
    assert History.read(tmp_path / "curves.csv") == history
    head = History(history.head)
    head.write(tmp_path / "head.csv")
    assert History.read(tmp_path / "head.csv") == head


def test_phases(history):
    assert [row["epoch"] for row in history.head] == [0, 1, 2]
    assert [row["epoch"] for row in history.fine_tuning] == [3, 4]
    assert list(history.phases) == ["head", "fine-tuning"]
    head = History(history.head)
    assert (head.head, head.fine_tuning, list(head.phases)) == (history.head, (), ["head"])


def test_fine_tuning_continues_the_epochs_of_the_head(history):
    head = History().continued(history.head)
    assert head == History(history.head)  # a first phase unfreezes nothing
    assert head.continued([]) == head  # nor does one without epochs
    assert (
        head.continued([{**row, "epoch": k} for k, row in enumerate(history.fine_tuning)])
        == history
    )


def test_iterations_of_a_solved_head_have_no_rate(tmp_path):
    rows = tuple({"epoch": k, "lr": None, **dict.fromkeys(FIGURES[1:], 0.5)} for k in range(2))
    written = History(rows).continued(
        [{"epoch": 0, "lr": 1e-3, **dict.fromkeys(FIGURES[1:], 0.25)}]
    )
    written.write(tmp_path / "curves.csv")
    assert History.read(tmp_path / "curves.csv") == written
    assert (tmp_path / "curves.csv").read_text().splitlines()[1] == "0,head,,0.5,0.5,0.5,0.5"
