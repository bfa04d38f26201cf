"""The README's pictures of Prefect's UI, of a real run of the deployment `embedded` (about five minutes on two cores):

make ui && .venv/bin/python -m tests.flows.pictures http://127.0.0.1:4200 docs/images
"""

import sys
from pathlib import Path

from tests.flows.browser import Person, person


def main(url: str, folder: Path) -> None:
    with person(url) as ada:
        ada.page.set_default_timeout(3600_000)
        ada.open_deployment("embedded")
        ada.open_form()
        training = ada.field("training")
        ada.fill(ada.field("Beta", training), "-1")
        ada.press("Submit")
        ada.reads("Validation failed for field 'training.beta'")
        training.evaluate("group => group.scrollIntoView()")
        ada.picture(folder / "form.png")
        ada.open_deployment("embedded")
        ada.open_run(ada.quick_run())
        take_run(ada, folder)


def take_run(ada: Person, folder: Path) -> None:
    """Pictures of the run whose page is open: at work, and its report."""
    ada.sees("Task Runs", "evaluate · ")
    ada.picture(folder / "run.png")
    ada.sees_state("Completed")
    ada.sees("Artifacts", "dpo-report").click()
    ada.reads("Promoted")
    ada.picture(folder / "report.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
