from pathlib import Path

from gencond.common.provenance import current_commit

INDEX = Path(__file__).parents[2] / ".git" / "index"


def test_asking_for_the_commit_leaves_the_index_of_a_checkout_alone() -> None:
    """One that is killed while it rewrites the index leaves a lock, which stops the user's next commit."""
    Path(__file__).touch()  # what makes git look at the file again
    before = INDEX.stat().st_mtime_ns if INDEX.is_file() else None
    current_commit.cache_clear()
    commit = current_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) >= 12
    assert before == (INDEX.stat().st_mtime_ns if INDEX.is_file() else None)
