import json
import logging
import warnings

import pytest

from convnn._utils.files import staged, write_json
from convnn._utils.quiet import quiet_exporters, quiet_lightning


def _write_two(folder):
    (folder / "a.json").write_text("half")
    (folder / "none" / "b.json").write_text("half")


def test_what_fails_leaves_the_old_files_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 1})
    with pytest.raises(FileNotFoundError), staged(tmp_path) as temporary:
        _write_two(temporary)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"loss": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 1}


def test_files_are_replaced_together(tmp_path):
    (tmp_path / "a").write_text("old")
    with staged(tmp_path) as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text("new")
        assert (tmp_path / "a").read_text() == "old"
        assert not (tmp_path / "b").exists()
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [("a", "new"), ("b", "new")]


@pytest.mark.parametrize(
    ("quiet", "name", "level"),
    [(quiet_lightning, "lightning.pytorch", logging.ERROR), (quiet_exporters, "torch.onnx", logging.CRITICAL)],
)
def test_loggers_are_quiet_for_a_while(quiet, name, level):
    logger = logging.getLogger(name)
    before = logger.level
    with quiet():
        assert logger.level == level
    with pytest.raises(RuntimeError, match="inside"), quiet():
        raise RuntimeError("inside")
    assert logger.level == before


def test_only_the_exporters_silence_warnings_of_all_modules():
    with pytest.warns(UserWarning, match="seen"), quiet_lightning():
        warnings.warn("seen", UserWarning, stacklevel=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_exporters():
            warnings.warn("unseen", UserWarning, stacklevel=1)
    assert caught == []
