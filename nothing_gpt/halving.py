"""Which points of a sweep go on after a first, small budget: those that Optuna's percentile pruner leaves.

Successive halving (Jamieson and Talwalkar 2016) with one rung, at which all points are compared together. Optuna's own
`SuccessiveHalvingPruner` decides on each point when it comes, the first always going on.
"""

from collections.abc import Mapping

SHARE = 1 / 3
"""The first budget, as a share of the whole."""
_RUNG = 1


def better_half(scores: Mapping[str, float]) -> list[str]:
    """Names of the points whose score is not below the median, in their order: more than half of them where several
    have the median, and none where there are none."""
    import optuna  # it takes half a second

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.PercentilePruner(50.0, n_startup_trials=0)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.add_trials(
        optuna.trial.create_trial(value=score, intermediate_values={_RUNG: score}) for score in scores.values()
    )
    going_on: list[str] = []
    for name, score in scores.items():
        trial = study.ask()
        trial.report(score, _RUNG)
        if not trial.should_prune():
            going_on.append(name)
    return going_on
