"""The library works from plain Python: no module of it imports Prefect."""

from tests.conftest import Start

IMPORT_ALL = """
    import importlib, pkgutil, sys
    # Without torch, which takes seconds to import: modules that train are left to import-linter.
    TRAINING = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "bitsandbytes")

    class Absent:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] in TRAINING:
                raise ModuleNotFoundError(name, name=name)

    sys.meta_path.insert(0, Absent)
    import nothing_gpt
    for module in pkgutil.walk_packages(nothing_gpt.__path__, "nothing_gpt."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] not in TRAINING:
                raise
        else:
            print(module.name)
    assert not [name for name in sys.modules if name.split(".")[0].startswith("prefect")]
"""


def test_the_library_imports_no_prefect(child: Start) -> None:
    out, err = child(IMPORT_ALL).communicate()
    assert err == ""
    assert {
        f"nothing_gpt.{name}"
        for name in (
            "store",
            "journal",
            "artifacts",
            "records",
            "config",
            "endpoint",
            "sampling",
            "verdicts",
            "judging",
            "batches",
            "dpo.generate_pairs",
            "dpo.judge",
            "dpo.pairs",
            "dpo.evaluate",
            "dpo.gate",
        )
    } <= set(out.split())
