"""Progress that is shown on a terminal, and heard by a flow run around the work."""

import threading

from flows.terminal import announce, heard_by, shown_progress


def test_progress_is_heard_from_any_thread_while_somebody_listens() -> None:
    heard: list[tuple[str, int, int]] = []
    with heard_by(lambda *told: heard.append(told)), shown_progress("shards") as show:
        show(1, 10)
        other = threading.Thread(target=show, args=(2, 10))
        other.start()
        other.join()
        announce("bytes", 5, 7)
    with shown_progress("shards") as show:
        show(3, 10)
    assert heard == [("shards", 1, 10), ("shards", 2, 10), ("bytes", 5, 7)]
