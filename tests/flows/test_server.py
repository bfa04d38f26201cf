"""A command's own Prefect server: when what dead runs held is free."""

from pathlib import Path

from flows.server import alone_on


def test_a_command_is_alone_on_its_data_folder_until_the_last_other_one_has_ended(tmp_path: Path) -> None:
    with alone_on(tmp_path) as first:
        with alone_on(tmp_path) as second:
            assert (first, second) == (True, False)
        with alone_on(tmp_path) as third:
            assert not third
    with alone_on(tmp_path) as fourth:
        assert fourth
