"""Pages of the documents that are made from the code are those that the code makes."""

from tools import reference


def test_the_list_of_parameters_is_that_of_the_schema():
    """Mended by ``python -m tools.reference``."""
    assert reference.PAGE.read_text(encoding="utf-8") == reference.parameters_page()


def test_every_parameter_of_the_files_is_on_the_page():
    page = reference.parameters_page()
    files = reference.base_parameters()
    assert {"task", "probing", "identification"} <= set(files)
    for branch in ("task", "model", "training", "comparison"):
        missing = [name for name in files[branch] if f"`{branch}.{name}" not in page]
        assert not missing
